"""Which of the faces found are repaired."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..errors import bad_input
from .geometry import Box


@dataclass(frozen=True)
class Gate:
    """What a face must be like to be repaired.

    Attributes:
        max_px: its longer side is smaller, in pixels; 0 is any size.
        min_px: its longer side is at least this; below, nothing of it can be told.
        most: at most so many a picture, the largest of those that pass; 0 is any number.
        numbers: only these, counted from 1 in the picture's order; empty is all.
    """

    max_px: float = 100
    min_px: float = 0
    most: int = 0
    numbers: tuple[int, ...] = ()

    def reasons(self, boxes: Sequence[Box], where: Tensor | None = None) -> list[str | None]:
        """Per face of one picture why it is left alone, or None where it is repaired.

        Args:
            boxes: ``x0, y0, x1, y1`` in pixels, in the picture's order.
            where: mask ``H W`` of the picture in which faces are looked for: their middle must lie on more than .5.
        """
        found = [self._reason(i, box, where) for i, box in enumerate(boxes, start=1)]
        passed = sorted((i for i, why in enumerate(found) if why is None), key=lambda i: -longer_side(boxes[i]))
        for i in passed[self.most :] if self.most else ():
            found[i] = f"not among the {self.most} largest"
        return found

    def _reason(self, number: int, box: Box, where: Tensor | None) -> str | None:
        side = longer_side(box)
        if self.numbers and number not in self.numbers:
            return "not chosen"
        if self.max_px and side >= self.max_px:
            return f"large enough ({side:.0f} px, limit {self.max_px:g})"
        if side < self.min_px:
            return f"too small ({side:.0f} px, least {self.min_px:g})"
        if where is not None and not _inside(where, box):
            return "outside the mask"
        return None


def longer_side(box: Box) -> float:
    """Of a box, in pixels."""
    return max(box[2] - box[0], box[3] - box[1])


def _inside(where: Tensor, box: Box) -> bool:
    x, y = int((box[0] + box[2]) / 2), int((box[1] + box[3]) / 2)
    height, width = where.shape
    return 0 <= x < width and 0 <= y < height and float(where[y, x]) > 0.5


def face_numbers(text: str) -> tuple[int, ...]:
    """``"1, 3-5"`` as ``(1, 3, 4, 5)``; an empty text is all faces, ``()``.

    Raises:
        LikenessError: something in it is no number from 1.
    """
    numbers: list[int] = []
    for part in filter(None, (p.strip() for p in text.replace(";", ",").split(","))):
        first, _, last = (p.strip() for p in part.partition("-"))
        last = last or first
        if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last) <= 10_000):
            raise bad_input("DIIR: which faces", repr(part), "numbers from 1, as '1, 3' or '2-4'",
                            "Take the numbers from Detect Faces, or leave it empty for all.")
        numbers += range(int(first), int(last) + 1)
    return tuple(dict.fromkeys(numbers))
