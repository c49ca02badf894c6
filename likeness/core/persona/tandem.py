"""Tandem Equilibrium: the persona's words and the prompt's strongest word share the text encoder's attention.

PersonaMagic, "Face Customization With Tandem Equilibrium", Eq. 1: ``L_te = -phi(Att_S) phi(Att_max)``. No latent and no
UNet are involved: random prompts go through the text encoder, and the last layer's self-attention is recomputed from
its queries and keys, since fast attention kernels return no weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TandemConfig:
    """How the loss is scaled.

    Attributes:
        weight: factor of the loss; 0 switches it off.
        temperature: multiplies the attention before the two-way softmax.
        normalise: True divides each sum by heads x rows, so that the two sum to one (released code);
            False takes the plain sums (Eq. 1 as printed).
    """

    weight: float = 0.001
    temperature: float = 100.0
    normalise: bool = True

    @classmethod
    def literal(cls) -> TandemConfig:
        """Eq. 1 as printed: raw sums, weight 1. Some 10^5 times larger than the denoising loss."""
        return cls(weight=1.0, temperature=1.0, normalise=False)


def causal_attention(queries: Tensor, keys: Tensor) -> Tensor:
    """``B H L D`` queries and keys -> ``B H L L`` causal attention weights, in float32 or wider."""
    kind = torch.promote_types(queries.dtype, torch.float32)
    queries, keys = queries.to(kind), keys.to(kind)
    length = queries.shape[-2]
    scores = queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5
    future = torch.ones(length, length, dtype=torch.bool, device=queries.device).triu(1)
    return scores.masked_fill(future, float("-inf")).softmax(dim=-1)


def marked(positions: Sequence[Tensor], length: int) -> Tensor:
    """``B L`` bool, True at the positions of each prompt."""
    marks = torch.zeros(len(positions), length, dtype=torch.bool)
    for row, chosen in zip(marks, positions, strict=True):
        row[chosen] = True
    return marks


def strongest_column(attention: Tensor, candidates: Tensor) -> Tensor:
    """The candidate column that receives the most attention in all: ``B H R L``, ``B L`` bool -> ``B H R``."""
    totals = attention.detach().sum(dim=(1, 2)).masked_fill(~candidates, float("-inf"))  # B L
    column = totals.argmax(dim=1)[:, None, None, None]
    return attention.gather(3, column.expand(*attention.shape[:3], 1))[..., 0]


def tandem_shares(attention: Tensor, slots: Tensor, words: Tensor, config: TandemConfig) -> tuple[Tensor, Tensor]:
    """``phi(Att_S)`` and ``phi(Att_max)`` of each prompt, ``B`` both.

    Args:
        attention: ``B H R L`` (heads, query rows, key columns).
        slots: ``B L``, True at the persona's words.
        words: ``B L``, True at the prompt's other tokens, not at begin, end and padding.

    The two columns are the strongest of each kind, summed over all heads and all rows; each row's pair passes a
    two-way softmax. Rows that see neither (causality) count one half each.
    """
    mine, other = strongest_column(attention, slots), strongest_column(attention, words)
    share = torch.sigmoid(config.temperature * (mine - other))  # B H R
    first, second = share.sum(dim=(1, 2)), (1 - share).sum(dim=(1, 2))
    scale = share[0].numel() if config.normalise else 1
    return first / scale, second / scale


def tandem_loss(
    queries: Tensor, keys: Tensor, slots: Sequence[Tensor], words: Sequence[Tensor], config: TandemConfig
) -> Tensor:
    """Mean over the batch of ``-weight phi(Att_S) phi(Att_max)``; prompts with no word beside the persona count 0.

    Args:
        queries, keys: ``B H L D`` of the last layer.
        slots, words: positions per prompt, as in :class:`~.text.Layout`.
    """
    attention = causal_attention(queries, keys)
    marks = torch.stack([marked(positions, attention.shape[-1]) for positions in (slots, words)])
    mine, others = marks.to(attention.device, non_blocking=True)  # B L both
    product = torch.mul(*tandem_shares(attention, mine, others, config))
    return -config.weight * (product * others.any(dim=1)).mean()


def attention_weights(queries: Tensor, keys: Tensor) -> Tensor:
    """L2 norm over query rows of each key column, mean over heads: ``B H L D`` -> ``B L`` (the measure of Fig. 4/9)."""
    return causal_attention(queries, keys).mean(dim=1).norm(dim=1)
