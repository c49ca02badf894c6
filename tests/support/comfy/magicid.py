"""What the in-process MagicID tests share: identity weights for the tiny model, people, regions."""

from __future__ import annotations

from typing import Any

import torch
from support.comfy import tiny

from likeness.core.magicid.encoder import EncoderShape, build_encoder
from likeness.core.magicid.projections import public_order
from likeness.formats.identity import FACEID, IdentityWeights
from likeness.hosts.comfy.magicid import apply as magicid
from likeness.hosts.comfy.magicid.identities import Identities, Identity, LoadedWeights
from likeness.hosts.comfy.unet import read_unet

C = tiny.CONTEXT_WIDTH


def weights(model: Any, lora: bool = False) -> LoadedWeights:
    """FaceID weights of random numbers for the model, with a LoRA on every attention where wanted."""
    blocks = read_unet(model, "test")
    widths = magicid.attention_widths(model, blocks)
    g = torch.Generator().manual_seed(5)
    order = public_order(blocks.layout.blocks)
    layers = tuple(tuple(torch.randn(widths[b], C, generator=g) * 0.3 for _ in "kv") for b in order)
    inside = {}
    for number in range(2 * len(order)) if lora else ():
        width = widths[order[number // 2]]
        source = C if number % 2 else width
        for name, fan in (("q", width), ("k", source), ("v", source), ("out", width)):
            inside[f"{number}.to_{name}_lora.down.weight"] = torch.randn(2, fan, generator=g)
            inside[f"{number}.to_{name}_lora.up.weight"] = torch.randn(width, 2, generator=g)
    encoder = build_encoder(EncoderShape("vector", C, 4, 6))
    return LoadedWeights.of(IdentityWeights("test.bin", FACEID, encoder, layers, lora=inside))


def people(model: Any, *scales: float, **more: Any) -> Identities:
    """A person for each scale."""
    loaded = weights(model, **more)
    g = torch.Generator().manual_seed(6)
    made = [
        Identity(f"p{i}", torch.randn(4, C, generator=g), torch.randn(4, C, generator=g), loaded.key, scale)
        for i, scale in enumerate(scales)
    ]
    return Identities(loaded, tuple(made))


def halves() -> torch.Tensor:
    """The left and the right half of the picture, MASK."""
    left = torch.zeros(16, 16)
    left[:, :8] = 1
    return torch.stack([left, 1 - left])
