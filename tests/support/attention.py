"""Attention as it is written down."""

from __future__ import annotations

import torch


def head_mean(q: torch.Tensor, k: torch.Tensor, heads: int) -> torch.Tensor:
    """Head-mean of ``Softmax(Q K^T / sqrt(d))``: ``N C``, ``M C`` -> ``N M``."""
    parts = zip(q.chunk(heads, dim=-1), k.chunk(heads, dim=-1), strict=True)
    return torch.stack([(a @ b.T / a.shape[-1] ** 0.5).softmax(dim=-1) for a, b in parts]).mean(dim=0)
