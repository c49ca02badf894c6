"""RSA (Eq. 2) and RBA (Eq. 6): a picture's queries over its own keys and the references'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch

from ..attention import Part, attend_part
from ..masks import Grid


@dataclass(frozen=True)
class ReferenceKeys:
    """Keys that share one bias; weights and masks are already in them.

    Attributes:
        k, v: ``M C``. bias: added to their logits.
    """

    k: torch.Tensor
    v: torch.Tensor
    bias: float

    def attended_by(self, q: torch.Tensor, heads: int) -> Part:
        """Attention of ``1 n C`` queries over these keys, the bias in its mass."""
        return attend_part(q, self.k.to(q)[None], self.v.to(q)[None], heads).raised(self.bias)


#: Keys of one concept at one block, of one or several biases.
ConceptKeys = tuple[ReferenceKeys, ...]


def join_keys(parts: Sequence[ReferenceKeys]) -> ConceptKeys:
    """As few sets of keys as there are biases: what one call of the attention kernel takes."""
    by_bias: dict[float, list[ReferenceKeys]] = {}
    for part in parts:
        by_bias.setdefault(part.bias, []).append(part)
    return tuple(
        same[0]
        if len(same) == 1
        else ReferenceKeys(torch.cat([p.k for p in same]), torch.cat([p.v for p in same]), bias)
        for bias, same in by_bias.items()
    )


@dataclass(frozen=True)
class BlockKeys:
    """The references' keys at one block.

    Attributes:
        given: of every concept, its references' behind one another.
    """

    given: tuple[tuple[ReferenceKeys, ...], ...]

    @cached_property
    def concepts(self) -> tuple[ConceptKeys, ...]:
        """Joined concept by concept, for RBA."""
        return tuple(map(join_keys, self.given))

    @property
    def in_order(self) -> list[ReferenceKeys]:
        """All concepts' keys behind one another."""
        return [part for parts in self.given for part in parts]

    @cached_property
    def everything(self) -> ConceptKeys:
        """Joined over all concepts, for RSA."""
        return join_keys(self.in_order)


@dataclass(frozen=True)
class KeyTokens:
    """What the keys of all concepts at one block are, in the order of :attr:`BlockKeys.in_order`.

    Attributes:
        concept, reference: ``M`` int64, number of the concept and of the reference (from 1).
        token: ``M`` int64, its token in that reference's grid; -1 for a key that stands for all masked-out ones.
        grids: token grid of each reference, by number.
    """

    concept: torch.Tensor
    reference: torch.Tensor
    token: torch.Tensor
    grids: Mapping[int, Grid]


def _over(q: torch.Tensor, keys: ConceptKeys, heads: int) -> Part:
    """Attention of ``1 n C`` queries over a concept's keys."""
    first, *others = (part.attended_by(q, heads) for part in keys)
    for other in others:
        first = first.joined(other)
    return first


def _own(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, other_patch: torch.Tensor | None) -> Part:
    """Attention over the picture's own keys; another patch's takes the place of the plain one, with its mass."""
    own = attend_part(q, k, v, heads)
    return own if other_patch is None else Part(other_patch.to(q.dtype).reshape(own.out.shape), own.mass)


def rsa(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    heads: int,
    keys: BlockKeys,
    other_patch: torch.Tensor | None = None,
) -> torch.Tensor:
    """Reference-aware Self-Attention: ``Softmax(M . Q [K, K_1 .. K_N]^T / sqrt(d)) [V, V_1 .. V_N]``.

    Args:
        q, k, v: ``B N C``.
        heads: heads merged in C.
        keys: the references', shared by the batch.
        other_patch: ``B N C``, another patch's attention over the own keys; it takes the place of the plain one.

    Returns:
        ``B N C``.
    """
    own = _own(q, k, v, heads, other_patch)
    theirs = _over(q.reshape(1, -1, q.shape[-1]), keys.everything, heads)
    return own.blended(Part(theirs.out.view(own.out.shape), theirs.mass.reshape(own.mass.shape))).flatten(2)


@dataclass(frozen=True)
class Groups:
    """Which tokens of a batch look at which concept.

    Attributes:
        tokens: places in the flattened ``B N`` of all tokens with a concept, the first concept's first.
        counts: how many belong to each concept.
    """

    tokens: torch.Tensor
    counts: tuple[int, ...]

    def __len__(self) -> int:
        return sum(self.counts)


def rba(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    heads: int,
    keys: BlockKeys,
    groups: Groups,
    other_patch: torch.Tensor | None = None,
) -> torch.Tensor:
    """Region-grouped Blend Attention: group c attends ``[K, K_c]``, the background ``K``.

    Args:
        q, k, v, heads, keys, other_patch: see :func:`rsa`.
        groups: of all pictures together: concepts' keys are the same for every picture.

    Returns:
        ``B N C``.
    """
    own = _own(q, k, v, heads, other_patch)
    out, mass = own.out.flatten(0, 1), own.mass.flatten(0, 1)  # BN H D, BN H
    if not len(groups):
        return own.out.flatten(2)
    queries = q.reshape(-1, q.shape[-1]).index_select(0, groups.tokens)[None]  # 1 n C
    ends = list(accumulate(groups.counts))
    parts = [
        _over(queries[:, end - count : end], concept, heads)
        for concept, count, end in zip(keys.concepts, groups.counts, ends, strict=True)
        if count
    ]
    theirs = Part(*(x[0] if len(parts) == 1 else torch.cat(x, dim=1) for x in _columns(parts)))
    chosen = Part(out.index_select(0, groups.tokens), mass.index_select(0, groups.tokens))
    mixed = chosen.blended(Part(theirs.out.view(chosen.out.shape), theirs.mass.view(chosen.mass.shape)))
    return out.index_copy(0, groups.tokens, mixed).view(q.shape)


def _columns(parts: Sequence[Part]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    return [part.out for part in parts], [part.mass for part in parts]
