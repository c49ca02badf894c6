"""Faces that another node has found: the host's FACE_LANDMARKS and BOUNDING_BOX, in each of their spellings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ....core.errors import bad_input
from ....faces import geometry
from ....faces.interface import Face, Faces

NODE = "Detect Faces"
FOUND = f"{NODE}: found"
LANDMARKS, BOXES = "face landmarks", "bounding boxes"


def faces_from(value: Any, pictures: Tensor, socket: str = FOUND) -> Faces:
    """The faces that a FACE_LANDMARKS or a BOUNDING_BOX value tells of ``pictures`` ``B 3 H W``, in no order.

    Args:
        socket: node and input, for the errors.

    Raises:
        LikenessError: neither of them, or one of other pictures.
    """
    height, width = pictures.shape[-2:]
    if isinstance(value, Mapping) and "frames" in value:
        frames, source, provider = _landmarks(value, (height, width), socket), LANDMARKS, "mediapipe"
    else:
        frames, source, provider = _boxes(value, socket), BOXES, "boxes"
        if len(frames) == 1:  # as the host's own nodes read them
            frames = frames * len(pictures)
    if len(frames) != len(pictures):
        raise bad_input(
            socket, f"{source} of {len(frames)} pictures for {len(pictures)} pictures", "those of these",
            "Connect the node that found them to the same picture.",
        )  # fmt: skip
    return Faces(tuple(map(tuple, frames)), height, width, provider, source)


def _landmarks(value: Mapping[str, Any], size: tuple[int, int], socket: str) -> list[list[Face]]:
    """``{"frames": [[face]], "image_size": (H, W)}`` of the host's MediaPipe node."""
    made_for = tuple(int(side) for side in value.get("image_size", size))
    if made_for != size:
        raise bad_input(
            socket, f"face landmarks of {made_for[1]} x {made_for[0]} pixels",
            f"those of the picture, {size[1]} x {size[0]}", "Connect the node that found them to the same picture.",
        )  # fmt: skip
    return [[_landmark_face(face) for face in frame] for frame in value["frames"]]


def _landmark_face(face: Mapping[str, Any]) -> Face:
    points = torch.as_tensor(face["landmarks_xy"]).float().cpu()[:, :2]
    five = geometry.five_points(points)
    score = min(1.0, max(0.0, float(face.get("score", 1.0))))
    box, size = geometry.box_of_turned(points, geometry.tilt(five))
    return Face(box, score, five, points, extent=size)


def _boxes(value: Any, socket: str) -> list[list[Face]]:
    """One box, a list of boxes for every picture, or a list of boxes for each picture."""
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise _not_boxes("a value of another kind", socket)
    if not value or isinstance(value[0], Mapping):
        value = [value]
    return [[face for box in frame if (face := _box_face(box, socket)) is not None] for frame in value]


def _box_face(box: Any, socket: str) -> Face | None:
    try:
        x, y, width, height = (float(box[name]) for name in ("x", "y", "width", "height"))
        score = box.get("score")
    except (KeyError, TypeError, ValueError, AttributeError) as cause:
        raise _not_boxes(repr(box), socket) from cause
    if not all(map(math.isfinite, (x, y, width, height))) or width <= 0 or height <= 0:
        return None
    return Face((x, y, x + width, y + height), 1.0 if score is None else min(1.0, max(0.0, float(score))))


def _not_boxes(came: str, socket: str) -> Exception:
    return bad_input(
        socket, came, "face landmarks or bounding boxes with x, y, width and height",
        "Connect the output of a face or object detector.",
    )  # fmt: skip


def to_bounding_boxes(pictures: Sequence[Sequence[Face]]) -> list[list[dict[str, Any]]]:
    """Faces as the host's nodes take boxes: per picture a list of them."""
    return [[_as_box(face) for face in faces] for faces in pictures]


def _as_box(face: Face) -> dict[str, Any]:
    x0, y0, x1, y1 = face.box
    return {"x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0, "label": f"face {face.number}", "score": face.score}
