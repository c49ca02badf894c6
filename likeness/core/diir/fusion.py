"""Mask guided face fusion (MGFF): Eq. 5 and Eq. 6 of MagicID."""

from __future__ import annotations

import torch
from torch import Tensor

from ..masks import level_grid

Grid = tuple[int, int]
LEAST_DEVIATION = 1e-5  # a flat channel has no style to take away
LEAST_WEIGHT = 1e-4  # of the mask, in cells: below, there is nothing inside


def masked_statistics(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation inside a soft mask, ``B C 1`` each, float32.

    Args:
        values: ``B C P``. mask: weights in [0, 1], ``B 1 P``.
    """
    values, weights = values.float(), mask.float()
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=LEAST_WEIGHT)
    mean = (values * weights).sum(-1, keepdim=True)
    variance = ((values - mean).square() * weights).sum(-1, keepdim=True)
    return mean, variance.sqrt()


def masked_adain(restored: Tensor, kept: Tensor, mask: Tensor) -> Tensor:
    """Eq. 5: ``V' = (V - mean_M V) / std_M V * std_M C + mean_M C`` per channel, statistics inside the mask.

    Args:
        restored: ``V_r``, ``B C P``. kept: ``V_c``, the same shape. mask: ``M_p`` in [0, 1], ``B 1 P``.

    Returns:
        ``V'`` in ``restored``'s dtype, everywhere. Where a mask is empty ``V`` itself; a channel without deviation is
        only shifted.
    """
    mean, deviation = masked_statistics(restored, mask)
    wanted_mean, wanted_deviation = masked_statistics(kept, mask)
    scale = torch.where(deviation > LEAST_DEVIATION, wanted_deviation / deviation.clamp(min=LEAST_DEVIATION), 1.0)
    styled = (restored.float() - mean) * scale + wanted_mean
    empty = mask.float().sum(-1, keepdim=True) < LEAST_WEIGHT
    return torch.where(empty, restored.float(), styled).to(restored.dtype)


def fuse(restored: Tensor, kept: Tensor, mask: Tensor, style: bool = False) -> Tensor:
    """Eq. 6: ``V_R = V_r' M + V_c (1 - M)``; exactly ``V_c`` where the mask is 0.

    Args:
        restored: ``B C P``. kept: the same shape. mask: ``B 1 P`` in [0, 1].
        style: whether ``V_r'`` takes the kept statistics first (Eq. 5).
    """
    kept = kept.to(restored)
    if style:
        restored = masked_adain(restored, kept, mask)
    return torch.lerp(kept, restored, mask.to(restored))


def fuse_latents(restored: Tensor, kept: Tensor, mask: Tensor, style: bool = False) -> Tensor:
    """:func:`fuse` for latents ``B C h w`` and masks ``B 1 h w``."""
    flat = fuse(restored.flatten(2), kept.flatten(2), mask.flatten(2), style)  # B C (h w)
    return flat.unflatten(2, restored.shape[2:])


def fuse_tokens(restored: Tensor, kept: Tensor, mask: Tensor, style: bool = True) -> Tensor:
    """:func:`fuse` for attention outputs ``B N C`` and masks on their grid, ``B 1 N``."""
    return fuse(restored.transpose(1, 2), kept.transpose(1, 2), mask, style).transpose(1, 2)


def mask_to_latent(mask: Tensor, grid: Grid) -> Tensor:
    """Soft masks ``B S S`` of pixels as soft masks ``B 1 h w`` of latents, by area."""
    return torch.nn.functional.adaptive_avg_pool2d(mask.float()[:, None], grid)


def mask_to_tokens(mask: Tensor, tokens: int) -> Tensor | None:
    """Soft masks ``B 1 h w`` of latents as ``B 1 N`` on the token grid of a level.

    None where no level has that many tokens, as when another patch merges or tiles them.
    """
    size = (mask.shape[-2], mask.shape[-1])
    for factor in (1, 2, 4, 8, 16):
        grid = level_grid(size, factor)
        if grid[0] * grid[1] == tokens:
            return torch.nn.functional.adaptive_avg_pool2d(mask.float(), grid).flatten(2)
    return None
