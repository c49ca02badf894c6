"""The shipped miniature on diffusers and transformers."""

from __future__ import annotations

import functools

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from ...miniature import models
from .persona import clip_text
from .pipeline import Pipeline
from .tokenizer import ClipTokenizerAdapter, load_tokenizer


@functools.cache
def miniature(layout: torch.memory_format = torch.channels_last) -> Pipeline:
    """The shipped miniature, loaded once.

    Args:
        layout: of the weights in memory. Layouts differ in rounding alone, which training makes visible.

    Raises:
        LikenessError: weights, or the package with CLIP's word pieces, are missing.
    """
    autoencoder = models.load_autoencoder().to(memory_format=layout)
    factor = autoencoder.scaling_factor
    return Pipeline(
        unet=load_unet().to(memory_format=layout),
        text=clip_text(load_text_encoder()),
        tokenizer=ClipTokenizerAdapter(load_tokenizer()),
        encode_image=lambda x: autoencoder.encode(x * 2 - 1) * factor,
        decode_image=lambda z: autoencoder.decode(z / factor) / 2 + 0.5,
        side=models.picture_size(),
        name="miniature",
        base={"family": "miniature"},
    )


def new_unet() -> UNet2DConditionModel:
    """An untrained UNet."""
    return UNet2DConditionModel(**models.UNET)


def new_text_encoder() -> CLIPTextModel:
    """An untrained text encoder whose embedding table comes from the fixed seed."""
    model = CLIPTextModel(CLIPTextConfig(**models.TEXT_ENCODER))
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(models.seeded_table())
    return model


def load_unet() -> UNet2DConditionModel:
    """The shipped UNet (fp32, evaluation mode, no gradients)."""
    model = new_unet()
    model.load_state_dict(models.unet_weights())
    return model.eval().requires_grad_(False)


def load_text_encoder() -> CLIPTextModel:
    """The shipped text encoder (fp32, evaluation mode, no gradients)."""
    model = new_text_encoder()
    load_text_weights(model, models.text_encoder_weights())
    return model.eval().requires_grad_(False)


def load_text_weights(model: CLIPTextModel, weights: dict[str, Tensor]) -> None:
    """Load ``text_model.`` keys whether or not this transformers version has the prefix."""
    prefixed = any(key.startswith("text_model.") for key in model.state_dict())
    model.load_state_dict(weights if prefixed else {k.removeprefix("text_model."): v for k, v in weights.items()})
