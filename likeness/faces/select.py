"""Which of the faces that were found are meant, and in what order they are counted."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ..core.errors import bad_input
from .interface import Face, largest_face

#: Order of the faces in a picture -> what they are sorted by; left to right is the tie-break, so it is always stable.
ORDERS: dict[str, Callable[[Face], float]] = {
    "left to right": lambda face: face.centre[0],
    "top to bottom": lambda face: face.centre[1],
    "largest first": lambda face: -face.area,
    "most certain first": lambda face: -face.score,
}
PART = re.compile(r"(?:(\d+):)?(\d+)(?:-(\d+))?")
ALL, NONE, LARGEST = "all", "none", "largest"


@dataclass(frozen=True)
class Gates:
    """Which faces of a picture are let through, applied in this order.

    Attributes:
        smallest, largest: bounds for the longer side of the face in pixels; largest 0: none.
        region: where to look: ``B 1 H W`` or ``1 1 H W``; the middle of the face must lie where it is above 0.5.
        count: at most so many, the largest ones; 0: all.
        which: those meant, see :func:`chosen`; empty: all.
    """

    smallest: float = 0.0
    largest: float = 0.0
    region: Tensor | None = None
    count: int = 0
    which: str = ""


def ordered(faces: Sequence[Face], order: str = "left to right") -> list[Face]:
    """The faces of one picture sorted by one of :data:`ORDERS` and numbered from 1."""
    key = ORDERS[order]
    faces = sorted(faces, key=lambda face: (key(face), face.centre))
    return [replace(face, number=number) for number, face in enumerate(faces, start=1)]


def select(faces: Sequence[Face], gates: Gates, order: str = "left to right", picture: int = 0) -> tuple[Face, ...]:
    """The faces of one picture that pass, ordered and numbered; ``which`` leaves the numbers as they are.

    Args:
        picture: its place in the batch, from 0.
    """
    kept = [face for face in faces if _size_fits(face, gates) and _inside(face, gates.region, picture)]
    if gates.count:
        kept = sorted(kept, key=lambda face: face.area, reverse=True)[: gates.count]
    return chosen(ordered(kept, order), gates.which, picture)


def _size_fits(face: Face, gates: Gates) -> bool:
    side = max(face.size)
    return side >= gates.smallest and (not gates.largest or side <= gates.largest)


def _inside(face: Face, region: Tensor | None, picture: int) -> bool:
    if region is None:
        return True
    mask = region[min(picture, len(region) - 1), 0]
    x, y = (round(min(max(at, 0), side - 1)) for at, side in zip(face.centre, reversed(mask.shape), strict=True))
    return bool(mask[y, x] > 0.5)


def chosen(faces: Sequence[Face], which: str, picture: int = 0, source: str = "Faces: which") -> tuple[Face, ...]:
    """The numbered faces of one picture that ``which`` names.

    Args:
        which: empty or ``all``; ``none``; ``largest``; or numbers such as ``1, 3-5`` and, where there are several
            pictures, ``2:1`` for the first face of the second.
        picture: its place in the batch, from 0.
        source: node and input to name in the error.

    Raises:
        LikenessError: anything else.
    """
    words = which.strip().lower()
    if words in ("", ALL):
        return tuple(faces)
    if words == NONE:
        return ()
    if words == LARGEST:
        largest = largest_face(faces)
        return () if largest is None else (largest,)
    named = parse_numbers(words, source)
    return tuple(face for face in faces if named & {(None, face.number), (picture + 1, face.number)})


def parse_numbers(text: str, source: str) -> frozenset[tuple[int | None, int]]:
    """``1, 3-5, 2:1`` as pairs of the picture, or None for every picture, and the number; both from 1.

    Raises:
        LikenessError: anything else.
    """
    named: set[tuple[int | None, int]] = set()
    for part in filter(None, re.split(r"[,;\s]+", re.sub(r"\s*([:-])\s*", r"\1", text.strip()))):
        found = PART.fullmatch(part)
        if found is None or not 1 <= int(found[2]) <= int(found[3] or found[2]) <= 10_000:
            raise bad_input(
                source, repr(text), "numbers such as 1,3 or 2-4, picture:face as in 2:1, or all, largest, none",
                "Take the numbers that Detect Faces shows; leave it empty for all faces.",
            )  # fmt: skip
        picture = int(found[1]) if found[1] else None
        named |= {(picture, number) for number in range(int(found[2]), int(found[3] or found[2]) + 1)}
    return frozenset(named)
