"""Which of the faces that were found are meant, and in what order they are counted."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ..core.errors import bad_input
from .interface import Face

#: Order of the faces in a picture -> what they are sorted by; left to right is the tie-break, so it is always stable.
ORDERS: dict[str, Callable[[Face], float]] = {
    "left to right": lambda face: face.centre[0],
    "top to bottom": lambda face: face.centre[1],
    "largest first": lambda face: -face.area,
    "most certain first": lambda face: -face.score,
}
NUMBERS = re.compile(r"(\d+)(?:\s*-\s*(\d+))?")


@dataclass(frozen=True)
class Gates:
    """Which faces of a picture are let through, applied in this order.

    Attributes:
        smallest, largest: bounds for the longer side of the face in pixels; largest 0: none.
        region: where to look: ``B 1 H W`` or ``1 1 H W``; the middle of the face must lie where it is above 0.5.
        count: at most so many, the largest ones; 0: all.
        numbers: those meant, by their number in the order, such as ``1,3`` or ``2-4``; empty: all.
    """

    smallest: float = 0.0
    largest: float = 0.0
    region: Tensor | None = None
    count: int = 0
    numbers: str = ""


def ordered(faces: Sequence[Face], order: str = "left to right") -> list[Face]:
    """The faces of one picture sorted by one of :data:`ORDERS` and numbered from 1."""
    key = ORDERS[order]
    faces = sorted(faces, key=lambda face: (key(face), face.centre))
    return [replace(face, number=number) for number, face in enumerate(faces, start=1)]


def select(faces: Sequence[Face], gates: Gates, order: str = "left to right", picture: int = 0) -> tuple[Face, ...]:
    """The faces of one picture that pass, ordered and numbered; ``numbers`` leave the numbers as they are."""
    kept = [face for face in faces if _size_fits(face, gates) and _inside(face, gates.region, picture)]
    if gates.count:
        kept = sorted(kept, key=lambda face: face.area, reverse=True)[: gates.count]
    wanted = parse_numbers(gates.numbers)
    return tuple(face for face in ordered(kept, order) if wanted is None or face.number in wanted)


def _size_fits(face: Face, gates: Gates) -> bool:
    side = max(face.size)
    return side >= gates.smallest and (not gates.largest or side <= gates.largest)


def _inside(face: Face, region: Tensor | None, picture: int) -> bool:
    if region is None:
        return True
    mask = region[min(picture, len(region) - 1), 0]
    x, y = (round(min(max(at, 0), side - 1)) for at, side in zip(face.centre, reversed(mask.shape), strict=True))
    return bool(mask[y, x] > 0.5)


def parse_numbers(text: str) -> frozenset[int] | None:
    """``1,3`` or ``2-4`` as a set of numbers; None where the text is empty or ``all``.

    Raises:
        LikenessError: anything else.
    """
    if text.strip().lower() in ("", "all"):
        return None
    numbers: set[int] = set()
    for part in filter(None, re.split(r"[,;\s]+", re.sub(r"\s*-\s*", "-", text.strip()))):
        found = NUMBERS.fullmatch(part)
        if found is None or int(found[1]) < 1 or int(found[2] or found[1]) > 10_000:
            raise bad_input(
                "Faces: numbers", repr(text), "numbers from 1 such as 1,3 or 2-4",
                "Write the numbers that Detect Faces shows; leave it empty for all faces.",
            )  # fmt: skip
        numbers.update(range(int(found[1]), int(found[2] or found[1]) + 1))
    return frozenset(numbers)
