"""Walks a CLIP text encoder block by block, so that its inside can be read and its outputs differentiated.

Works on any module tree with CLIP's names (``embeddings.token_embedding``, ``encoder.layers[i].self_attn.q_proj`` ...),
which transformers and ComfyUI share. Nothing is patched: the walk calls the submodules itself, out of place.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import bad_input


class ClipText:
    """A frozen CLIP text encoder as a :class:`~.text.TextEncoder`.

    Args:
        body: the module that has ``embeddings``, ``encoder`` and ``final_layer_norm``.
        skip: blocks left out at the end (1 for SDXL's penultimate layer, ``clip skip``).
        normalised: whether the UNet is conditioned on the output of the final norm.
        dtype: type of the activations; None takes float32.
    """

    def __init__(self, body: nn.Module, skip: int = 0, normalised: bool = True, dtype: torch.dtype | None = None):
        for name in ("embeddings", "encoder", "final_layer_norm"):
            if not hasattr(body, name):
                raise bad_input(
                    "Persona: text encoder", f"one without {name}", "a CLIP text encoder", "Use SD1.x to SDXL."
                )
        self.body = body
        self.blocks = list(body.encoder.layers)[: len(body.encoder.layers) - skip]
        self.normalised = normalised
        self.dtype = dtype or torch.float32
        first = self.blocks[0].self_attn
        self.heads = getattr(first, "num_heads", None) or first.heads
        self.length, width = body.embeddings.position_embedding.weight.shape
        self.widths = (width,)

    @property
    def modules(self) -> list[nn.Module]:
        """What has to be frozen."""
        return [self.body]

    def embed(self, ids: Tensor) -> Tensor:
        """``B L`` -> ``B L C``."""
        table = self.body.embeddings.token_embedding
        return table(ids.to(table.weight.device)).to(self.dtype)

    def _positions(self, embeddings: Tensor) -> Tensor:
        weight = self.body.embeddings.position_embedding.weight[: embeddings.shape[1]]
        return embeddings + weight.to(embeddings)

    def _heads(self, flat: Tensor) -> Tensor:
        batch, length, width = flat.shape
        return flat.view(batch, length, self.heads, width // self.heads).transpose(1, 2)  # B H L D

    def _block(self, block: nn.Module, x: Tensor) -> Tensor:
        attention, inner = block.self_attn, block.layer_norm1(x)
        q, k, v = (self._heads(project(inner)) for project in (attention.q_proj, attention.k_proj, attention.v_proj))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)  # B H L D
        x = x + attention.out_proj(mixed.transpose(1, 2).flatten(2))
        return x + block.mlp(block.layer_norm2(x))

    def hidden(self, embeddings: Tensor) -> Tensor:
        """``B L C`` -> ``B L C`` before the final norm."""
        x = self._positions(embeddings)
        for block in self.blocks:
            x = self._block(block, x)
        return x

    def final_norm(self, hidden: Tensor) -> Tensor:
        """The final norm, or the identity."""
        return self.body.final_layer_norm(hidden) if self.normalised else hidden

    def last_queries_keys(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys ``B H L D`` of the last block used."""
        x = self._positions(embeddings)
        for block in self.blocks[:-1]:
            x = self._block(block, x)
        last = self.blocks[-1]
        inner = last.layer_norm1(x)
        return self._heads(last.self_attn.q_proj(inner)), self._heads(last.self_attn.k_proj(inner))


class JointText:
    """Several encoders that read the same tokens and whose outputs are joined, as SDXL conditions its UNet.

    Args:
        encoders: in the order in which their outputs are joined.
        pads: per encoder the id that fills the sequence behind its end (SDXL's second one pads with 0).
        eos: the end token, behind which everything is padding.
    """

    def __init__(self, encoders: Sequence[ClipText], pads: Sequence[int], eos: int) -> None:
        self.encoders, self.pads, self.eos = list(encoders), list(pads), eos
        self.widths = tuple(width for encoder in encoders for width in encoder.widths)
        self.length = min(encoder.length for encoder in encoders)

    @property
    def modules(self) -> list[nn.Module]:
        """What has to be frozen."""
        return [module for encoder in self.encoders for module in encoder.modules]

    def padded(self, ids: Tensor, pad: int) -> Tensor:
        """``B L`` ids with another one behind the end of the text."""
        ended = (ids == self.eos).cumsum(dim=1)
        behind = (ended.cumsum(dim=1) > 1) & (ended > 0)
        return ids.masked_fill(behind, pad)

    def _split(self, joined: Tensor) -> tuple[Tensor, ...]:
        return joined.split([sum(encoder.widths) for encoder in self.encoders], dim=-1)

    def embed(self, ids: Tensor) -> Tensor:
        """``B L`` -> ``B L C``, ``C`` the sum of all widths."""
        pairs = zip(self.encoders, self.pads, strict=True)
        return torch.cat([encoder.embed(self.padded(ids, pad)) for encoder, pad in pairs], dim=-1)

    def hidden(self, embeddings: Tensor) -> Tensor:
        """``B L C`` -> ``B L C``."""
        pairs = zip(self.encoders, self._split(embeddings), strict=True)
        return torch.cat([encoder.hidden(part) for encoder, part in pairs], dim=-1)

    def final_norm(self, hidden: Tensor) -> Tensor:
        """Each encoder's own final norm."""
        pairs = zip(self.encoders, self._split(hidden), strict=True)
        return torch.cat([encoder.final_norm(part) for encoder, part in pairs], dim=-1)

    def last_queries_keys(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """All encoders' heads side by side (their heads are equally wide): ``B H L D`` each."""
        pairs = zip(self.encoders, self._split(embeddings), strict=True)
        queries, keys = zip(*(encoder.last_queries_keys(part) for encoder, part in pairs), strict=True)
        return torch.cat(queries, dim=1), torch.cat(keys, dim=1)
