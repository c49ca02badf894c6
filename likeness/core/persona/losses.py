"""Training losses (PersonaMagic, "Loss Functions")."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def masked_mse(predicted: Tensor, noise: Tensor, mask: Tensor) -> Tensor:
    """Mask-weighted mean square error, mean over the batch (Eq. 2 as the released code scales it).

    Args:
        predicted, noise: ``B 4 h w``.
        mask: ``B 1 h w`` weights in [0, 1]; all-zero masks are refused where photos are prepared.
    """
    error = (predicted.float() - noise.float()).square()
    weights = mask.float().expand_as(error)
    return ((error * weights).sum(dim=(1, 2, 3)) / weights.sum(dim=(1, 2, 3))).mean()


def identity_weight(timesteps: Tensor, total: int = 1000) -> Tensor:
    """Eq. 4: ``cos(pi t / 2T)``; 0.81 at t = 400, 0.31 at t = 800. (Its mean over [0, T] is 2/pi.)"""
    return torch.cos(timesteps.float() * (math.pi / 2 / total))


def identity_loss(estimated: Tensor, reference: Tensor, timesteps: Tensor, total: int = 1000) -> Tensor:
    """Eq. 3 and 4: mean of ``cos(pi t / 2T) (1 - cos(e, r))`` over ``B D`` embeddings."""
    similarity = torch.nn.functional.cosine_similarity(estimated.float(), reference.float(), dim=-1)
    return (identity_weight(timesteps, total).to(similarity) * (1 - similarity)).mean()
