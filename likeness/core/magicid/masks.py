"""Where each identity acts: regions of the picture brought to the token grid of an attention layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import bad_input
from ..masks import FULL_FRAME, Frame, Grid, area_to_grid, check_plane

OVERLAPS = ("add", "share")


class RegionMasks:
    """The regions of N identities at any grid, for any part of the picture. Kept on the CPU, each asked for once.

    Args:
        planes: per identity its region, ``h w`` in [0, 1] of any size over the whole picture; None is everywhere.
        overlap: ``"add"`` (Alg. 1: where regions overlap, identities add) or ``"share"`` (together they weigh at
            most 1).

    Raises:
        LikenessError: a plane is no mask, or the rule is unknown.
    """

    def __init__(self, planes: Sequence[Tensor | None], overlap: str = "add") -> None:
        if overlap not in OVERLAPS:
            raise bad_input("MagicID: overlap", repr(overlap), " or ".join(OVERLAPS), "Choose one of them.")
        self.planes = tuple(
            None if plane is None else check_plane(plane, f"MagicID: region {n}").detach().float().cpu().clamp(0, 1)
            for n, plane in enumerate(planes, 1)
        )
        self.overlap = overlap
        self._known: dict[tuple[Grid, Frame], Tensor] = {}

    def tokens(self, grid: Grid, frame: Frame = FULL_FRAME) -> Tensor:
        """Each identity's weight at each token, ``N T`` float32 on the CPU, row by row over the grid.

        Args:
            grid: height and width of the layer's tokens.
            frame: the part of the picture that the layer sees.
        """
        key = (grid, frame)
        if key not in self._known:
            weights = torch.stack([self._plane(plane, grid, frame) for plane in self.planes]).flatten(1)
            if self.overlap == "share":
                weights = weights / weights.sum(dim=0).clamp(min=1)
            self._known[key] = weights
        return self._known[key]

    def present(self, grid: Grid, frame: Frame = FULL_FRAME) -> tuple[int, ...]:
        """Numbers of the identities whose region shows at all in that part."""
        return tuple(self.tokens(grid, frame).amax(dim=1).gt(0).nonzero().flatten().tolist())

    def _plane(self, plane: Tensor | None, grid: Grid, frame: Frame) -> Tensor:
        return torch.ones(grid) if plane is None else area_to_grid(frame.crop(plane), grid)
