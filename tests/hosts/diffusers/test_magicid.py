"""MagicID on diffusers: what training computes is what sampling computes, and nothing changes without identities."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel

from likeness.core.magicid.encoder import EncoderShape, build_encoder
from likeness.core.magicid.run import MagicIdRun, PlacedIdentity, project
from likeness.core.schedule import stable_diffusion_alphas
from likeness.formats.magicid import MagicIdWeights, load_magicid, save_magicid
from likeness.hosts.diffusers.common import unet_layout
from likeness.hosts.diffusers.magicid import (
    MagicIdRequest,
    generate,
    identities,
    load_control,
    new_attention,
    new_control,
    training_host,
)
from likeness.hosts.diffusers.miniature import miniature
from likeness.training.magicid.attention import TrainingCall
from likeness.training.magicid.losses import clone_face_loss

WIDTH, SIDE = 16, 8


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=SIDE, block_out_channels=(32, 32, 64, 64), layers_per_block=1, cross_attention_dim=WIDTH,
        attention_head_dim=2, norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()  # fmt: skip


def told(seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    noisy = torch.randn(2, 4, SIDE, SIDE, generator=generator)
    return noisy, torch.tensor([800, 800]), torch.randn(2, 5, WIDTH, generator=generator)


def learnt(network, scale: float = 1.0):
    """Identity attention that does something."""
    attention = new_attention(network, WIDTH)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for layer in attention.values():
            layer.to_v.weight.copy_(torch.randn(layer.to_v.weight.shape, generator=generator) * scale)
    return attention


def test_fresh_attention_and_a_fresh_controlnet_change_nothing(unet):
    noisy, times, text = told()
    control = new_control(unet)
    with torch.no_grad():
        plain = unet(noisy, times, encoder_hidden_states=text).sample
        with training_host(unet, stable_diffusion_alphas(), control) as host:
            tokens, planes = torch.randn(2, 1, 3, WIDTH), torch.ones(2, 1, SIDE, SIDE)
            calls = {
                place: TrainingCall(new_attention(n, WIDTH), unet_layout(n), tokens, planes)
                for place, n in (("unet", unet), ("control", control))
            }
            out = host.predict(noisy, times, text, calls, control, torch.rand(2, 3, 8 * SIDE, 8 * SIDE))
    assert torch.allclose(out, plain, atol=1e-5)


def test_everything_is_put_back(unet):
    before, gradients = dict(unet.attn_processors), [p.requires_grad for p in unet.parameters()]
    with training_host(unet, stable_diffusion_alphas()):
        assert not any(p.requires_grad for p in unet.parameters())
    assert unet.attn_processors == before
    assert [p.requires_grad for p in unet.parameters()] == gradients


def test_training_computes_what_sampling_computes(unet):
    noisy, times, text = told()
    attention, layout = learnt(unet), unet_layout(unet)
    people, regions = torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(2)), torch.rand(2, SIDE, SIDE)
    placed = [PlacedIdentity(t, torch.zeros(1, WIDTH), r) for t, r in zip(people, regions, strict=True)]
    with torch.no_grad():
        with training_host(unet, stable_diffusion_alphas()) as host:
            call = TrainingCall(attention, layout, people.expand(2, -1, -1, -1), regions.expand(2, -1, -1, -1))
            trained = host.predict(noisy, times, text, {"unet": call})
            plain = host.predict(noisy, times, text, {})
        run = MagicIdRun(project(attention, placed), placed, layout, [10.0, 1.0, 0.0])
        with identities(unet, attention.blocks) as slot:
            slot.call = run.begin(10.0, [True, True], (SIDE, SIDE))
            sampled = unet(noisy, times, encoder_hidden_states=text).sample
    assert float((trained - plain).abs().max()) > 1e-2
    assert torch.allclose(trained, sampled, atol=1e-4)


def test_gradients_reach_encoder_attention_and_controlnet_only(unet):
    noisy, times, text = told()
    control = new_control(unet)
    attention = {"unet": learnt(unet), "control": learnt(control)}
    tokens = torch.randn(2, 1, 3, WIDTH, requires_grad=True)
    with torch.no_grad():
        for block in control.controlnet_down_blocks:
            block.weight.normal_(std=0.1)
    with training_host(unet, stable_diffusion_alphas(), control) as host:
        planes = torch.ones(2, 1, SIDE, SIDE)
        networks = {"unet": unet, "control": control}
        calls = {p: TrainingCall(attention[p], unet_layout(n), tokens, planes, True) for p, n in networks.items()}
        out = host.predict(noisy, times, text, calls, control, torch.rand(2, 3, 8 * SIDE, 8 * SIDE))
        out.square().mean().backward()
        assert all(p.grad is None for p in unet.parameters())
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in attention["unet"].parameters())
    assert control.controlnet_cond_embedding[1].weight.grad.abs().max() > 0 and tokens.grad.abs().max() > 0
    assert set(calls["control"].features) == set(unet_layout(control).blocks)


@pytest.mark.parametrize("place", ["unet", "control"])
def test_checkpointing_changes_no_gradient(unet, place):
    noisy, times, text = told()
    control = new_control(unet)
    network = {"unet": unet, "control": control}[place]
    attention, boxes = learnt(network), torch.tensor([[0.1, 0.1, 0.8, 0.8]] * 2)
    with torch.no_grad():
        for block in (*control.controlnet_down_blocks, control.controlnet_mid_block):
            block.weight.normal_(std=0.1)
    found = []
    for checkpointing in (False, True):
        attention.zero_grad()
        tokens = torch.randn(2, 1, 3, WIDTH, generator=torch.Generator().manual_seed(6)).requires_grad_(True)
        with training_host(unet, stable_diffusion_alphas(), control, checkpointing) as host:
            call = TrainingCall(attention, unet_layout(network), tokens, torch.ones(2, 1, SIDE, SIDE), keep=True)
            pose = torch.full((2, 3, 8 * SIDE, 8 * SIDE), 0.5)
            out = host.predict(noisy, times, text, {place: call}, control if place == "control" else None, pose)
            assert unet.is_gradient_checkpointing == checkpointing
            loss, _ = clone_face_loss(call.features, boxes)
            (out.square().mean() + loss).backward()
        assert not unet.is_gradient_checkpointing
        found.append([tokens.grad, *(p.grad.clone() for p in attention.parameters())])
    for plain, recomputed in zip(*found, strict=True):
        assert plain.abs().max() > 0 and torch.allclose(plain, recomputed, rtol=1e-4, atol=1e-9)


def test_half_precision_predicts_nearly_the_same(unet):
    noisy, times, text = told()
    control = new_control(unet)
    networks = {"unet": unet, "control": control}
    attention = {p: learnt(n) for p, n in networks.items()}
    out = []
    for enabled in (False, True):
        tokens = torch.randn(2, 1, 3, WIDTH, generator=torch.Generator().manual_seed(6)).requires_grad_(True)
        with (
            training_host(unet, stable_diffusion_alphas(), control) as host,
            torch.autocast("cpu", torch.bfloat16, enabled=enabled),
        ):
            planes, pose = torch.ones(2, 1, SIDE, SIDE), torch.full((2, 3, 8 * SIDE, 8 * SIDE), 0.5)
            calls = {p: TrainingCall(attention[p], unet_layout(n), tokens, planes) for p, n in networks.items()}
            predicted = host.predict(noisy, times, text, calls, control, pose).float()
        predicted.square().mean().backward()
        out.append((predicted.detach(), tokens.grad))
    assert not torch.equal(out[0][0], out[1][0])
    for full, half in zip(*out, strict=True):
        assert torch.cosine_similarity(full.flatten(), half.flatten(), dim=0) > 0.98


# --- the miniature ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights() -> MagicIdWeights:
    pipe = miniature()
    torch.manual_seed(0)
    control = new_control(pipe.unet)
    encoder = build_encoder(EncoderShape("vector", 128, 4, 128)).requires_grad_(False).eval()
    attention = {"unet": new_attention(pipe.unet, 128), "control": new_attention(control, 128)}
    return MagicIdWeights(encoder, attention, control.state_dict(), "miniature", ("landmarks",))


def test_untrained_weights_sample_what_vanilla_samples(weights, tmp_path):
    pipe, prompt = miniature(), "a picture of a woman wearing a red shirt, portrait, in a studio"
    back = load_magicid(save_magicid(weights, tmp_path / "mine"))
    one = PlacedIdentity(torch.randn(4, 128), torch.zeros(4, 128))
    request = MagicIdRequest([one], pose=torch.rand(3, 128, 128))
    control = load_control(pipe.unet, back)
    drawn = generate(pipe, back, prompt, [3], request, control, steps=2)
    vanilla = pipe.generate(prompt, [3], steps=2)
    assert torch.allclose(drawn, vanilla, atol=1e-3)
