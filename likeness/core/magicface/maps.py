"""The latent semantic map of section 3.2.2: cross-attention, completed by self-attention, smoothed, argmax."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F

from ..attention import LANE, propagate
from ..errors import bad_input
from ..masks import Grid
from .constants import Constants, Rows

SINGLE_SCALE, MULTI_SCALE = 0.9, 0.6  # ca_scale for one and for several concepts
EPSILON = 1e-8
MOST_WAITING = 16  # layers whose columns wait to be finished together


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


def smooth(planes: torch.Tensor, constants: Constants | None = None) -> torch.Tensor:
    """3x3 smoothing of ``B J h w`` with reflected borders (repeated ones where a side has a single cell)."""
    batch, columns, height, width = planes.shape
    mode = "reflect" if min(height, width) > 1 else "replicate"
    padded = F.pad(planes.reshape(batch * columns, 1, height, width), (1, 1, 1, 1), mode=mode)
    kernel = (constants or Constants()).get("smoothing", gaussian_kernel, planes.device, planes.dtype)
    return F.conv2d(padded, kernel[None, None]).view(batch, columns, height, width)


def complete(q: torch.Tensor, k: torch.Tensor, columns: torch.Tensor, heads: int, how: str) -> torch.Tensor:
    """Segmentation completion of ``B N J`` columns by the block's self-attention S; float32.

    ``"paper"``: S C. ``"code"``: what the released loop amounts to, ``(S + 3 S^2) C / 4``. ``"none"``: C.
    """
    if how == "none":
        return columns.float()
    once = propagate(q, k, columns, heads)
    if how == "paper":
        return once
    return (once + 3 * propagate(q, k, once, heads)) / 4


# --- columns: which tokens of a text are summed -----------------------------------------------------------------------


def concept_columns(tokens: int, concepts: Sequence[tuple[int, ...]]) -> torch.Tensor:
    """The tokens regrouped: first one column per concept (the sum over its tokens), then one for every other token.

    Args:
        tokens: of the text context. concepts: token positions of every concept.

    Returns:
        ``T J``, by which cross-attention ``B N T`` is multiplied.

    Raises:
        LikenessError: a position lies outside the context.
    """
    last = max((p for positions in concepts for p in positions), default=-1)
    if last >= tokens:
        raise bad_input(
            "MagicFace: prompt",
            f"a text context of {tokens} tokens, while a concept's word was found at position {last}",
            "the conditioning made of the prompt the words were looked up in",
            "Connect the conditioning that the Apply node returns to the sampler.",
        )
    every = torch.eye(tokens)
    taken = {p for positions in concepts for p in positions}
    rest = [p for p in range(tokens) if p not in taken]
    return torch.cat([torch.stack([every[list(p)].sum(dim=0) for p in concepts], dim=1), every[:, rest]], dim=1)


def foreground_columns(tokens: int, chunk: int) -> torch.Tensor:
    """``T 2``: the start token(s) of the text windows, and all other tokens; see :func:`concept_columns`."""
    start = (torch.arange(tokens) % chunk == 0).float()
    return torch.stack([start, 1 - start], dim=1)


def replaced_columns(tokens: int, shares: torch.Tensor | None, columns: Callable[[int], torch.Tensor]) -> torch.Tensor:
    """Columns of a text that was put in place of the prompt's.

    Args:
        tokens: T, of that text. columns: for a prompt of so many tokens its ``P J``.
        shares: ``L P``, what each of the text's ``L`` tokens gives to each of the prompt's ``P``, or None where the
            text is the prompt. ``T`` is a multiple of ``L``, the text repeated; another length (a patch has added
            tokens of its own) is taken as it is.
    """
    if shares is None or tokens % shares.shape[0]:
        return columns(tokens)
    repeated = shares.float().cpu().repeat(tokens // shares.shape[0], 1)  # T P
    return repeated @ columns(repeated.shape[1])


# --- the map ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SemanticMap:
    """A finished map of all pictures of a batch.

    Attributes:
        winner: ``B h w`` int64, index of the winning column (concepts first, then the other tokens).
        foreground: ``B h w`` bool, or None where no unconditional row was seen.
        concepts: number of concepts. columns: number of columns.
        restricted: whether concepts are kept to the foreground.
    """

    winner: torch.Tensor
    foreground: torch.Tensor | None
    concepts: int
    columns: int
    restricted: bool

    @staticmethod
    def join(maps: Sequence[SemanticMap]) -> SemanticMap:
        """Maps of several batches as one; without a foreground where one of them has none."""
        if len(maps) == 1:
            return maps[0]
        foregrounds = [item.foreground for item in maps]
        foreground = None if any(plane is None for plane in foregrounds) else torch.cat(foregrounds)
        winner = torch.cat([item.winner for item in maps])
        columns = max(item.columns for item in maps)
        return SemanticMap(winner, foreground, maps[0].concepts, columns, maps[0].restricted)

    @property
    def inside(self) -> torch.Tensor:
        """Where a column may win, ``B h w`` bool."""
        if self.restricted and self.foreground is not None:
            return self.foreground
        return torch.ones_like(self.winner, dtype=torch.bool)

    @cached_property
    def labels(self) -> torch.Tensor:
        """``B h w`` int64: 0 background, c the c-th concept (Eq. 5, merged as the paper's M)."""
        concept = self.winner < self.concepts
        if self.restricted and self.foreground is not None:
            concept = concept & self.foreground
        return torch.where(concept, self.winner + 1, 0)

    def labels_on(self, grid: Grid, constants: Constants | None = None) -> torch.Tensor:
        """:attr:`labels` on another grid, nearest."""
        return resize_nearest(self.labels, grid, constants)


def resize_nearest(planes: torch.Tensor, grid: Grid, constants: Constants | None = None) -> torch.Tensor:
    """``B h w`` planes on another grid."""
    size = tuple(planes.shape[-2:])
    if size == tuple(grid):
        return planes
    index = (constants or Constants()).get(("nearest", size, tuple(grid)), lambda: _nearest(size, grid), planes.device)
    return planes.flatten(1).index_select(1, index).view(-1, *grid)


def _nearest(size: Grid, grid: Grid) -> torch.Tensor:
    """Of every cell of ``grid`` the place of its cell in a flattened plane of ``size``."""
    rows, columns = (torch.arange(n) * s // n for n, s in zip(grid, size, strict=True))
    return (rows[:, None] * size[1] + columns[None, :]).flatten()


class MapBuilder:
    """Collects one call's attention into a map. The layers' columns wait, and are finished together grid by grid.

    Args:
        concepts: token positions of every concept.
        ca_scale: factor on non-concept columns before the argmax; below 0.9 concepts are kept to the foreground.
        completion: see :func:`complete`.
        chunk: tokens of one text window.
        target: grid of the map.
        conditional: per observed row whether it makes the map (else its foreground).
        constants: of the run.
    """

    def __init__(
        self,
        concepts: Sequence[tuple[int, ...]],
        ca_scale: float,
        completion: str,
        chunk: int,
        target: Grid,
        conditional: Sequence[bool],
        constants: Constants | None = None,
    ) -> None:
        self.concepts = tuple(concepts)
        self.ca_scale = ca_scale
        self.completion = completion
        self.chunk = chunk
        self.target = target
        self.conditional = tuple(conditional)
        self._constants = constants or Constants()
        self._waiting: dict[Grid, list[torch.Tensor]] = {}
        self._total: torch.Tensor | None = None
        self._columns = 0

    @property
    def seen(self) -> bool:
        """Whether a layer was added."""
        return bool(self._waiting) or self._total is not None

    def columns(self, like: torch.Tensor, tokens: int, token_maps: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """The observed rows' columns ``R T J`` as values for attention, on the device and in the dtype of ``like``.

        Args:
            tokens: T, of the text context. token_maps: per row, see :func:`replaced_columns`.
        """
        key = ("columns", tokens, self.conditional, tuple(None if m is None else id(m) for m in token_maps))
        made = self._constants.get(key, lambda: self._make_columns(tokens, token_maps), like.device, like.dtype)
        self._constants.hold(key, token_maps)  # as long as the constant is known by their ids
        return made

    def _make_columns(self, tokens: int, token_maps: Sequence[torch.Tensor | None]) -> torch.Tensor:
        of_kind = {
            True: lambda count: concept_columns(count, self.concepts),
            False: lambda count: foreground_columns(count, self.chunk),
        }
        rows = [replaced_columns(tokens, m, of_kind[c]) for c, m in zip(self.conditional, token_maps, strict=True)]
        width = -(-max(row.shape[1] for row in rows) // LANE) * LANE  # columns of zeros win nowhere
        return torch.stack([F.pad(row, (0, width - row.shape[1])) for row in rows])

    def add(self, q: torch.Tensor, k: torch.Tensor, columns: torch.Tensor, heads: int, grid: Grid) -> None:
        """One layer's self-attention q, k (``R N C``) and regrouped cross-attention (``R N J``) of the rows."""
        if self._columns not in (0, columns.shape[-1]):
            return  # another text length in the same call; the first one is the prompt's
        self._columns = columns.shape[-1]
        self._waiting.setdefault(grid, []).append(complete(q, k, columns, heads, self.completion))
        if sum(map(len, self._waiting.values())) >= MOST_WAITING:
            self._flush()

    def _flush(self) -> None:
        """The layers that wait become smoothed planes of the target grid with spatial mean 1, and join the sum."""
        planes = torch.cat([self._on_target(grid, layers) for grid, layers in self._waiting.items()])  # LR J h w
        self._waiting.clear()
        planes = smooth(planes, self._constants)
        planes = planes / (planes.mean(dim=(2, 3), keepdim=True) + EPSILON)
        total = planes.unflatten(0, (-1, len(self.conditional))).sum(dim=0)
        self._total = total if self._total is None else self._total + total

    def _on_target(self, grid: Grid, layers: Sequence[torch.Tensor]) -> torch.Tensor:
        columns = torch.cat(list(layers))  # LR N J
        planes = columns.transpose(1, 2).reshape(*columns.shape[::2], *grid)
        if grid == self.target:
            return planes
        return F.interpolate(planes, size=self.target, mode="bilinear", align_corners=False)

    def planes(self) -> torch.Tensor:
        """Of all rows the sum over layers, ``R J h w``."""
        if self._waiting:
            self._flush()
        return self._total

    def winner(self) -> torch.Tensor:
        """Of the conditional rows the index of the winning column, ``B h w`` int64."""
        planes = self._rows(True)
        scale = self._constants.get(("scale", self._columns), self._scale, planes.device)
        return (planes * scale).argmax(dim=1)

    def _scale(self) -> torch.Tensor:
        scale = torch.full((self._columns, 1, 1), self.ca_scale)
        scale[: len(self.concepts)] = 1
        return scale

    def inside(self) -> torch.Tensor:
        """Of the unconditional rows where anything but the start token wins, ``B h w`` bool."""
        planes = self._rows(False)
        return planes[:, 1] > planes[:, 0]

    def _rows(self, conditional: bool) -> torch.Tensor:
        rows = [row for row, kind in enumerate(self.conditional) if kind == conditional]
        return Rows(rows, self._constants).take(self.planes())

    def semantic_map(self, winner: torch.Tensor, foreground: torch.Tensor | None) -> SemanticMap:
        """The map of ``B h w`` :meth:`winner` and :meth:`inside`, which may come from different calls."""
        restricted = self.ca_scale < SINGLE_SCALE and not math.isclose(self.ca_scale, SINGLE_SCALE)
        return SemanticMap(winner, foreground, len(self.concepts), self._columns, restricted)
