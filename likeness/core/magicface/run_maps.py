"""The semantic maps of one run: which are in use, and which are being made of the present noise level."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import torch

from ..masks import FULL_FRAME, Frame
from .maps import MapBuilder, SemanticMap

#: What a row of a model call shows: the number of the picture, and which part of it (None: nobody knows).
View = tuple[int, Frame | None]


def _stack(planes: Sequence[torch.Tensor]) -> torch.Tensor:
    return planes[0][None] if len(planes) == 1 else torch.stack(list(planes))


class RunMaps:
    """Maps by view, so that it does not matter in which calls and in what order a host hands over its rows.

    What is collected at one noise level is in use at the following ones. A view counts once a noise level: the pass
    that comes first is the picture's own; those that guidance methods add to it (perturbed attention) are not.
    """

    def __init__(self) -> None:
        self._current: dict[View, SemanticMap] = {}
        self._winner: dict[View, torch.Tensor] = {}  # h w, of the present noise level
        self._inside: dict[View, torch.Tensor] = {}
        self._builder: MapBuilder | None = None
        self._kept = False
        self.derived: dict[Hashable, Any] = {}  # whatever was made of the maps in use; forgotten with them

    def __len__(self) -> int:
        """How many views have a map, in use or being made."""
        return len(self._current.keys() | self._winner.keys())

    def unseen(self, views: Iterable[View], conditional: bool) -> set[View]:
        """Which of the views have not yet been collected at this noise level; those of unknown part never are."""
        known = self._winner if conditional else self._inside
        return {view for view in views if view not in known and view[1] is not None}

    def collect(self, builder: MapBuilder, cond: Sequence[View], uncond: Sequence[View], kept: bool) -> None:
        """Take what a call has observed of its views, in the builder's order of rows.

        Args:
            kept: whether the method itself needs it; what is made for a record alone is never used.
        """
        if not builder.seen:
            return
        if cond:
            self._winner |= dict(zip(cond, builder.winner(), strict=True))
            self._builder = builder
        if uncond:
            self._inside |= dict(zip(uncond, builder.inside(), strict=True))
        self._kept = self._kept or kept

    def present(self, views: Sequence[View]) -> SemanticMap | None:
        """The map of the present noise level, if all of these views have been collected."""
        if not views or any(view not in self._winner for view in views):
            return None
        inside = None
        if all(view in self._inside for view in views):
            inside = _stack([self._inside[view] for view in views])
        return self._builder.semantic_map(_stack([self._winner[view] for view in views]), inside)

    def present_pictures(self) -> list[View]:
        """The whole pictures that have been collected at the present noise level, in order."""
        return sorted(view for view in self._winner if view[1] == FULL_FRAME)

    def current(self, views: Sequence[View]) -> SemanticMap | None:
        """The map in use, if there is one of each of these views."""
        found = [self._current.get(view) for view in views]
        return None if not views or None in found else SemanticMap.join(found)

    def promote(self) -> None:
        """The noise level is done: what was collected comes into use."""
        if self._kept:
            self._current |= {view: self.present([view]) for view in self._winner}
            self.derived.clear()
        self._winner, self._inside, self._kept = {}, {}, False

    def clear(self) -> None:
        """Forget everything."""
        self.__init__()
