"""Mask-guided multi-ID cross-attention (MGMICA, Alg. 1), of which decoupled cross-attention (Eq. 1) is one case.

``CA = CrossAttn(Q, F_text) + sum_i M_i * CrossAttn(Q, F_id^i)``: each identity has a softmax of its own over its own
tokens. What is added to the text's attention is computed here for all identities at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

#: Up to this many tokens of several identities the probabilities are formed, for one product to sum them; beyond it,
#: and for one identity, the fast kernel runs.
MAP_COLUMNS = 256


@dataclass(frozen=True)
class IdentityKeys:
    """Keys and values of N identities in one attention layer, padded to the longest.

    Attributes:
        k, v: ``B N H L D``; B may be 1 for rows that share them.
        valid: ``N L``, False where an identity has fewer tokens; None where all have L.
    """

    k: Tensor
    v: Tensor
    valid: Tensor | None = None

    @cached_property
    def laid(self) -> tuple[Tensor, Tensor, Tensor]:
        """All identities' tokens in a row: keys ``B H D (N L)``, values ``B H (N L) D``, what is added to logits."""
        k = self.k.permute(0, 2, 4, 1, 3).flatten(-2).contiguous()
        v = self.v.permute(0, 2, 1, 3, 4).flatten(2, 3).contiguous()
        bias = self.k.new_zeros(self.k.shape[1], self.k.shape[3])
        return k, v, (bias if self.valid is None else bias.masked_fill(~self.valid, float("-inf"))).flatten()

    def of(self, rows: Tensor) -> IdentityKeys:
        """The keys of some rows (an index ``R``), repeated or reordered."""
        return IdentityKeys(self.k[rows], self.v[rows], self.valid)

    def only(self, identities: Sequence[int]) -> IdentityKeys:
        """The keys of some identities."""
        if list(identities) == list(range(self.k.shape[1])):
            return self
        chosen = list(identities)
        valid = None if self.valid is None else self.valid[chosen]
        return IdentityKeys(self.k[:, chosen], self.v[:, chosen], valid)


def pack(keys: Sequence[tuple[Tensor, Tensor]], heads: int) -> IdentityKeys:
    """Lay identities of different token counts side by side.

    Args:
        keys: per identity its keys and its values, ``B L_i C`` both, in the attention layer's width.
        heads: number of heads merged in C.
    """
    counts = [k.shape[1] for k, _ in keys]
    longest = max(counts)

    def lay(parts: Sequence[Tensor]) -> Tensor:
        padded = torch.stack([F.pad(x, (0, 0, 0, longest - x.shape[1])) for x in parts], dim=1)  # B N L C
        return padded.unflatten(-1, (heads, -1)).transpose(2, 3).contiguous()  # B N H L D

    valid = None
    if min(counts) < longest:
        device = keys[0][0].device
        valid = torch.arange(longest, device=device) < torch.tensor(counts, device=device)[:, None]
    return IdentityKeys(lay([k for k, _ in keys]), lay([v for _, v in keys]), valid)


def mgmica(q: Tensor, keys: IdentityKeys, weights: Tensor) -> Tensor:
    """``sum_i w_i M_i * CrossAttn(Q, F_id^i)``: lines 2-6 of Alg. 1, without the text's part.

    Args:
        q: ``B H T D``, the queries of the text cross-attention.
        keys: of N identities, per row or shared.
        weights: ``B N T`` or ``1 N T``, each identity's mask at each query times its scale. One identity of weight 1
            everywhere is the second term of Eq. 1; zeros give exactly zero.

    Returns:
        ``B H T D``, to be added to the text's attention before the output projection.
    """
    identities, tokens = keys.k.shape[1], keys.k.shape[3]
    weights = weights.to(q.dtype)
    if identities == 1 or identities * tokens > MAP_COLUMNS:
        return _by_kernel(q, keys, weights)
    rows, heads, queries, width = q.shape
    bias = keys.laid[2]
    k, v = (x.expand(rows, *x.shape[1:]).flatten(0, 1) for x in keys.laid[:2])
    logits = torch.baddbmm(bias, q.flatten(0, 1), k, alpha=width**-0.5).view(rows, heads, queries, identities, tokens)
    # a mask that weighs an identity's output also weighs its probabilities, so one product sums all identities
    share = logits.softmax(dim=-1) * weights.transpose(1, 2)[:, None, :, :, None]
    return torch.bmm(share.flatten(0, 1).flatten(-2), v).view(rows, heads, queries, width)


def _by_kernel(q: Tensor, keys: IdentityKeys, weights: Tensor) -> Tensor:
    """The same through the fast kernel, identities in its batch; the map is never formed."""
    batch, identities = q.shape[0], keys.k.shape[1]
    # B N H T D, then one batch of B N
    q, k, v = (x.expand(batch, identities, *x.shape[2:]).flatten(0, 1) for x in (q[:, None], keys.k, keys.v))
    mask = None if keys.valid is None else keys.valid.repeat(batch, 1)[:, None, None]  # (B N) 1 1 L
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).unflatten(0, (batch, identities))
    weighted = out * weights[:, :, None, :, None]
    return weighted[:, 0] if identities == 1 else weighted.sum(dim=1)
