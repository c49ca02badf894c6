"""Encoders and identity layers: shapes, names, what zero inputs give."""

from __future__ import annotations

import pytest
import torch

from likeness.core.blocks import UNetLayout
from likeness.core.errors import LikenessError
from likeness.core.magicid.attention import mgmica
from likeness.core.magicid.encoder import EncoderShape, FaceFeatures, build_encoder
from likeness.core.magicid.projections import IdentityAttention, block_key, block_of, public_order

SD15 = UNetLayout.from_counts(((1, 1), (1, 1), (1, 1), ()), (1,), ((), (1, 1, 1), (1, 1, 1), (1, 1, 1)))
SDXL = UNetLayout.from_counts(((), (2, 2), (10, 10)), (10,), ((10, 10, 10), (2, 2, 2), ()))
SHAPES = [
    EncoderShape("vector", 12, 4, vector_width=6),
    EncoderShape("picture", 12, 0, picture_width=10),
    EncoderShape("resampler", 12, 5, vector_width=6, inner=16, heads=2, head_width=8, depth=2),
    EncoderShape("resampler", 12, 5, picture_width=10, inner=16, heads=2, head_width=8, depth=2),
    EncoderShape("face", 12, 4, vector_width=6, picture_width=10, heads=2, head_width=8, depth=2),
    EncoderShape("face", 12, 4, vector_width=6, picture_width=10, heads=2, head_width=8, depth=2, shortcut=True),
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.kind}-{bool(s.vector_width)}-{s.shortcut}")
def test_tokens_of_faces_and_of_nobody(shape):
    torch.manual_seed(0)
    encoder = build_encoder(shape)
    face = FaceFeatures(torch.randn(3, shape.vector_width), torch.randn(3, 7, shape.picture_width))
    tokens = encoder(face)
    assert tokens.shape == (3, shape.tokens or 7, 12)
    nobody = encoder.unconditional(torch.zeros(1, 7, shape.picture_width))
    assert nobody.shape == (1, shape.tokens or 7, 12)
    assert bool(nobody.any())
    assert EncoderShape(**shape.as_json()) == shape


def test_names_are_those_of_the_public_files():
    keys = set(build_encoder(SHAPES[4]).state_dict())
    layer = "perceiver_resampler.layers.0."
    assert {"proj.0.weight", "proj.2.bias", "norm.weight", "perceiver_resampler.proj_in.bias"} <= keys
    assert {layer + n for n in ("0.norm1.weight", "0.to_q.weight", "0.to_kv.weight", "0.to_out.weight")} <= keys
    assert {layer + n for n in ("1.0.weight", "1.1.weight", "1.3.weight")} <= keys
    assert "latents" in build_encoder(SHAPES[2]).state_dict()
    assert "proj.3.weight" in build_encoder(SHAPES[1]).state_dict()


def test_the_shortcut_adds_the_vectors_own_tokens():
    plain, short = build_encoder(SHAPES[4]), build_encoder(SHAPES[5])
    short.load_state_dict(plain.state_dict())
    face = FaceFeatures(torch.randn(1, 6), torch.randn(1, 7, 10))
    own = plain.norm(plain.proj(face.vector).view(1, 4, 12))
    short.shortcut_scale = 0.5
    assert torch.allclose(short(face), plain(face) + 0.5 * own)


def test_unknown_kind():
    with pytest.raises(LikenessError, match="kind 'other'"):
        build_encoder(EncoderShape("other", 12, 4))


@pytest.mark.parametrize("layout, count", [(SD15, 16), (SDXL, 70)], ids=["sd15", "sdxl"])
def test_public_numbering(layout, count):
    order = public_order(layout.blocks)
    assert len(order) == count and sorted(map(str, order)) == sorted(map(str, layout.blocks))
    assert {b.section for b in order[-len([b for b in order if b.section == "mid"]) :]} == {"mid"}
    assert all(block_of(block_key(b)) == b for b in order)


def test_the_middle_blocks_numbers():
    """SD1.5: 31; SDXL: 121-139."""
    sd15, sdxl = ([2 * n + 1 for n, b in enumerate(public_order(x.blocks)) if b.section == "mid"] for x in (SD15, SDXL))
    assert sd15 == [31] and sdxl == list(range(121, 140, 2))


@pytest.mark.parametrize("name", ["side0_0_0", "down_0_0", "down0_0"])
def test_names_of_no_block(name):
    with pytest.raises(ValueError):
        block_of(name)


@pytest.mark.parametrize("counts", [(4, 4), (4, 2)])
def test_identity_attention(counts):
    torch.manual_seed(0)
    layers = IdentityAttention(dict.fromkeys(SD15.blocks, 8), 12)
    assert layers.blocks == SD15.blocks
    tokens = [torch.randn(2, n, 12) for n in counts]
    block = SD15.blocks[3]
    keys = layers.pack(block, tokens, 2)
    assert keys.k.shape == (2, 2, 2, max(counts), 4)
    q = torch.randn(2, 2, 9, 4)
    alone = [mgmica(q, layers.pack(block, [t], 2), torch.ones(1, 1, 9)) for t in tokens]
    assert torch.allclose(mgmica(q, keys, torch.ones(1, 2, 9)), alone[0] + alone[1], atol=1e-6)


def test_training_starts_where_nothing_changes():
    layers = IdentityAttention(dict.fromkeys(SD15.blocks[:2], 8), 12)
    text = {b: torch.randn(8, 12) for b in layers.blocks}
    layers.start_from_text(text)
    _, v = layers.layer(SD15.blocks[1])(torch.randn(1, 4, 12))
    assert not v.any() and torch.equal(layers.layer(SD15.blocks[1]).to_k.weight, text[SD15.blocks[1]])
