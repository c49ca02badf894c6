"""Where the concepts are in the rows of a call, and so which of their tokens look at which references (RBA)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from ..masks import Grid
from .concepts import Placement
from .constants import Constants
from .injection import Groups
from .run_maps import RunMaps, View


@dataclass(frozen=True)
class Regions:
    """The concepts' places in some rows, read off the maps in use.

    Attributes:
        placement: of the run. maps: of the run; what is made here is kept there until they change.
        constants: of the run. device: where the model computes.
    """

    placement: Placement
    maps: RunMaps
    constants: Constants
    device: torch.device

    def labels(self, views: Sequence[View], grid: Grid) -> torch.Tensor:
        """Labels ``V h w`` of the views; one of unknown part is all background."""
        key = ("labels", tuple(views), grid)
        if key not in self.maps.derived:
            self.maps.derived[key] = self._labels(views, grid)
        return self.maps.derived[key]

    def _labels(self, views: Sequence[View], grid: Grid) -> torch.Tensor:
        alike: dict = {}  # places of views of the same part of their pictures, with a map or without
        for place, view in enumerate(views):
            alike.setdefault((view[1], self.maps.current([view]) is None), []).append(place)
        found = [(places, self._of_alike([views[p] for p in places], grid)) for places in alike.values()]
        if len(found) == 1:
            return found[0][1]
        rows = {p: labels[i] for places, labels in found for i, p in enumerate(places)}
        return torch.stack([rows[place] for place in range(len(views))])

    def _of_alike(self, views: Sequence[View], grid: Grid) -> torch.Tensor:
        frame = views[0][1]
        if frame is None:
            return torch.zeros((len(views), *grid), dtype=torch.int64, device=self.device)
        maps = self.maps.current(views)
        labels = self.placement.labels(maps, grid, frame, self.device)
        return labels if len(labels) == len(views) else labels.expand(len(views), -1, -1)

    def groups(self, views: Sequence[View], grids: Sequence[Grid]) -> dict[Grid, Groups]:
        """The token groups of the rows on several grids; how large they are is asked of the device once."""
        key = ("groups", tuple(views))
        known = self.maps.derived.setdefault(key, {})
        new = [grid for grid in dict.fromkeys(grids) if grid not in known]
        if new:
            known |= dict(zip(new, self._groups(views, new), strict=True))
        return known

    def _groups(self, views: Sequence[View], grids: Sequence[Grid]) -> list[Groups]:
        count = len(self.placement.concepts)
        sorted_labels = [self.labels(views, grid).flatten().sort(stable=True) for grid in grids]
        edges = self.constants.get("edges", lambda: torch.arange(1, count + 2), self.device)
        ends = torch.cat([torch.searchsorted(labels, edges) for labels, _ in sorted_labels]).tolist()
        return [
            _between(order, ends[n * (count + 1) : (n + 1) * (count + 1)]) for n, (_, order) in enumerate(sorted_labels)
        ]


def _between(order: torch.Tensor, edges: Sequence[int]) -> Groups:
    """From tokens in the order of their labels, and where the first concept begins and every concept ends."""
    counts = tuple(end - start for start, end in pairwise(edges))
    return Groups(order[edges[0] : edges[-1]], counts)


def group_tokens(labels: torch.Tensor, concepts: int) -> Groups:
    """The groups of labels ``B N``: 0 the background, c the c-th concept."""
    values, order = labels.flatten().sort(stable=True)
    return _between(order, torch.searchsorted(values, torch.arange(1, concepts + 2, device=labels.device)).tolist())
