"""RSA (Eq. 2) and RBA (Eq. 6): a picture's queries over its own keys and the references'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..attention import attend, attend_split, blend_split
from ..masks import Grid


@dataclass(frozen=True)
class ReferenceKeys:
    """Keys of one concept at one block, weights and masks already in them.

    Attributes:
        k, v: ``M C``.
        bias: ``M`` float32, added to the logits.
    """

    k: torch.Tensor
    v: torch.Tensor
    bias: torch.Tensor

    @staticmethod
    def join(parts: Sequence[ReferenceKeys]) -> ReferenceKeys:
        """All keys of several concepts behind one another."""
        if len(parts) == 1:
            return parts[0]
        return ReferenceKeys(
            torch.cat([p.k for p in parts]), torch.cat([p.v for p in parts]), torch.cat([p.bias for p in parts])
        )


@dataclass(frozen=True)
class KeyTokens:
    """What the keys of all concepts at one block are, in their order.

    Attributes:
        reference: ``M`` int64, number of the reference (from 1). token: ``M`` int64, its token in that reference's
            grid; -1 for a key that stands for all masked-out ones. grids: token grid of each reference, by number.
    """

    reference: torch.Tensor
    token: torch.Tensor
    grids: Mapping[int, Grid]


def _extended(k: torch.Tensor, v: torch.Tensor, keys: ReferenceKeys) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``[K, K_ref]``, ``[V, V_ref]`` (``B N+M C``) and the bias of all of them (``N+M``)."""
    batch, own, _ = k.shape
    k_all = torch.cat([k, keys.k.to(k).expand(batch, -1, -1)], dim=1)
    v_all = torch.cat([v, keys.v.to(v).expand(batch, -1, -1)], dim=1)
    return k_all, v_all, torch.cat([keys.bias.new_zeros(own), keys.bias])


def reference_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    heads: int,
    keys: ReferenceKeys,
    other_patch: torch.Tensor | None = None,
) -> torch.Tensor:
    """Every query attends its own picture's keys and ``keys``.

    Args:
        q: ``B N' C``, any number of queries. k, v: ``B N C``.
        heads: heads merged in C.
        keys: the references' keys, shared by the batch.
        other_patch: ``B N' C``, another patch's attention over the own keys; it takes the place of the plain one.
    """
    k_all, v_all, bias = _extended(k, v, keys)
    if other_patch is not None:
        part, mass = attend_split(q, k_all, v_all, heads, bias, own=k.shape[1])
        return blend_split(other_patch, part, mass)
    return attend(q, k_all, v_all, heads, bias)


def rsa(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    heads: int,
    concepts: Sequence[ReferenceKeys],
    other_patch: torch.Tensor | None = None,
) -> torch.Tensor:
    """Reference-aware Self-Attention: ``Softmax(M . Q [K, K_1 .. K_N]^T / sqrt(d)) [V, V_1 .. V_N]``, ``B N C``."""
    return reference_attention(q, k, v, heads, ReferenceKeys.join(concepts), other_patch)


Groups = Sequence[tuple[int, torch.Tensor]]
"""Of one picture: (label, indices of its tokens); label 0 is the background, c the c-th concept."""


def group_tokens(labels: torch.Tensor) -> Groups:
    """The groups of one picture's flattened labels (``N`` int64)."""
    return [(int(label), (labels == label).nonzero().flatten()) for label in labels.unique()]


def rba(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    heads: int,
    concepts: Sequence[ReferenceKeys],
    groups: Sequence[Groups],
    other_patch: torch.Tensor | None = None,
) -> torch.Tensor:
    """Region-grouped Blend Attention: group c attends ``[K, K_c]``, the background ``K``.

    Args:
        q, k, v: ``B N C``.
        concepts: keys per concept, concept c at index c - 1.
        groups: per picture its groups, see :func:`group_tokens`.
        other_patch: see :func:`reference_attention`.
    """
    out = torch.empty_like(q)
    for row, row_groups in enumerate(groups):
        own = slice(row, row + 1)
        for label, tokens in row_groups:
            queries = q[own, tokens]  # 1 n C
            theirs = None if other_patch is None else other_patch[own, tokens]
            if label == 0:
                result = attend(queries, k[own], v[own], heads) if theirs is None else theirs
            else:
                result = reference_attention(queries, k[own], v[own], heads, concepts[label - 1], theirs)
            out[own, tokens] = result
    return out
