"""Small tensors of a run that never change: made once, brought to the device once, and gone with the run."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch


class Constants:
    """Made on the CPU where they are first asked for, and kept on each device that asks."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, torch.Tensor] = {}
        self._held: dict[Hashable, Any] = {}

    def hold(self, key: Hashable, things: Any) -> None:
        """Keep what a constant's key knows by its ``id`` alive, so that no other thing gets the same."""
        self._held.setdefault(key, things)

    def get(
        self, key: Hashable, make: Callable[[], torch.Tensor], device: torch.device, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """The constant of this name.

        Args:
            key: names it. make: makes it, on the CPU. device, dtype: as which it is wanted; None keeps the dtype.
        """
        full = (key, device, dtype)
        if full not in self._kept:
            self._kept[full] = make().to(device, dtype, non_blocking=True)
        return self._kept[full]


class Rows:
    """Some rows of a batch: a slice where they are consecutive, else by an index that is uploaded once.

    Args:
        rows: ascending. constants: keeps the index.
    """

    def __init__(self, rows: Sequence[int], constants: Constants) -> None:
        self.rows = tuple(rows)
        self._constants = constants
        self._consecutive = not rows or self.rows == tuple(range(rows[0], rows[-1] + 1))

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """These rows of ``x``."""
        if self._consecutive:
            return x[self.rows[0] : self.rows[-1] + 1] if self.rows else x[:0]
        return x.index_select(0, self._index(self.rows, x.device))

    def put(self, mine: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """The whole batch: ``mine`` at these rows, ``others`` at the other ones, both in order."""
        count = len(mine) + len(others)
        if self._consecutive and self.rows[0] == 0:
            return torch.cat([mine, others])
        if self._consecutive and self.rows[-1] == count - 1:
            return torch.cat([others, mine])
        rest = iter(range(len(mine), count))
        at = {row: place for place, row in enumerate(self.rows)}
        order = tuple(at[row] if row in at else next(rest) for row in range(count))
        return torch.cat([mine, others]).index_select(0, self._index(order, mine.device))

    def _index(self, rows: tuple[int, ...], device: torch.device) -> torch.Tensor:
        return self._constants.get(("rows", rows), lambda: torch.tensor(rows), device)
