"""Which of the faces found are repaired."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .geometry import Box


@dataclass(frozen=True)
class Gate:
    """What a face must be like to be repaired.

    Attributes:
        max_px: its longer side is smaller, in pixels; 0 is any size.
        min_px: its longer side is at least this; below, nothing of it can be told.
        most: at most so many a picture, the largest of those that pass; 0 is any number.
    """

    max_px: float = 100
    min_px: float = 0
    most: int = 0

    def reasons(self, boxes: Sequence[Box], where: Tensor | None = None) -> list[str | None]:
        """Per face of one picture why it is left alone, or None where it is repaired.

        Args:
            boxes: ``x0, y0, x1, y1`` in pixels, in the picture's order.
            where: mask ``H W`` of the picture in which faces are looked for: their middle must lie on more than .5.
        """
        found = [self._reason(box, where) for box in boxes]
        passed = sorted((i for i, why in enumerate(found) if why is None), key=lambda i: -longer_side(boxes[i]))
        for i in passed[self.most :] if self.most else ():
            found[i] = f"not among the {self.most} largest"
        return found

    def _reason(self, box: Box, where: Tensor | None) -> str | None:
        side = longer_side(box)
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

