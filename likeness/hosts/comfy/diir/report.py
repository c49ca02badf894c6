"""What a run tells: a line per face, the crops before and after, the table under the node."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from .. import images

REPAIRED = "repaired"
THUMBNAIL = 96


@dataclass(frozen=True)
class FaceReport:
    """One face.

    Attributes:
        picture, number: from 1. box: ``x0, y0, x1, y1`` in pixels. size: longer side in pixels. tilt: degrees.
        done: :data:`REPAIRED`, or why the face was left alone.
        person: its name, or None. person_by: how it was told.
        similarity_before, similarity_after: to the person, or None.
        mask: how the head's outline was made. prompt: the face prompt.
    """

    picture: int
    number: int
    box: tuple[float, ...]
    size: float
    tilt: float
    done: str
    person: str | None = None
    person_by: str | None = None
    similarity_before: float | None = None
    similarity_after: float | None = None
    mask: str | None = None
    prompt: str | None = None

    @property
    def repaired(self) -> bool:
        """Whether the face was repaired."""
        return self.done == REPAIRED


@dataclass(frozen=True)
class Outcome:
    """What the node gives.

    Attributes:
        image: IMAGE, the very same tensor where nothing was done. mask: MASK ``P H W`` of what changed.
        crops: IMAGE ``F S 2S 3``, before and after side by side.
        faces: one report a face. notes: what concerns the whole run.
        thumbnails: per face its crops before and after (or None) as ``3 s s``, for the table.
    """

    image: Tensor
    mask: Tensor
    crops: Tensor
    faces: tuple[FaceReport, ...]
    notes: tuple[str, ...]
    thumbnails: tuple[tuple[Tensor, Tensor | None], ...]

    @property
    def report(self) -> str:
        """The report as JSON."""
        done = sum(face.repaired for face in self.faces)
        summary = f"{done} of {len(self.faces)} faces repaired" if self.faces else "no face was found"
        told = {"summary": summary, "notes": list(self.notes), "faces": [_rounded(asdict(f)) for f in self.faces]}
        return json.dumps(told, indent=1, ensure_ascii=False)


def _rounded(values: dict) -> dict:
    def short(value: object) -> object:
        if isinstance(value, float):
            return round(value, 3)
        return [round(x, 1) for x in value] if isinstance(value, tuple) else value

    return {name: short(value) for name, value in values.items()}


def side_by_side(before: Sequence[Tensor], after: Sequence[Tensor], size: int) -> Tensor:
    """Crops ``3 S S`` before and after as IMAGE ``F S 2S 3``; one grey picture where there is none."""
    if not before:
        return torch.full((1, size, 2 * size, 3), 0.5)
    return images.to_comfy(torch.stack([torch.cat(pair, dim=-1) for pair in zip(before, after, strict=True)]))
