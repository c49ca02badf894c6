"""Collects cross-attention maps of a persona's words, for whichever host runs the UNet."""

from __future__ import annotations

import torch
from torch import Tensor


class MapRecorder:
    """Collects cross-attention maps of some token positions, mean over heads.

    Args:
        positions: token positions ``n``, or ``B n`` per sample.
        side: only blocks whose latent side is nearest to this are kept by :meth:`mean`.
    """

    def __init__(self, positions: Tensor, side: int = 16) -> None:
        self.positions, self.side = positions, side
        self.maps: dict[int, list[Tensor]] = {}

    def add(self, query: Tensor, key: Tensor) -> None:
        """``B H N D`` queries and ``B H L D`` keys of one block."""
        scores = query.detach().float() @ key.detach().float().transpose(-1, -2) * query.shape[-1] ** -0.5
        weights = scores.softmax(dim=-1).mean(dim=1)  # B N L
        picked = weights[..., self.positions.to(weights.device)].sum(dim=-1)  # B N
        self.maps.setdefault(query.shape[2], []).append(picked)

    def mean(self, shape: tuple[int, int]) -> Tensor:
        """``B h w`` mean map of the blocks nearest the wanted side, for latents of ``shape`` (H, W)."""
        area = shape[0] * shape[1]
        count = min(self.maps, key=lambda n: abs((n**0.5) - self.side))
        factor = round((area / count) ** 0.5)
        height = -(-shape[0] // factor)
        return torch.stack(self.maps[count]).mean(dim=0).unflatten(1, (height, -1))
