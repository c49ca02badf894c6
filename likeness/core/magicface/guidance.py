"""S-CFG: a guidance rate of its own for every semantic region."""

from __future__ import annotations

import torch

from .constants import Constants
from .maps import EPSILON, SemanticMap, resize_nearest, smooth

RATE_RANGE = (0.8, 3.0)
GUIDANCE_LIMIT = 15.0  # rate * scale never exceeds it


def guidance_rate(
    delta: torch.Tensor, semantic: SemanticMap, scale: float, constants: Constants | None = None
) -> torch.Tensor:
    """Rate that brings the mean guidance of every region to that of the foreground.

    Args:
        delta: conditional minus unconditional prediction, ``B C h w``; a common factor does not matter, so noise and
            denoised predictions give the same rate.
        semantic: map with a foreground.
        scale: guidance scale.
        constants: of the run.

    Returns:
        ``B 1 h w`` float32, in [0.8, min(3, 15 / scale)] (the upper bound wins), smoothed 3x3.
    """
    grid = tuple(delta.shape[-2:])
    norm = delta.float().norm(dim=1).flatten(1)  # B P
    winner = resize_nearest(semantic.winner, grid, constants).flatten(1)
    inside = resize_nearest(semantic.inside, grid, constants).flatten(1).float()
    foreground = resize_nearest(semantic.foreground, grid, constants).flatten(1).float()
    sums = norm.new_zeros(norm.shape[0], semantic.columns)
    area = sums.scatter_add(1, winner, inside)
    total = sums.scatter_add(1, winner, norm * inside)
    wanted = (norm * foreground).sum(1, keepdim=True) / (foreground.sum(1, keepdim=True) + EPSILON)
    per_region = wanted / (total / (area + EPSILON) + EPSILON)
    rate = per_region.gather(1, winner) * inside
    rate = rate.clamp(*RATE_RANGE).clamp(max=GUIDANCE_LIMIT / scale)
    return smooth(rate.view(-1, 1, *grid), constants)


def guide(
    cond: torch.Tensor,
    uncond: torch.Tensor,
    scale: float,
    semantic: SemanticMap | None,
    constants: Constants | None = None,
) -> torch.Tensor:
    """``uncond + scale * rate * (cond - uncond)``; plain guidance without a map or a foreground."""
    delta = cond - uncond
    if semantic is None or semantic.foreground is None:
        return uncond + scale * delta
    return uncond + scale * guidance_rate(delta, semantic, scale, constants).to(delta.dtype) * delta
