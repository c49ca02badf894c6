"""The miniature's three models behave in ComfyUI as a checkpoint's do (random weights of the shipped shape)."""

from __future__ import annotations

import comfy.model_management
import comfy.sample
import comfy.samplers
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from likeness.core.errors import LikenessError
from likeness.hosts.comfy.miniature import models as miniature

UNET = {
    "sample_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (32, 64, 64, 64),
    "layers_per_block": 2,
    "cross_attention_dim": 48,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
}
TEXT = {
    "vocab_size": 49408,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "projection_dim": 48,
}


class Pyramid(nn.Module):
    """A first stage that keeps the mean colour of each 8 x 8 pixels: exact on flat pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        mean = nn.functional.avg_pool2d(pixels, 8) * self.gain
        return torch.cat([mean, mean.mean(1, keepdim=True)], dim=1)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return nn.functional.interpolate(latents[:, :3], scale_factor=8) / self.gain


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**UNET).eval()


@pytest.fixture(scope="module")
def model(unet: UNet2DConditionModel):
    return miniature.model_from_unet(unet.config, unet.state_dict(), miniature.MiniatureLatent(0.5))


@pytest.fixture(scope="module")
def text_encoder() -> CLIPTextModel:
    """In float32 with float16 weights: the host keeps text encoders in float16, as the shipped files are."""
    torch.manual_seed(1)
    return CLIPTextModel(CLIPTextConfig(**TEXT)).eval().half().float()


@pytest.fixture(scope="module")
def clip(text_encoder: CLIPTextModel):
    return miniature.clip_from_text_encoder(TEXT, text_encoder.state_dict())


def test_unet_gives_what_diffusers_gives(model, unet: UNet2DConditionModel) -> None:
    torch.manual_seed(2)
    latent, context = torch.randn(2, 4, 16, 24), torch.randn(2, 7, 48)
    steps = torch.tensor([3, 801])
    with torch.no_grad():
        expected = unet(latent, steps, context).sample
        got = model.model.diffusion_model(latent, steps, context)
    assert expected.std() > 1e-3
    assert (got - expected).abs().max() < 1e-5


def test_every_unet_weight_is_loaded(model, unet: UNet2DConditionModel) -> None:
    assert len(model.model.diffusion_model.state_dict()) == len(unet.state_dict())


def test_unknown_weights_are_refused(unet: UNet2DConditionModel) -> None:
    with pytest.raises(LikenessError, match="unknown keys"):
        miniature.model_from_unet(unet.config, {**unet.state_dict(), "stray.weight": torch.zeros(1)})


def test_widths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(LikenessError, match="multiples"):
        miniature.unet_config({**UNET, "block_out_channels": (32, 80, 80, 80)})


def test_clip_gives_what_transformers_gives(clip, text_encoder: CLIPTextModel) -> None:
    tokens = clip.tokenize("a portrait of a woman in a red hat")
    ids = torch.tensor([[token for token, _ in tokens["l"][0]]])
    with torch.no_grad():
        expected = text_encoder(ids).last_hidden_state
    got = clip.encode_from_tokens(tokens)
    assert got.shape == (1, 77, 48)
    assert (got - expected).abs().max() < 1e-5


def test_clip_understands_weights_long_prompts_and_skip(clip) -> None:
    plain = clip.encode_from_tokens(clip.tokenize("a red hat"))
    weighted = clip.encode_from_tokens(clip.tokenize("a (red:1.4) hat"))
    assert (plain - weighted).abs().max() > 1e-3
    assert clip.encode_from_tokens(clip.tokenize("snow " * 100)).shape == (1, 154, 48)
    skipped = clip.clone()
    skipped.clip_layer(-2)
    assert (skipped.encode_from_tokens(skipped.tokenize("a red hat")) - plain).abs().max() > 1e-3
    assert torch.equal(clip.encode_from_tokens(clip.tokenize("a red hat")), plain)


def test_clip_takes_an_embedding_of_its_own_width(clip, tmp_path) -> None:
    from safetensors.torch import save_file

    save_file({"clip_l": torch.randn(2, 48)}, tmp_path / "pal.safetensors")
    clip.tokenizer.clip_l.embedding_directory = [str(tmp_path)]
    tokens = clip.tokenize("a picture of embedding:pal")["l"][0]
    assert sum(torch.is_tensor(token) for token, _ in tokens) == 2


@torch.inference_mode()
def test_vae_round_trip_and_tiles() -> None:
    vae = miniature.MiniatureVAE(Pyramid())
    flat = torch.tensor([0.9, 0.25, 0.5]).expand(2, 72, 104, 3)
    latents = vae.encode(flat)
    assert latents.shape == (2, 4, 9, 13)
    assert (vae.decode(latents) - flat).abs().max() < 1e-6
    tiled = vae.decode_tiled(vae.encode_tiled(flat, tile_x=64, tile_y=64, overlap=16), tile_x=8, tile_y=8, overlap=2)
    assert (tiled - flat).abs().max() < 1e-5
    assert vae.patcher.model_size() > 0


def test_preview_colours_show_the_colour() -> None:
    factors, bias = miniature.preview_colours(Pyramid(), 0.5)
    latent = Pyramid().encode(torch.tensor([0.6, -0.2, 0.1])[None, :, None, None].expand(1, 3, 8, 8)) * 0.5
    colour = latent[0, :, 0, 0] @ torch.tensor(factors) + torch.tensor(bias)
    assert torch.allclose(colour, torch.tensor([0.6, -0.2, 0.1]), atol=1e-4)


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m_sde", "uni_pc"])
def test_samples_through_the_hosts_sampler(model, clip, sampler: str) -> None:
    def run() -> torch.Tensor:
        cond = clip.encode_from_tokens_scheduled(clip.tokenize("snow"))
        empty = clip.encode_from_tokens_scheduled(clip.tokenize(""))
        latent = torch.zeros(1, 4, 9, 13)
        noise = comfy.sample.prepare_noise(latent, 7)
        return comfy.sample.sample(model, noise, 4, 6.0, sampler, "normal", cond, empty, latent, seed=7)

    first = run()
    assert first.shape == (1, 4, 9, 13)
    assert torch.isfinite(first).all()
    assert torch.equal(run(), first)


def test_host_can_unload_everything(model) -> None:
    comfy.model_management.unload_all_models()
    assert not comfy.model_management.current_loaded_models
