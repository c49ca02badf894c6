"""The reference path: noised reference latents, capture of their self-attention K, V, and the keys made of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field

import torch

from ..blocks import BlockId, UNetLayout
from ..digest import digest
from ..masks import level_grid, mask_to_grid
from .cache import KeyValue, ReferenceEntry
from .constants import Constants
from .injection import ReferenceKeys
from .request import Reference

NOISE_BINS = 64  # noise is drawn anew every 1/64 in log sigma, so that rounding between hosts draws the same


class ReferencesCaptured(Exception):
    """Raised by :meth:`Capture.store` once all K, V are there: the rest of the forward is not needed."""


@dataclass(frozen=True)
class ReferenceBatch:
    """What the host runs through its plain UNet.

    Attributes:
        references: the references of the rows, in row order (their ``context`` is the host's own).
        latents: ``R 4 h w``, noised to ``sigma``, in the dtype and on the device of the references' latents.
        sigma: noise level.
    """

    references: tuple[Reference, ...]
    latents: torch.Tensor
    sigma: float


def reference_noise(shape: tuple[int, ...], seed: int, sigma: float, index: int) -> torch.Tensor:
    """Unit Gaussian noise of the reference at place ``index``, from (seed, sigma) alone: float32 on the CPU."""
    level = round(math.log(max(sigma, 1e-6)) * NOISE_BINS)
    digest = hashlib.sha256(f"{seed}/{level}/{index}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.randn(shape, generator=generator)


#: The forward process ``(clean latent, unit noise, noise level) -> noisy latent``; must not change its arguments.
Noising = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]


def add_noise(latent: torch.Tensor, noise: torch.Tensor, sigma: float) -> torch.Tensor:
    """The variance-exploding forward process, ``z0 + sigma * eps``."""
    return latent + sigma * noise


def noised(latent: torch.Tensor, seed: int, sigma: float, index: int, noising: Noising = add_noise) -> torch.Tensor:
    """A reference's latent, noised to ``sigma`` with the noise of :func:`reference_noise`."""
    return noising(latent, reference_noise(tuple(latent.shape), seed, sigma, index).to(latent), sigma)


class ReferencePath:
    """One reference of a run: which of its tokens count at every grid, and how its K, V become attention keys.

    Additive weighting shuts the tokens outside the mask out: they are dropped. In the multiplicative reading they
    stay, every one with logit 0, and so act exactly like a single key with logit ``log n`` whose value is their mean:
    that one key is kept in their place.

    Args:
        reference: the concept.
        index: its place in the request (its noise depends on it).
        weighting: see :class:`MagicFaceRequest`.
        layout: the model's blocks.
    """

    def __init__(self, reference: Reference, index: int, weighting: str, layout: UNetLayout) -> None:
        self.reference = reference
        self.index = index
        self.weighting = weighting
        self._layout = layout
        self._kept: dict[tuple[int, int], torch.Tensor | None] = {}
        self._constants = Constants()

    def grid(self, block: BlockId) -> tuple[int, int]:
        """Token grid of the reference at a block."""
        height, width = self.reference.latent.shape[-2:]
        return level_grid((height, width), self._layout.factor(block))

    def kept(self, block: BlockId) -> torch.Tensor | None:
        """Indices of the tokens inside the mask at a block, ``M`` int64; None when that is all of them."""
        grid = self.grid(block)
        if grid not in self._kept:
            self._kept[grid] = self._indices(grid)
        return self._kept[grid]

    def _indices(self, grid: tuple[int, int]) -> torch.Tensor | None:
        if self.reference.mask is None:
            return None
        inside = mask_to_grid(self.reference.mask.cpu(), grid).flatten()
        return None if bool(inside.all()) else inside.nonzero().flatten()

    def key_tokens(self, block: BlockId) -> torch.Tensor:
        """Of every key of a block the token it is, ``M`` int64; -1 for the key that stands for all masked-out ones."""
        height, width = self.grid(block)
        kept = self.kept(block)
        if kept is None:
            return torch.arange(height * width)
        closing = self.weighting == "multiplicative"
        return torch.cat([kept, torch.tensor([-1])]) if closing else kept

    def reduce(self, block: BlockId, k: torch.Tensor, v: torch.Tensor) -> KeyValue:
        """Keep of one captured layer what attention will need: ``M C`` each, owning their memory."""
        kept = self.kept(block)
        if kept is None:
            return k.clone(), v.clone()
        grid = self.grid(block)
        index = self._constants.get(("kept", grid), lambda: kept, k.device)
        inside_k, inside_v = k.index_select(0, index), v.index_select(0, index)
        if self.weighting != "multiplicative":
            return inside_k, inside_v
        outside = self._constants.get(("outside", grid), lambda: _others(kept, grid), k.device)
        mean = v.index_select(0, outside).float().mean(dim=0, keepdim=True).to(v.dtype)
        return torch.cat([inside_k, torch.zeros_like(mean)]), torch.cat([inside_v, mean])

    def keys(self, block: BlockId, pair: KeyValue) -> list[ReferenceKeys]:
        """Weighted keys and values of a block; :meth:`key_tokens` tells what they are."""
        k, v = pair
        weight = self.reference.weight
        if self.weighting != "multiplicative":
            return [ReferenceKeys(k, v, float(weight) if self.weighting == "additive" else 0.0)]
        kept = self.kept(block)
        if kept is None:
            return [ReferenceKeys(k * weight, v, 0.0)]
        height, width = self.grid(block)
        closing = ReferenceKeys(k[-1:], v[-1:], math.log(height * width - len(kept)))
        return [ReferenceKeys(k[:-1] * weight, v[:-1], 0.0), closing]

    def cache_key(self, model_key: Hashable, noise_seed: int, blocks: Iterable[BlockId]) -> str:
        """Digest of all that the captured K, V depend on, but for sigma."""
        r = self.reference
        mask = "whole" if r.mask is None else r.mask
        reading = "multiplicative" if self.weighting == "multiplicative" else "dropped"
        return digest(r.latent, mask, r.context_key, model_key, noise_seed, self.index, reading, tuple(blocks))


def _others(kept: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """The indices of a grid's tokens that are not among ``kept``."""
    outside = torch.ones(grid[0] * grid[1], dtype=torch.bool)
    outside[kept] = False
    return outside.nonzero().flatten()


@dataclass
class Capture:
    """Takes a reference batch's K, V out of the host's plain forward.

    Attributes:
        paths: the references of the rows.
        blocks: the blocks to store, in execution order.
        stop: whether :meth:`store` ends the forward after the last of them.
    """

    paths: tuple[ReferencePath, ...]
    blocks: tuple[BlockId, ...]
    stop: bool = True
    entries: tuple[ReferenceEntry, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.entries = tuple({} for _ in self.paths)

    @property
    def complete(self) -> bool:
        """Whether every block has been stored."""
        return all(len(entry) == len(self.blocks) for entry in self.entries)

    def store(self, block: BlockId, k: torch.Tensor, v: torch.Tensor) -> None:
        """Take one block's keys and values, ``R M C`` in row order.

        Raises:
            ReferencesCaptured: everything is there and ``stop`` is set; catch it round the forward.
        """
        for path, entry, row_k, row_v in zip(self.paths, self.entries, k, v, strict=True):
            entry[block] = path.reduce(block, row_k, row_v)
        if self.stop and self.complete:
            raise ReferencesCaptured
