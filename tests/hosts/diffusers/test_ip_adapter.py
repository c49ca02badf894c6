"""Public identity weights beside diffusers' own IP-Adapter code, which loads the same file: tokens and noise agree."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import IPAdapterMaskProcessor

from likeness.core.attention import attend
from likeness.core.magicid.encoder import EncoderShape, FaceFeatures, build_encoder
from likeness.core.magicid.projections import public_order
from likeness.core.magicid.run import MagicIdRun, PlacedIdentity, project
from likeness.formats import identity as forms
from likeness.hosts.diffusers.common import transformer_blocks, unet_layout

C, SIDE, SIGMA = 16, 8, 5.0
DEEP = {"heads": 2, "depth": 4}  # diffusers takes the depth for granted
SHAPES = {
    forms.FACEID: EncoderShape("vector", C, 4, 6),
    forms.PORTRAIT: EncoderShape("vector", C, 16, 6),
    forms.FACEID_PLUS: EncoderShape("face", C, 4, 6, 10, **DEEP),
    forms.FACEID_PLUS_V2: EncoderShape("face", C, 4, 6, 10, **DEEP, shortcut=True),
    forms.PLUS_FACE: EncoderShape("resampler", C, 16, picture_width=10, inner=16, **DEEP),
    forms.FULL_FACE: EncoderShape("picture", C, 0, picture_width=10),
}
PICTURE_TOKENS = 257


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=SIDE, block_out_channels=(16, 32), cross_attention_dim=C, attention_head_dim=2, norm_num_groups=8,
        layers_per_block=1, down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
    ).eval().requires_grad_(False)  # fmt: skip


def cross(unet):
    return {block: unet.get_submodule(f"{path}.attn2") for path, block in transformer_blocks(unet)}


def file_of(unet, form):
    """An IP-Adapter file of random numbers: encoder and layers, numbered as the public ones."""
    torch.manual_seed(1)
    widths = {block: attn.to_k.out_features for block, attn in cross(unet).items()}
    adapter = {
        f"{2 * n + 1}.to_{kind}_ip.weight": torch.randn(widths[block], C) * 0.3
        for n, block in enumerate(public_order(widths))
        for kind in "kv"
    }
    return {"image_proj": build_encoder(SHAPES[form]).state_dict(), "ip_adapter": adapter}, widths


@dataclass
class Placed:
    """A processor that adds the identities of a call."""

    call: object
    block: object

    def __call__(self, attn, x, encoder_hidden_states=None, **_):
        q, context = attn.to_q(x), encoder_hidden_states
        text = attend(q, attn.to_k(context), attn.to_v(context), attn.heads)
        return attn.to_out[0](self.call.add(self.block, q, text, attn.heads))


def ours(unet, weights, widths, tokens, planes, x, text):
    people = [PlacedIdentity(t, torch.zeros(1, C), plane) for t, plane in zip(tokens, planes, strict=True)]
    run = MagicIdRun(project(weights.for_unet(widths, C), people), people, unet_layout(unet), (SIGMA, 0.0))
    call = run.begin(SIGMA, (True,) * len(x), (SIDE, SIDE))
    processors = dict(unet.attn_processors)
    processors |= {f"{path}.attn2.processor": Placed(call, block) for path, block in transformer_blocks(unet)}
    unet.set_attn_processor(processors)
    return unet(x, 500, encoder_hidden_states=text).sample


def theirs(unet, state, form, face, x, text, masks=None):
    unet._load_ip_adapter_weights([state])
    projection = unet.encoder_hid_proj.image_projection_layers[0]
    if SHAPES[form].kind == "face":
        projection.clip_embeds, projection.shortcut = face.picture[None], form == forms.FACEID_PLUS_V2
    given = face.picture if face.vector is None else face.vector
    tokens = projection(given)
    more = {"cross_attention_kwargs": {"ip_adapter_masks": [masks]}} if masks is not None else {}
    images = {"image_embeds": [given[None]]}
    return tokens, unet(x, 500, encoder_hidden_states=text, added_cond_kwargs=images, **more).sample


def seen(form, count):
    """What is known of some faces."""
    g, shape = torch.Generator().manual_seed(2), SHAPES[form]
    vector = torch.randn(count, shape.vector_width, generator=g) if shape.vector_width else None
    picture = torch.randn(count, PICTURE_TOKENS, shape.picture_width, generator=g) if shape.picture_width else None
    return FaceFeatures(vector, picture)


@pytest.mark.parametrize("form", SHAPES)
def test_the_same_file_gives_the_same_noise(unet, tmp_path, form):
    state, widths = file_of(unet, form)
    torch.save(state, tmp_path / "a.bin")
    weights, face = forms.load_identity_weights(tmp_path / "a.bin", form), seen(form, 1)
    g = torch.Generator().manual_seed(3)
    x, text = torch.randn(1, 4, SIDE, SIDE, generator=g), torch.randn(1, 7, C, generator=g)
    plain = unet(x, 500, encoder_hidden_states=text).sample
    mine = ours(unet, weights, widths, weights.encoder(face), [None], x, text)
    tokens, noise = theirs(unet, state, form, face, x, text)
    torch.testing.assert_close(weights.encoder(face), tokens, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mine, noise, rtol=1e-3, atol=1e-3)
    assert float((mine - plain).abs().max()) > 0.05


def test_masks_of_two_people_act_as_theirs(unet, tmp_path):
    """Their masks are sampled, ours pooled: on halves, which every grid divides, both are the same."""
    state, widths = file_of(unet, forms.FACEID)
    torch.save(state, tmp_path / "a.bin")
    weights, face = forms.load_identity_weights(tmp_path / "a.bin"), seen(forms.FACEID, 2)
    g = torch.Generator().manual_seed(3)
    x, text = torch.randn(1, 4, SIDE, SIDE, generator=g), torch.randn(1, 7, C, generator=g)
    left = torch.zeros(64, 64)
    left[:, :32] = 1
    mine = ours(unet, weights, widths, weights.encoder(face), [left, 1 - left], x, text)
    masks = IPAdapterMaskProcessor().preprocess([left, 1 - left], height=64, width=64)[:, 0][None]
    _, noise = theirs(unet, state, forms.FACEID, face, x, text, masks)
    torch.testing.assert_close(mine, noise, rtol=1e-3, atol=1e-3)
