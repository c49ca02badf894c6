"""A tiny host of SD1.5's topology with random weights, for persona tests."""

from __future__ import annotations

import re

import torch

from likeness.core.schedule import stable_diffusion_alphas
from likeness.hosts.diffusers.persona import clip_text
from likeness.hosts.diffusers.pipeline import Pipeline
from likeness.training.persona.photos import Photo, pooled_latent_embedding
from likeness.training.persona.request import PersonaTraining
from likeness.training.persona.trainer import PersonaTrainer

WIDTH = 32


class WordTokenizer:
    """One id per word, begin 0, end and padding 1; a word with a dash is two tokens."""

    bos, eos, pad, length = 0, 1, 1, 77

    def pieces(self, text: str) -> list[int]:
        return [2 + sum(map(ord, word)) % 250 for word in re.findall(r"\w+", text)]


def tiny_unet(seed: int = 0, **changes):
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
    config = {
        "sample_size": 8,
        "block_out_channels": (32, 64, 64, 64),
        "layers_per_block": 1,
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 4,
        "norm_num_groups": 32,
        **changes,
    }
    return UNet2DConditionModel(**config).eval()


def tiny_text(seed: int = 0, width: int = WIDTH, **changes):
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=256,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=width // 8,
        max_position_embeddings=77,
        bos_token_id=0,
        eos_token_id=1,
        **changes,
    )
    model = CLIPTextModel(config).eval()
    body = getattr(model, "text_model", model)
    with torch.no_grad():  # default init is so small that attention is flat: give it something to see
        for layer in body.encoder.layers:
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                projection.weight.normal_(std=0.3)
        body.embeddings.token_embedding.weight.normal_(std=0.2)
    return model


def alphas() -> torch.Tensor:
    return stable_diffusion_alphas().float()


def ddim_timesteps(steps: int) -> list[int]:
    """What a DDIM scheduler of Stable Diffusion samples at: 981, 961 ... 1 for 50 steps."""
    stride = 1000 // steps
    return [i * stride + 1 for i in reversed(range(steps))]


def tiny_host(seed: int = 0, **unet) -> Pipeline:
    return Pipeline(
        unet=tiny_unet(seed, **unet),
        text=clip_text(tiny_text(seed)),
        tokenizer=WordTokenizer(),
        encode_image=lambda x: torch.nn.functional.avg_pool2d(torch.cat([x, x[:, :1]], dim=1) * 2 - 1, 8),
        decode_image=lambda z: torch.nn.functional.interpolate(z[:, :3] / 2 + 0.5, scale_factor=8),
        side=64,
        base={"family": "tiny"},
    )


def photo(seed: int = 0, size: int = 8) -> Photo:
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(4, size, size, generator=generator)
    mask = torch.zeros(1, size, size)
    mask[:, 2:6, 2:6] = 1
    return Photo(latent, mask, image=pooled_latent_embedding(latent[None], 2)[0])


def config(**changes) -> PersonaTraining:
    return PersonaTraining(**{"steps": 4, "image_width": 16, "learning_rate": 1e-3, **changes})


def trainer(host: Pipeline | None = None, photos: int = 1, **changes) -> PersonaTrainer:
    return PersonaTrainer(config(**changes), host or tiny_host(), [photo(i) for i in range(photos)])
