"""Identities in cross-attention while it learns: MGMICA with gradients, and what ``L_cfa`` looks at."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor

from ...core.attention import merge_heads, split_heads
from ...core.blocks import BlockId, UNetLayout
from ...core.magicid.attention import mgmica
from ...core.magicid.projections import IdentityAttention
from ...core.masks import Grid, token_grid


@dataclass(eq=False)
class TrainingCall:
    """One model call of a place.

    Attributes:
        attention: its identity layers. layout: of its network.
        tokens: ``B N L C``. planes: ``B N h w``, each identity's weight over the latents.
        keep: whether cross-attention features are kept, for ``L_cfa``.
        features: those kept, per block its token grid and ``B T C``.
    """

    attention: IdentityAttention
    layout: UNetLayout
    tokens: Tensor
    planes: Tensor
    keep: bool = False
    features: dict[BlockId, tuple[Grid, Tensor]] = field(default_factory=dict)
    _weights: dict[Grid, Tensor] = field(default_factory=dict)

    def add(self, block: BlockId, q: Tensor, attended: Tensor, heads: int) -> Tensor:
        """Eq. 1 and Alg. 1 in a block: ``B T C`` queries and the text's attention -> ``B T C`` with the identities."""
        grid = token_grid(tuple(self.planes.shape[-2:]), self.layout.factor(block), q.shape[1])
        keys = self.attention.pack(block, self.tokens.unbind(1), heads)
        out = attended + merge_heads(mgmica(split_heads(q, heads), keys, self._at(grid))).to(attended)
        if self.keep:
            self.features[block] = grid, out
        return out

    def _at(self, grid: Grid) -> Tensor:
        if grid not in self._weights:
            self._weights[grid] = F.adaptive_avg_pool2d(self.planes, grid).flatten(2)  # B N T
        return self._weights[grid]
