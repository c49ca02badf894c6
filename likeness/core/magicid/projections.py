"""Each cross-attention's own keys and values of identity tokens (decoupled cross-attention, Eq. 1)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..blocks import BlockId
from .attention import IdentityKeys, pack


class IdentityLayer(nn.Module):
    """``to_k`` and ``to_v`` of one cross-attention, without bias, as the text's are."""

    def __init__(self, context_width: int, width: int) -> None:
        super().__init__()
        self.to_k = nn.Linear(context_width, width, bias=False)
        self.to_v = nn.Linear(context_width, width, bias=False)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """``B L C`` -> keys and values, ``B L width``."""
        return self.to_k(tokens), self.to_v(tokens)


class IdentityAttention(nn.ModuleDict):
    """The identity layers of one network's cross-attentions, in execution order, under their blocks' names.

    Parameters are ``<block>.to_k.weight`` and ``<block>.to_v.weight`` with the block written ``down0_1_0``.

    Args:
        widths: per block the width of its attention, in execution order.
        context_width: C of the identity tokens.
    """

    def __init__(self, widths: Mapping[BlockId, int], context_width: int) -> None:
        super().__init__({block_key(b): IdentityLayer(context_width, width) for b, width in widths.items()})
        self.context_width = context_width

    @property
    def blocks(self) -> tuple[BlockId, ...]:
        """The blocks that have a layer, in execution order."""
        return tuple(block_of(key) for key in self)

    @property
    def widths(self) -> dict[BlockId, int]:
        """Width of each block's attention."""
        return {block_of(key): layer.to_k.out_features for key, layer in self.items()}

    def layer(self, block: BlockId) -> IdentityLayer:
        """The layer of a block."""
        return self[block_key(block)]

    def pack(self, block: BlockId, identities: Sequence[Tensor], heads: int) -> IdentityKeys:
        """Keys and values of N identities in a block.

        Args:
            identities: per identity its tokens ``B L_i C``, B the same for all.
            heads: of the block's attention.
        """
        layer = self.layer(block)
        if len({tokens.shape[1] for tokens in identities}) == 1:
            k, v = layer(torch.stack(list(identities), dim=1))  # B N L width
            k, v = (x.unflatten(-1, (heads, -1)).transpose(2, 3) for x in (k, v))
            return IdentityKeys(k, v)
        return pack([layer(tokens) for tokens in identities], heads)

    def start_from_text(self, keys: Mapping[BlockId, Tensor]) -> None:
        """Begin training: ``to_k`` as the text's (``width C`` per block), ``to_v`` zero, so that nothing changes."""
        with torch.no_grad():
            for block in self.blocks:
                layer = self.layer(block)
                layer.to_k.weight.copy_(keys[block])
                layer.to_v.weight.zero_()


def block_key(block: BlockId) -> str:
    """``down0.1.0`` as a module's name: ``down0_1_0``."""
    return str(block).replace(".", "_")


def block_of(key: str) -> BlockId:
    """The block of a name made by :func:`block_key`.

    Raises:
        ValueError: it is none.
    """
    name, attention, depth = key.split("_")
    section, level = (name, 0) if name == "mid" else (name.rstrip("0123456789"), int(name.lstrip("downup")))
    if section not in ("down", "mid", "up"):
        raise ValueError(f"{key!r} names no block")
    return BlockId(section, level, int(attention), int(depth))


def public_order(blocks: Iterable[BlockId]) -> list[BlockId]:
    """Blocks as IP-Adapter's files number them: encoder, decoder, then the middle (not execution order)."""
    return sorted(blocks, key=lambda b: (("down", "up", "mid").index(b.section), b))
