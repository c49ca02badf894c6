"""The concepts of a run, and the labels that say where in the new picture each of them is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..masks import FULL_FRAME, Frame, Grid, mask_to_grid
from .constants import Constants
from .maps import SemanticMap
from .request import Reference

Positions = tuple[int, ...]


@dataclass(frozen=True)
class PlacedConcept:
    """References of the same words in the same place: views of one thing.

    Attributes:
        positions: where its tokens stand in the prompt. region: ``h w`` in [0, 1], or None where the map finds it.
        members: indices of its references.
    """

    positions: Positions
    region: torch.Tensor | None
    members: tuple[int, ...]


def _same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and a.shape == b.shape and bool((a == b).all()))


def group_references(references: Sequence[Reference]) -> tuple[PlacedConcept, ...]:
    """The references' concepts, in the order in which they first appear."""
    concepts: list[PlacedConcept] = []
    for index, item in enumerate(references):
        for number, known in enumerate(concepts):
            if known.positions == item.positions and _same(known.region, item.region):
                concepts[number] = PlacedConcept(known.positions, known.region, (*known.members, index))
                break
        else:
            concepts.append(PlacedConcept(item.positions, item.region, (index,)))
    return tuple(concepts)


class Placement:
    """Labels of the concepts: 0 the background, c the c-th concept.

    A concept with a region has exactly that; where its words win outside of it is background. Where regions overlap,
    the later concept has the place. A concept without one is where the semantic map finds its words.

    Attributes:
        concepts: of the run. phrases: their distinct token positions, the columns of the map.
    """

    def __init__(self, concepts: Sequence[PlacedConcept], constants: Constants | None = None) -> None:
        self.concepts = tuple(concepts)
        self._constants = constants or Constants()
        self.phrases = tuple(dict.fromkeys(concept.positions for concept in concepts))
        numbered = tuple(enumerate(concepts, 1))
        self._placed = tuple((number, c.region) for number, c in numbered if c.region is not None)
        self._free = self._numbers([(number, c) for number, c in numbered if c.region is None])

    def _numbers(self, numbered: Sequence[tuple[int, PlacedConcept]]) -> torch.Tensor:
        """For each label of the map (0, then the phrases) the first of these concepts that has the phrase, or 0."""
        first = {concept.positions: number for number, concept in reversed(numbered)}
        return torch.tensor([0, *(first.get(phrase, 0) for phrase in self.phrases)])

    @property
    def any_placed(self) -> bool:
        """Whether a concept has a region."""
        return bool(self._placed)

    @property
    def all_placed(self) -> bool:
        """Whether every concept has a region, so that no map is needed."""
        return len(self._placed) == len(self.concepts)

    def labels(
        self, semantic: SemanticMap | None, grid: Grid, frame: Frame = FULL_FRAME, device: torch.device | None = None
    ) -> torch.Tensor:
        """Labels ``B h w`` int64 on a grid (``B`` 1 without a map).

        Args:
            semantic: the map in use; None before there is one.
            grid: height and width of the result.
            frame: which part of the picture the grid covers. Regions are drawn for the whole; a part takes its own.
            device: of the result; None is the map's, or the CPU.
        """
        if semantic is None:
            labels = torch.zeros((1, *grid), dtype=torch.int64, device=device)
        else:
            found = semantic.labels_on(grid, self._constants)
            labels = self._constants.get("free", lambda: self._free, found.device)[found]
        for number, region in self._placed:
            inside = self._constants.get(
                ("region", number, grid, frame), lambda r=region: self._pooled(r, grid, frame), labels.device
            )
            labels = torch.where(inside, number, labels)
        return labels

    @staticmethod
    def _pooled(region: torch.Tensor, grid: Grid, frame: Frame) -> torch.Tensor:
        return mask_to_grid(frame.crop(region.cpu()), grid)
