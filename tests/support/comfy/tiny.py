"""A very small SD1.5-shaped model with random weights, as ComfyUI's MODEL, CLIP and VAE: real classes, quick runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.samplers
import torch
from torch import nn

from likeness.hosts.comfy.miniature import models as miniature

CONTEXT_WIDTH = 32
#: diffusers' names; SD1.5's topology with 16 transformer blocks.
UNET = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (32, 64, 64, 64),
    "layers_per_block": 2,
    "cross_attention_dim": CONTEXT_WIDTH,
    "attention_head_dim": 2,
    "norm_num_groups": 32,
}
#: For :func:`diffusers_unet`: two levels, four transformer blocks, where depth does not matter.
TWO_LEVELS = {
    "layers_per_block": 1,
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
TEXT = {
    "vocab_size": 49408,
    "hidden_size": CONTEXT_WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "eos_token_id": 49407,
    "bos_token_id": 49406,
    "pad_token_id": 49407,
    "layer_norm_eps": 1e-5,
    "num_positions": 77,
    "projection_dim": CONTEXT_WIDTH,
}


class Autoencoder(nn.Module):
    """Eight-fold averaging and two fixed matrices: enough of an autoencoder to carry colours."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.into = nn.Parameter(torch.randn(4, 3, 1, 1, generator=generator), requires_grad=False)
        self.back = nn.Parameter(torch.randn(3, 4, 1, 1, generator=generator), requires_grad=False)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(nn.functional.avg_pool2d(pixels, 8), self.into)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return nn.functional.interpolate(nn.functional.conv2d(latents, self.back), scale_factor=8)


def diffusers_unet(seed: int = 0, **config: Any) -> Any:
    """The UNet as diffusers makes it; attention weights enlarged so that attention has something to say."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
    unet = UNet2DConditionModel(**{**UNET, **config}).eval().requires_grad_(False)
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if any(part in name for part in ("to_q", "to_k")):
                weight.mul_(4)
    return unet


def model(unet: Any | None = None) -> Any:
    """ComfyUI's MODEL with the weights of ``unet`` (a fresh one when None), told to be 128 pixels wide by nature."""
    unet = unet or diffusers_unet()
    patcher = miniature.model_from_unet({name: unet.config[name] for name in UNET}, unet.state_dict())
    patcher.set_attachments("likeness_native_side", 128)
    return patcher


def in_float64(patcher: Any) -> Any:
    """The same MODEL, computing in float64.

    Random weights amplify rounding without bound: in float32 the same rows of a larger batch can come out 1% apart,
    and by how much is the processor's choice.
    """
    unet = patcher.model.diffusion_model
    unet.to(torch.float64)
    unet.dtype = torch.float64
    return patcher


def clip() -> Any:
    """ComfyUI's CLIP with random weights and CLIP's own tokenizer."""
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(1)
    encoder = CLIPTextModel(CLIPTextConfig(**TEXT)).eval()
    return miniature.clip_from_text_encoder(TEXT, encoder.state_dict())


def vae() -> Any:
    """ComfyUI's VAE round :class:`Autoencoder`."""
    return miniature.MiniatureVAE(Autoencoder())


def noise(size: tuple[int, int] = (16, 16), batch: int = 1, seed: int = 0) -> torch.Tensor:
    """Starting noise ``B 4 h w``; picture i of a batch has the noise a single picture has with seed + i."""
    generators = [torch.Generator().manual_seed(seed + i) for i in range(batch)]
    return torch.stack([torch.randn((4, *size), generator=generator) for generator in generators])


def sample(
    patcher: Any,
    positive: list,
    negative: list,
    *,
    size: tuple[int, int] = (16, 16),
    batch: int = 1,
    steps: int = 3,
    cfg: float = 5.0,
    sampler: str = "euler",
    scheduler: str = "normal",
    seed: int = 0,
    latent: torch.Tensor | None = None,
    callback: Any = None,
    levels: Callable[[torch.Tensor], torch.Tensor] = lambda sigmas: sigmas,
) -> torch.Tensor:
    """Sample as the KSampler node does, its noise levels changed by ``levels``; latents ``B 4 h w``."""
    start = noise(size, batch, seed)
    latent = torch.zeros_like(start) if latent is None else latent
    with torch.inference_mode():
        run = comfy.samplers.KSampler(
            patcher, steps, patcher.load_device, sampler, scheduler, 1.0, patcher.model_options
        )
        made = run.sample(
            start, positive, negative, cfg, latent, sigmas=levels(run.sigmas), disable_pbar=True, seed=seed,
            callback=callback,
        )  # fmt: skip
        return made.clone()
