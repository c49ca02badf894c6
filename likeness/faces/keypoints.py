"""POSE_KEYPOINT, the people of OpenPose's JSON, as pose preprocessors and the host give them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.errors import bad_input
from . import geometry
from .interface import Face, Faces
from .select import ordered

BODY, FACE = 18, 70
#: Less certain points do not count; some sources give real confidences, some only 0 and 1.
CERTAIN = 0.3
#: What preprocessors that give coordinates in shares pad the picture to before they divide by its size.
PADDING = 64
NOSE, RIGHT_EYE, LEFT_EYE, RIGHT_EAR, LEFT_EAR = 0, 14, 15, 16, 17


@dataclass(frozen=True, eq=False)
class Person:
    """One person's points in pixels, NaN where a point is not known.

    Attributes:
        body: ``18 2`` in OpenPose's order (nose, neck, right arm, left arm, right leg, left leg, eyes, ears).
        face: ``70 2``: iBUG's 68 and the pupils.
    """

    body: Tensor
    face: Tensor


@dataclass(frozen=True, eq=False)
class Pose:
    """The people of one picture, left to right, and its size in pixels."""

    people: tuple[Person, ...]
    height: int
    width: int


def parse(frames: Any, source: str = "POSE_KEYPOINT") -> list[Pose]:
    """A POSE_KEYPOINT value: one frame, or a list of them.

    Coordinates may be pixels or shares of the picture, parts may be missing, and a missing point may be written as
    zeros, as -1, or as a negative share.

    Raises:
        LikenessError: something else, or frames of different sizes.
    """
    frames = [frames] if isinstance(frames, Mapping) else frames
    if not isinstance(frames, Sequence) or not all(isinstance(f, Mapping) and "canvas_width" in f for f in frames):
        raise bad_input(
            source, "a value of another kind", "POSE_KEYPOINT: people with their points, and the size of the canvas",
            "Connect the POSE_KEYPOINT output of a pose node.",
        )  # fmt: skip
    poses = [_frame(frame) for frame in frames]
    if len({(pose.height, pose.width) for pose in poses}) > 1:
        raise bad_input(
            source, "pictures of different sizes in one batch", "one size",
            "Resize the pictures before the pose node, or take them one by one.",
        )  # fmt: skip
    return poses


def _frame(frame: Mapping[str, Any]) -> Pose:
    height, width = int(frame["canvas_height"]), int(frame["canvas_width"])
    raw = [
        (_rows(person.get("pose_keypoints_2d"), BODY), _rows(person.get("face_keypoints_2d"), FACE))
        for person in frame.get("people") or ()
    ]
    known = torch.cat([rows[:, :2] for parts in raw for rows in parts] or [torch.full((1, 2), torch.nan)])
    shares = bool((torch.nan_to_num(known).abs() <= 1).all())
    size = [math.ceil(side / PADDING) * PADDING for side in (width, height)]
    zoom = torch.tensor(size, dtype=torch.float32) if shares else torch.ones(2)
    people = [Person(body[:, :2] * zoom, face[:, :2] * zoom) for body, face in raw]
    return Pose(tuple(sorted(people, key=_place)), height, width)


def _rows(flat: Sequence[float] | None, count: int) -> Tensor:
    """``x, y, confidence`` rows of a flat list, ``count 3``; NaN for points that are missing or not certain."""
    rows = torch.full((count, 3), torch.nan)
    given = torch.tensor([math.nan if value is None else float(value) for value in flat or ()])
    given = given[: len(given) // 3 * 3].view(-1, 3)[:count]
    rows[: len(given)] = given
    missing = ((rows[:, 0] <= 0) & (rows[:, 1] <= 0)) | ~(rows[:, 2] >= CERTAIN)
    rows[missing] = torch.nan
    return rows


def _place(person: Person) -> float:
    points = torch.cat([person.body, person.face])
    return float(torch.nan_to_num(points[:, 0].nanmean(), math.inf))


def faces_of(poses: Sequence[Pose], order: str = "left to right") -> Faces:
    """The faces of the people, from their face points or else from the points of their head."""
    found = [ordered([face for person in pose.people if (face := face_of(person))], order) for pose in poses]
    height, width = (poses[0].height, poses[0].width) if poses else (0, 0)
    return Faces(tuple(map(tuple, found)), height, width, "pose", "pose keypoints")


def face_of(person: Person) -> Face | None:
    """A person's face; None where neither face points nor two points of the head are known."""
    known = torch.isfinite(person.face).all(dim=1)
    if not known[:68].all():
        return _from_head(person.body)
    points = person.face if known.all() else person.face[:68]
    five = geometry.five_points(points)
    box, size = geometry.box_of_turned(points[:68], geometry.tilt(five), forehead=True)
    return Face(box, 1.0, five, points, extent=size)


def _from_head(body: Tensor) -> Face | None:
    """From eyes, ears and nose: as wide as the ears lie apart, or two and a half times as wide as the eyes do."""
    points = body[[NOSE, RIGHT_EYE, LEFT_EYE, RIGHT_EAR, LEFT_EAR]]
    known = torch.isfinite(points).all(dim=1)
    if int(known.sum()) < 2:
        return None
    spans = [(RIGHT_EAR, LEFT_EAR, 1.1), (RIGHT_EYE, LEFT_EYE, 2.5)]
    widths = [factor * float((body[a] - body[b]).norm()) for a, b, factor in spans]
    spread = 1.6 * float((points[known].amax(dim=0) - points[known].amin(dim=0)).norm())
    width = max([value for value in widths if math.isfinite(value)], default=spread)
    width = max(width, 1.0)
    middle = tuple(points[known].mean(dim=0).tolist())
    eyes = body[[RIGHT_EYE, LEFT_EYE]]
    turned = geometry.tilt(eyes) if bool(torch.isfinite(eyes).all()) else 0.0
    size = (width, 1.3 * width)
    return replace(Face(geometry.turned_box(middle, size, turned), 1.0), turned=turned, extent=size)
