"""The latent semantic map of section 3.2.2: cross-attention, completed by self-attention, smoothed, argmax."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F

from ..attention import mean_probabilities, propagate
from ..errors import bad_input
from ..masks import Grid

SINGLE_SCALE, MULTI_SCALE = 0.9, 0.6  # ca_scale for one and for several concepts
EPSILON = 1e-8


def auto_ca_scale(concepts: int) -> float:
    """The published factor on non-concept tokens: 0.9 for one concept, 0.6 for several."""
    return SINGLE_SCALE if concepts <= 1 else MULTI_SCALE


def gaussian_kernel(sigma: float = 0.5, size: int = 3) -> torch.Tensor:
    """The released smoothing kernel, ``size size``, sum 1: ``exp(-(x / (2 sigma))^2)`` per axis.

    A Gaussian of standard deviation sigma would have ``2 sigma^2`` in the denominator; the published results used
    ``(2 sigma)^2``, so this is that.
    """
    x = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
    axis = torch.exp(-((x / (2 * sigma)) ** 2))
    kernel = axis[:, None] * axis[None, :]
    return kernel / kernel.sum()


def smooth(planes: torch.Tensor) -> torch.Tensor:
    """3x3 smoothing of ``B J h w`` with reflected borders (repeated ones where a side has a single cell)."""
    batch, columns, height, width = planes.shape
    mode = "reflect" if min(height, width) > 1 else "replicate"
    padded = F.pad(planes.reshape(batch * columns, 1, height, width), (1, 1, 1, 1), mode=mode)
    kernel = gaussian_kernel().to(planes)[None, None]
    return F.conv2d(padded, kernel).view(batch, columns, height, width)


def complete(q: torch.Tensor, k: torch.Tensor, columns: torch.Tensor, heads: int, how: str) -> torch.Tensor:
    """Segmentation completion of ``B N J`` columns by the block's self-attention S.

    ``"paper"``: S C. ``"code"``: what the released loop amounts to, ``(S + 3 S^2) C / 4``. ``"none"``: C.
    """
    if how == "none":
        return columns
    once = propagate(q, k, columns, heads)
    if how == "paper":
        return once
    return (once + 3 * propagate(q, k, once, heads)) / 4


def concept_columns(cross: torch.Tensor, concepts: Sequence[tuple[int, ...]]) -> torch.Tensor:
    """Token columns regrouped: first one per concept (the sum over its tokens), then every other token.

    Args:
        cross: ``B N T`` cross-attention.
        concepts: token positions of every concept.

    Raises:
        LikenessError: a position lies outside the context.
    """
    tokens = cross.shape[-1]
    last = max((p for positions in concepts for p in positions), default=-1)
    if last >= tokens:
        raise bad_input(
            "MagicFace: prompt",
            f"a text context of {tokens} tokens, while a concept's word was found at position {last}",
            "the conditioning made of the prompt the words were looked up in",
            "Connect the conditioning that the Apply node returns to the sampler.",
        )
    taken = {p for positions in concepts for p in positions}
    rest = [p for p in range(tokens) if p not in taken]
    sums = [cross[..., list(positions)].sum(dim=-1, keepdim=True) for positions in concepts]
    return torch.cat([*sums, cross[..., rest]], dim=-1)


def prompt_columns(cross: torch.Tensor, token_maps: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """Columns of a text that was put in place of the prompt's, summed back to the prompt's own tokens.

    Args:
        cross: ``B N T`` cross-attention.
        token_maps: per row the shares ``L P`` that each of the text's ``L`` tokens gives to each of the prompt's ``P``
            tokens, or None where the text is the prompt. ``T`` is a multiple of ``L``, the text repeated; another
            length (a patch has added tokens of its own) is left as it is.

    Returns:
        ``B N P``; rows of fewer tokens than the longest end in columns of zeros, which win nowhere.
    """
    if all(shares is None for shares in token_maps):
        return cross
    rows = []
    for row, shares in zip(cross, token_maps, strict=True):
        if shares is not None and row.shape[-1] % shares.shape[0] == 0:
            row = row @ shares.to(row).repeat(row.shape[-1] // shares.shape[0], 1)  # N T, T P -> N P
        rows.append(row)
    width = max(row.shape[-1] for row in rows)
    return torch.stack([F.pad(row, (0, width - row.shape[-1])) for row in rows])


def foreground_columns(cross: torch.Tensor, chunk: int) -> torch.Tensor:
    """``B N 2``: attention to the start token(s) of the text windows, and to all other tokens."""
    start = cross[..., ::chunk].sum(dim=-1)
    return torch.stack([start, cross.sum(dim=-1) - start], dim=-1)


def to_plane(columns: torch.Tensor, grid: Grid, target: Grid) -> torch.Tensor:
    """One layer's ``B N J`` columns as smoothed ``B J h w`` planes of the target grid with spatial mean 1."""
    batch, _, count = columns.shape
    planes = columns.float().transpose(1, 2).reshape(batch, count, *grid)  # B J h w
    if grid != target:
        planes = F.interpolate(planes, size=target, mode="bilinear", align_corners=False)
    planes = smooth(planes)
    return planes / (planes.mean(dim=(2, 3), keepdim=True) + EPSILON)


class LayerMean:
    """Running mean of layers' planes, one row per picture of the batch."""

    def __init__(self) -> None:
        self.total: torch.Tensor | None = None
        self.count = 0

    def add(self, planes: torch.Tensor) -> None:
        """Add one layer, ``B J h w``."""
        if self.total is not None and self.total.shape != planes.shape:
            return  # a second conditioning with another text length; the first one is the prompt's
        self.total = planes if self.total is None else self.total + planes
        self.count += 1

    @property
    def mean(self) -> torch.Tensor:
        """``B J h w``."""
        return self.total / self.count


@dataclass(frozen=True)
class SemanticMap:
    """A finished map of all pictures of a batch.

    Attributes:
        winner: ``B h w`` int64, index of the winning column (concepts first, then the other tokens).
        foreground: ``B h w`` bool, or None where no unconditional row was seen.
        concepts: number of concepts.
        restricted: whether concepts are kept to the foreground.
    """

    winner: torch.Tensor
    foreground: torch.Tensor | None
    concepts: int
    restricted: bool

    @staticmethod
    def join(maps: Sequence[SemanticMap]) -> SemanticMap:
        """Maps of several batches as one; without a foreground where one of them has none."""
        if len(maps) == 1:
            return maps[0]
        foregrounds = [item.foreground for item in maps]
        foreground = None if any(plane is None for plane in foregrounds) else torch.cat(foregrounds)
        winner = torch.cat([item.winner for item in maps])
        return SemanticMap(winner, foreground, maps[0].concepts, maps[0].restricted)

    @property
    def inside(self) -> torch.Tensor:
        """Where a column may win, ``B h w`` bool."""
        if self.restricted and self.foreground is not None:
            return self.foreground
        return torch.ones_like(self.winner, dtype=torch.bool)

    @cached_property
    def labels(self) -> torch.Tensor:
        """``B h w`` int64: 0 background, c the c-th concept (Eq. 5, merged as the paper's M)."""
        concept = (self.winner < self.concepts) & self.inside
        return torch.where(concept, self.winner + 1, torch.zeros_like(self.winner))

    def labels_on(self, grid: Grid) -> torch.Tensor:
        """:attr:`labels` on another grid, nearest."""
        return resize_nearest(self.labels, grid)


def resize_nearest(planes: torch.Tensor, grid: Grid) -> torch.Tensor:
    """``B h w`` integer planes on another grid."""
    if tuple(planes.shape[-2:]) == tuple(grid):
        return planes
    rows = _nearest_index(planes.shape[-2], grid[0], planes.device)
    columns = _nearest_index(planes.shape[-1], grid[1], planes.device)
    return planes[:, rows][:, :, columns]


def _nearest_index(size: int, target: int, device: torch.device) -> torch.Tensor:
    return (torch.arange(target, device=device) * size // target).clamp(max=size - 1)


class MapBuilder:
    """Collects one sigma's attention into a map; rows may come in one call or in several.

    Args:
        concepts: token positions of every concept.
        ca_scale: factor on non-concept columns before the argmax; below 0.9 concepts are kept to the foreground.
        completion: see :func:`complete`.
        chunk: tokens of one text window.
        target: grid of the map.
    """

    def __init__(
        self, concepts: Sequence[tuple[int, ...]], ca_scale: float, completion: str, chunk: int, target: Grid
    ) -> None:
        self.concepts = tuple(concepts)
        self.ca_scale = ca_scale
        self.completion = completion
        self.chunk = chunk
        self.target = target
        self.columns = LayerMean()
        self.foreground = LayerMean()

    def add_conditional(self, q: torch.Tensor, k: torch.Tensor, cross: torch.Tensor, heads: int, grid: Grid) -> None:
        """One layer's self-attention q, k (``B N C``) and cross-attention (``B N T``) of the conditional rows."""
        columns = concept_columns(cross, self.concepts)
        self.columns.add(to_plane(complete(q, k, columns, heads, self.completion), grid, self.target))

    def add_unconditional(self, q: torch.Tensor, k: torch.Tensor, cross: torch.Tensor, heads: int, grid: Grid) -> None:
        """The same of the unconditional rows, for the foreground."""
        columns = foreground_columns(cross, self.chunk)
        self.foreground.add(to_plane(complete(q, k, columns, heads, self.completion), grid, self.target))

    def winner(self) -> torch.Tensor:
        """Of the conditional rows the index of the winning column, ``B h w`` int64."""
        planes = self.columns.mean
        scale = torch.full((planes.shape[1],), self.ca_scale, device=planes.device)
        scale[: len(self.concepts)] = 1
        return (planes * scale[:, None, None]).argmax(dim=1)

    def inside(self) -> torch.Tensor:
        """Of the unconditional rows where anything but the start token wins, ``B h w`` bool."""
        start, others = self.foreground.mean.unbind(dim=1)
        return others > start

    def semantic_map(self, winner: torch.Tensor, foreground: torch.Tensor | None) -> SemanticMap:
        """The map of ``B h w`` :meth:`winner` and :meth:`inside`, which may come from different calls."""
        restricted = self.ca_scale < SINGLE_SCALE and not math.isclose(self.ca_scale, SINGLE_SCALE)
        return SemanticMap(winner, foreground, len(self.concepts), restricted)

    def finish(self) -> SemanticMap | None:
        """The map of rows that were all seen here, or None when no conditional row was."""
        if not self.columns.count:
            return None
        return self.semantic_map(self.winner(), self.inside() if self.foreground.count else None)


def cross_probabilities(q: torch.Tensor, k: torch.Tensor, heads: int) -> torch.Tensor:
    """Head-mean cross-attention (Eq. 4), ``B N T``."""
    return mean_probabilities(q, k, heads)
