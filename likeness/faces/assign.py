"""Which person each face is: by likeness where the draft is good enough, else by place, else from left to right."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import bad_input
from .interface import Face

USER, SIMILARITY, REGION, ORDER, NOBODY = "user", "similarity", "region", "order", "nobody"

#: The least share of a face's box that must lie in a region for the face to be that region's person.
LEAST_SHARE = 0.3


@dataclass(frozen=True)
class Assignment:
    """Who one face is.

    Attributes:
        person: index of the person; None: nobody.
        how: why: ``user``, ``similarity``, ``region``, ``order``, or ``nobody``.
        similarity: of the face and the person, where it is known.
    """

    person: int | None
    how: str
    similarity: float | None = None


def assign(
    faces: Sequence[Face],
    people: int,
    *,
    similarity: Tensor | None = None,
    good_enough: float = 0.3,
    regions: Sequence[Tensor | None] | None = None,
    picture_size: tuple[int, int] | None = None,
    override: str = "",
    source: str = "Faces: people",
) -> tuple[Assignment, ...]:
    """One person for each face of one picture and one face for each person, as far as they go.

    Args:
        faces: of one picture, in any order.
        people: how many there are.
        similarity: ``F P``, see :func:`.interface.similarities`.
        good_enough: the least similarity that counts; an embedder's ``same_person``.
        regions: per person where it belongs, ``h w`` of any size, stretched over the picture, or None.
        picture_size: height and width of the picture in pixels; None: a region's own.
        override: the user's word: the persons of faces 1, 2, ... from 1, such as ``2,1``; 0 or ``-``: nobody. Only
            here may one person be several faces. Faces it does not name are assigned as usual.
        source: node and input to name in the error.

    Raises:
        LikenessError: an override that names a person who is not there.
    """
    chosen = parse_override(override, people, source)
    result: list[Assignment | None] = [_by_user(face, i, chosen, similarity) for i, face in enumerate(faces)]
    for how, scores, least in (
        (SIMILARITY, similarity, good_enough),
        (REGION, _shares(faces, regions, picture_size), LEAST_SHARE),
        (ORDER, _places(faces, people), 0.0),
    ):
        if scores is not None:
            _match(result, people, scores, least, how, similarity)
    return tuple(one or Assignment(None, NOBODY) for one in result)


def _by_user(face: Face, index: int, chosen: dict[int, int | None], similarity: Tensor | None) -> Assignment | None:
    number = face.number or index + 1
    if number not in chosen:
        return None
    person = chosen[number]
    return Assignment(person, USER, _value(similarity, index, person))


def _value(similarity: Tensor | None, face: int, person: int | None) -> float | None:
    return None if similarity is None or person is None else float(similarity[face, person])


def _match(
    result: list[Assignment | None], people: int, scores: Tensor, least: float, how: str, similarity: Tensor | None
) -> None:
    """Give free faces to free people so that the sum of the scores is greatest; scores below ``least`` do not count."""
    taken = {one.person for one in result if one is not None}
    rows = [i for i, one in enumerate(result) if one is None]
    columns = [p for p in range(people) if p not in taken]
    if not rows or not columns:
        return
    free = scores[rows][:, columns].double()
    allowed = torch.isfinite(free) & (free >= least)
    gains = torch.where(allowed, free - least + 1e-6, 0.0)
    for row, column in best_pairs(gains):
        if allowed[row, column]:
            face, person = rows[row], columns[column]
            result[face] = Assignment(person, how, _value(similarity, face, person))


def best_pairs(gains: Tensor) -> list[tuple[int, int]]:
    """The pairs of rows and columns of ``R C`` with the greatest sum."""
    from scipy.optimize import linear_sum_assignment  # of the host's own packages

    rows, columns = linear_sum_assignment(gains.numpy(), maximize=True)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def _shares(
    faces: Sequence[Face], regions: Sequence[Tensor | None] | None, size: tuple[int, int] | None
) -> Tensor | None:
    """The share of each face's box that each region covers, ``F P``; None where there is no region."""
    if not faces or not regions or all(region is None for region in regions):
        return None
    return torch.tensor([[_share(face, region, size) for region in regions] for face in faces])


def _share(face: Face, region: Tensor | None, size: tuple[int, int] | None) -> float:
    if region is None:
        return 0.0
    height, width = size or region.shape[-2:]
    x0, y0, x1, y1 = face.box
    columns = torch.linspace(x0, x1, 17)[:-1] + (x1 - x0) / 32
    rows = torch.linspace(y0, y1, 17)[:-1] + (y1 - y0) / 32
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
    grid = grid / torch.tensor([width, height]) * 2 - 1
    mask = region.float().reshape(1, 1, *region.shape[-2:])
    return float(F.grid_sample(mask, grid[None], mode="bilinear", padding_mode="zeros", align_corners=False).mean())


def _places(faces: Sequence[Face], people: int) -> Tensor:
    """Scores that make the n-th free face from the left the n-th free person."""
    order = sorted(range(len(faces)), key=lambda i: faces[i].centre)
    place = torch.tensor([order.index(i) for i in range(len(faces))], dtype=torch.float64)[:, None]
    # the product of two increasing sequences has its greatest sum where both are in order, the earlier ones paired
    return (len(faces) - place) * (people - torch.arange(people, dtype=torch.float64))


def parse_override(text: str, people: int, source: str) -> dict[int, int | None]:
    """``2,1`` as face number -> index of the person; see :func:`assign`.

    Raises:
        LikenessError: no numbers, or a person who is not there.
    """
    chosen: dict[int, int | None] = {}
    for number, part in enumerate(filter(None, re.split(r"[,;\s]+", text.strip())), start=1):
        if part in ("0", "-"):
            chosen[number] = None
        elif part.isdecimal() and 1 <= int(part) <= people:
            chosen[number] = int(part) - 1
        elif part not in ("?", "auto"):
            raise bad_input(
                source, repr(text), f"for each face the number of its person, 1 to {people}, such as 2,1",
                "0 leaves a face alone, ? has it told by the picture; leave the text empty to have all told.",
            )  # fmt: skip
    return chosen
