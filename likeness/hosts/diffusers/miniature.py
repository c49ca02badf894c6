"""The shipped miniature on diffusers and transformers."""

from __future__ import annotations

import functools

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from ...miniature import models
from ...miniature.models import TEXT_ENCODER, UNET, seeded_table, text_encoder_weights, unet_weights
from .persona import ClipTokenizerAdapter, PersonaHost, clip_text
from .pipeline import Pipeline, load_text_weights, scheduler
from .tokenizer import load_tokenizer


def miniature_host() -> tuple[PersonaHost, int]:
    """The shipped miniature and its picture size in pixels."""
    autoencoder, unet = models.load_autoencoder(), load_unet()
    scale = autoencoder.scaling_factor
    host = PersonaHost(
        unet=unet,
        text=clip_text(load_text_encoder()),
        tokenizer=ClipTokenizerAdapter(load_tokenizer()),
        encode_image=lambda x: autoencoder.encode(x * 2 - 1) * scale,
        decode_image=lambda z: autoencoder.decode(z / scale) / 2 + 0.5,
        alphas_cumprod=scheduler().alphas_cumprod,
        base={"family": "miniature"},
    )
    return host, models.picture_size()


def new_unet() -> UNet2DConditionModel:
    """An untrained UNet."""
    return UNet2DConditionModel(**UNET)


def new_text_encoder() -> CLIPTextModel:
    """An untrained text encoder whose embedding table comes from the fixed seed."""
    model = CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER))
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(seeded_table())
    return model


def load_unet() -> UNet2DConditionModel:
    """The shipped UNet (fp32, evaluation mode, no gradients)."""
    model = new_unet()
    model.load_state_dict(unet_weights())
    return model.eval().requires_grad_(False)


def load_text_encoder() -> CLIPTextModel:
    """The shipped text encoder (fp32, evaluation mode, no gradients)."""
    model = new_text_encoder()
    load_text_weights(model, text_encoder_weights())
    return model.eval().requires_grad_(False)


@functools.cache
def miniature() -> Pipeline:
    """The shipped miniature, loaded once."""
    autoencoder = models.load_autoencoder().to(memory_format=torch.channels_last)
    factor = autoencoder.scaling_factor
    return Pipeline(
        unet=load_unet().to(memory_format=torch.channels_last),
        text_encoder=load_text_encoder(),
        encode_latent=lambda x: autoencoder.encode(x) * factor,
        decode_latent=lambda z: autoencoder.decode(z / factor),
        side=models.picture_size(),
        name="miniature",
    )
