"""Several identities in one picture, followed through a sampling run: whose keys, where, and at which steps.

A host gives the queries and the text's attention of each cross-attention; the same run serves the UNet and the Identity
ControlNet, each with its own layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention import split_heads
from ..blocks import BlockId, UNetLayout
from ..errors import LikenessError
from ..masks import FULL_FRAME, Frame, Grid, token_grid
from ..schedule import Schedule
from .attention import IdentityKeys, mgmica
from .masks import RegionMasks
from .projections import IdentityAttention

#: Layouts of rows whose keys a run keeps (both guidance rows; each alone; tiles).
LAYOUTS = 4


@dataclass(frozen=True, eq=False)
class PlacedIdentity:
    """One identity, where and when it acts.

    Attributes:
        tokens: ``F_id``, ``L C``. nobody: what unconditional rows get, ``M C`` with M a divisor of L.
        region: ``h w`` in [0, 1] over the whole picture, any size; None is everywhere.
        scale: factor on its attention; 0 switches it off.
        start, end: shares of the sampler's steps between which it acts.
    """

    tokens: Tensor
    nobody: Tensor
    region: Tensor | None = None
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    name: str = ""

    def acts_at(self, step: int, steps: int) -> bool:
        """Whether it acts in a step 0..T-1 of T."""
        return self.scale != 0 and self.start * steps - 1e-9 <= step < self.end * steps - 1e-9


@dataclass(frozen=True)
class LayerKeys:
    """Keys and values of N identities in one cross-attention, heads merged.

    Attributes:
        k, v: ``2 N L W``; first those of nobody, then those of the identities.
        valid: ``N L``, or None where all have L tokens.
    """

    k: Tensor
    v: Tensor
    valid: Tensor | None

    def to(self, like: Tensor) -> LayerKeys:
        """On the device and in the type of a tensor."""
        valid = None if self.valid is None else self.valid.to(like.device)
        return LayerKeys(self.k.to(like), self.v.to(like), valid)


def project(attention: IdentityAttention, people: Sequence[PlacedIdentity]) -> dict[BlockId, LayerKeys]:
    """Keys and values of the identities in every block, once for a whole run."""
    longest = max(len(one.tokens) for one in people)
    like = next(attention.parameters())
    laid, valid = [], torch.zeros(len(people), longest, dtype=torch.bool, device=like.device)
    for i, one in enumerate(people):
        nobody = one.nobody.repeat(len(one.tokens) // len(one.nobody), 1)  # repeated keys change no softmax
        pair = torch.stack([nobody, one.tokens]).to(like)
        laid.append(F.pad(pair, (0, 0, 0, longest - pair.shape[1])))
        valid[i, : pair.shape[1]] = True
    tokens = torch.stack(laid, dim=1)  # 2 N L C
    padding = None if all(len(one.tokens) == longest for one in people) else valid
    return {block: LayerKeys(*attention.layer(block)(tokens), padding) for block in attention.blocks}


@dataclass(eq=False)
class MagicIdRun:
    """State of one run; drop it when the run ends.

    Args:
        layers: from :func:`project`, for the blocks of ``layout`` that take identities.
        people: the same identities. layout: of the network (UNet or ControlNet).
        sigmas: the run's noise levels.
        overlap: see :class:`RegionMasks`.
        scale: factor on all identities.
    """

    layers: Mapping[BlockId, LayerKeys]
    people: Sequence[PlacedIdentity]
    layout: UNetLayout
    sigmas: Sequence[float]
    overlap: str = "add"
    scale: float = 1.0
    unfit: set[str] = field(default_factory=set)  # levels whose tokens are no grid of the picture
    _keys: dict[BlockId, LayerKeys] = field(default_factory=dict)
    _weights: dict[tuple, tuple[Tensor, tuple[int, ...]] | None] = field(default_factory=dict)
    _laid: dict[tuple, dict[BlockId, IdentityKeys]] = field(default_factory=dict)  # the youngest last

    def __post_init__(self) -> None:
        self.schedule = Schedule(self.sigmas)
        self.masks = RegionMasks([one.region for one in self.people], self.overlap)

    def begin(
        self,
        sigma: float,
        conditional: Sequence[bool],
        latent: Grid,
        frames: Sequence[Frame | None] | None = None,
    ) -> MagicIdCall | None:
        """One model call; None where no identity acts in it.

        Args:
            sigma: its noise level. conditional: per row whether it belongs to the positive text.
            latent: height and width of its latents.
            frames: per row which part of the picture it shows. None for a row: nobody knows, and identities with a
                region stay out of it.
        """
        step = self.schedule.step(sigma)
        active = tuple(i for i, one in enumerate(self.people) if one.acts_at(step, self.schedule.steps))
        if not active or self.scale == 0:
            return None
        shown = tuple(frames) if frames is not None else (FULL_FRAME,) * len(conditional)
        return MagicIdCall(self, active, tuple(conditional), latent, shown)

    def close(self) -> None:
        """Drop everything that was made for the run."""
        self._keys.clear()
        self._weights.clear()
        self._laid.clear()

    def keys(self, block: BlockId, like: Tensor) -> LayerKeys:
        """A block's keys where the model computes, moved there once."""
        known = self._keys.get(block)
        if known is None or known.k.device != like.device or known.k.dtype != like.dtype:
            known = self._keys[block] = self.layers[block].to(like)
        return known

    def laid(
        self, block: BlockId, conditional: tuple[bool, ...], present: tuple[int, ...], heads: int, like: Tensor
    ) -> IdentityKeys:
        """A block's keys for rows of a call, ``B N H L D`` (``1 N H L D`` where all rows are of one kind).

        Calls of a run are much alike: those of the last few layouts are kept.
        """
        layout = (conditional, present, heads, like.device, like.dtype)
        known = self._laid.pop(layout, {})
        self._laid[layout] = known  # now the youngest
        if len(self._laid) > LAYOUTS:
            del self._laid[next(iter(self._laid))]
        if block not in known:
            known[block] = self._lay(self.keys(block, like), conditional, heads).only(present)
        return known[block]

    def _lay(self, layer: LayerKeys, conditional: tuple[bool, ...], heads: int) -> IdentityKeys:
        kinds = set(conditional)
        if len(kinds) == 1:
            k, v = (x[int(True in kinds)][None] for x in (layer.k, layer.v))
        else:  # a stack of views: an index would have to be brought to the device
            k, v = (torch.stack([x[int(c)] for c in conditional]) for x in (layer.k, layer.v))
        k, v = (x.unflatten(-1, (heads, -1)).transpose(2, 3) for x in (k, v))
        return IdentityKeys(k, v, layer.valid)

    def weights(
        self, grid: Grid, frames: tuple[Frame | None, ...], active: tuple[int, ...], like: Tensor
    ) -> tuple[Tensor, tuple[int, ...]] | None:
        """Weights ``rows N T`` (``1 N T`` where all rows show the same) of the identities that show, and who they are.

        None where nobody shows. What is on the CPU decides, so nothing waits for the device.
        """
        shown = frames[:1] if len(set(frames)) == 1 else frames
        key = (grid, shown, active, like.device, like.dtype)
        if key not in self._weights:
            planes = torch.stack([self._plane(grid, frame) for frame in shown])  # R N T
            present = tuple(i for i in active if bool(planes[:, i].any()))
            scales = torch.tensor([self.scale * self.people[i].scale for i in present])
            found = (planes[:, list(present)] * scales[:, None]).to(like) if present else None
            self._weights[key] = None if found is None else (found, present)
        return self._weights[key]

    def _plane(self, grid: Grid, frame: Frame | None) -> Tensor:
        if frame is not None:
            return self.masks.tokens(grid, frame)
        everywhere = torch.tensor([one.region is None for one in self.people], dtype=torch.float32)
        return everywhere[:, None].expand(-1, grid[0] * grid[1])


@dataclass(frozen=True, eq=False)
class MagicIdCall:
    """One model call of a run.

    Attributes:
        active: numbers of the identities that act. conditional, frames: per row. latent: height and width.
    """

    run: MagicIdRun
    active: tuple[int, ...]
    conditional: tuple[bool, ...]
    latent: Grid
    frames: tuple[Frame | None, ...]

    def add(self, block: BlockId, q: Tensor, attended: Tensor, heads: int) -> Tensor:
        """The cross-attention of a block with the identities in it (Alg. 1).

        Args:
            q: ``B T C``, queries. attended: ``B T C``, the text's attention. heads: number of heads merged in C.

        Returns:
            ``B T C``, before the output projection; ``attended`` itself where no identity shows.
        """
        run = self.run
        try:
            grid = token_grid(self.latent, run.layout.factor(block), q.shape[1])
        except LikenessError:
            run.unfit.add(block.level_name)
            return attended
        if q.shape[0] != len(self.conditional):
            run.unfit.add(block.level_name)
            return attended
        found = run.weights(grid, self.frames, self.active, q)
        if found is None:
            return attended
        weights, present = found
        added = mgmica(split_heads(q, heads), run.laid(block, self.conditional, present, heads, q), weights)
        return (attended.unflatten(-1, (heads, -1)) + added.transpose(1, 2).to(attended)).flatten(-2)
