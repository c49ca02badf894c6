"""What MagicID Regions does: a mask for each person, from masks, boxes, poses or the faces of a draft."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....core.errors import bad_input
from ....drawing.regions import draw_regions
from ....faces.assign import parse_override
from ....faces.interface import Faces
from ....faces.keypoints import faces_of, parse
from ....faces.masks import head_ellipse
from .. import images
from ..faces.wired import faces_from
from .identities import Identities

log = logging.getLogger("likeness")

NODE = "MagicID Regions"
BLANK = 0.15


@dataclass(frozen=True, eq=False)
class Regions:
    """The outputs of *MagicID Regions*.

    Attributes:
        masks: MASK, one for each person in their order; black for people who are nowhere.
        preview: IMAGE, who goes where. note: the same in words.
    """

    masks: Tensor
    preview: Tensor
    note: str


def regions(
    where: Any,
    image: Tensor | None = None,
    identities: Identities | None = None,
    order: str = "",
    grow: float = 1.0,
) -> Regions:
    """Places in the picture, given to people.

    Args:
        where: MASK, one for each place; BOUNDING_BOX, POSE_KEYPOINT or FACES, of which the first picture counts.
        image: the picture that boxes were drawn on; also what the preview shows.
        identities: how many people there are, and their names.
        order: the people of places 1, 2, ...: ``"2, 1"``; 0: nobody. Empty: as they come.
        grow: factor on the size of heads and boxes.

    Raises:
        LikenessError: something else, places outside the picture, nobody in a pose, or an order that names nobody.
    """
    picture = None if image is None else images.to_torch(image[:1]).float().cpu()
    places = _places(where, picture, grow)
    names = None if identities is None else [one.name for one in identities.people]
    if not len(places) and names is None:
        raise bad_input(
            f"{NODE}: where", "a picture in which nobody was found", "at least one head",
            "Use another draft, or connect the identities to go on without regions for them.",
        )  # fmt: skip
    count = max(len(places), 1) if names is None else len(names)
    who = _who(order, len(places), count)
    height, width = places.shape[-2:]
    masks = torch.zeros(count, height, width)
    for place, person in enumerate(who):
        if person is not None:
            torch.maximum(masks[person], places[place], out=masks[person])
    note = _note(who, names or [f"person {n}" for n in range(1, count + 1)])
    base = torch.full((1, 3, height, width), BLANK) if picture is None else images.resize(picture, (height, width))
    drawn = draw_regions(base[0], masks, names or [""] * count)
    return Regions(masks, images.to_comfy(drawn[None]), note)


def _who(order: str, places: int, people: int) -> list[int | None]:
    """The person (from 0) of each place; without a word about it, the n-th place is the n-th person's."""
    said = parse_override(order, people, f"{NODE}: order")
    return [said.get(place, place - 1 if place <= people else None) for place in range(1, places + 1)]


def _note(who: Sequence[int | None], names: Sequence[str]) -> str:
    parts = [f"{place}: {'nobody' if person is None else names[person]}" for place, person in enumerate(who, 1)]
    absent = [name for n, name in enumerate(names) if n not in who]
    if absent:
        log.warning("%s: no place for %s; they stay out of the picture", NODE, ", ".join(absent))
        parts.append(f"no place: {', '.join(absent)}")
    return "; ".join(parts)


def _places(where: Any, picture: Tensor | None, grow: float) -> Tensor:
    """``N H W`` in [0, 1], of the picture's size where there is one."""
    if isinstance(where, Tensor):
        masks = images.mask_to_torch(where, source=f"{NODE}: where").cpu()
        return masks[:, 0] if picture is None else images.resize(masks, tuple(picture.shape[-2:]), "area")[:, 0]
    if isinstance(where, Faces):
        return _heads(where, grow)
    if _is_pose(where):
        return _heads(_pose_heads(where), grow)
    return _boxes(where, picture, grow)


def _is_pose(value: Any) -> bool:
    frames = [value] if isinstance(value, Mapping) else value
    return isinstance(frames, Sequence) and any(isinstance(f, Mapping) and "canvas_width" in f for f in frames)


def _pose_heads(where: Any) -> Faces:
    found = faces_of(parse(where, f"{NODE}: where")[:1])
    if not found.count:
        raise bad_input(
            f"{NODE}: where", "a pose in which no head is seen", "at least one person's head",
            "Use a pose with eyes, nose or ears, or draw boxes instead.",
        )  # fmt: skip
    return found


def _heads(faces: Faces, grow: float) -> Tensor:
    """An ellipse for each head of the first picture."""
    if len(faces) > 1:
        log.warning("%s: the faces of the first of %d pictures count", NODE, len(faces))
    first = faces.pictures[0] if faces.pictures else ()
    heads = [head_ellipse(face, faces.height, faces.width, grow) for face in first]
    return torch.stack(heads) if heads else torch.zeros(0, max(faces.height, 1), max(faces.width, 1))


def _boxes(where: Any, picture: Tensor | None, grow: float) -> Tensor:
    """Filled boxes, in the order in which they were drawn."""
    if picture is None:
        raise bad_input(
            f"{NODE}: image", "boxes without their picture", "the picture they were drawn on",
            "Connect it, or any picture of the size that will be drawn.",
        )  # fmt: skip
    height, width = picture.shape[-2:]
    faces = faces_from(where, picture, f"{NODE}: where").pictures[0]
    if not faces:
        raise bad_input(f"{NODE}: where", "no box", "one for each person", "Draw a box for each person.")
    planes = torch.zeros(len(faces), height, width)
    for number, (plane, face) in enumerate(zip(planes, faces, strict=True), 1):
        (x, y), (w, h) = face.centre, (grow * side / 2 for side in face.size)
        top, left, bottom, right = (max(0, round(at)) for at in (y - h, x - w, y + h, x + w))
        plane[top:bottom, left:right] = 1
        if not bool(plane.any()):
            raise bad_input(
                f"{NODE}: where", f"box {number} outside the picture of {width} x {height} pixels", "one inside it",
                "Move the box, or connect the picture it was drawn on.",
            )  # fmt: skip
    return planes
