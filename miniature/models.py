"""The miniature's models: SD1.5's topology, narrower. Configs, loading, saving.

Weights are fp16 safetensors in ``miniature/weights``: ``autoencoder``; ``unet_encoder`` and ``unet_decoder`` (diffusers
keys, two files to keep each small); ``text_encoder`` (transformers keys under ``text_model.``; of the embedding table
only the rows that were trained, the others come from a seed). The picture size the UNet was last trained at is in its
files' metadata.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from ..core.errors import LikenessError
from .autoencoder import SCALING_FACTOR, Autoencoder
from .tokenizer import BOS, EOS, VOCABULARY, load_tokenizer
from .training import WEIGHTS

TEXT_WIDTH = 128
EMBEDDING_SEED = 20261
EMBEDDING_STD = 0.02

UNET = {
    "sample_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (64, 64, 128, 128),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": TEXT_WIDTH,
    "attention_head_dim": 4,  # the number of heads, by diffusers' historical naming
    "norm_num_groups": 32,
}
TEXT_ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 4 * TEXT_WIDTH,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": EOS,
    "projection_dim": TEXT_WIDTH,
}
AUTOENCODER = {"scaling_factor": SCALING_FACTOR}
SCHEDULE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
UNET_FILES = ("unet_encoder", "unet_decoder")
_DECODER_KEYS = ("up_blocks.", "conv_norm_out.", "conv_out.")
_TABLE = "text_model.embeddings.token_embedding.weight"


def new_unet() -> UNet2DConditionModel:
    """An untrained UNet."""
    return UNet2DConditionModel(**UNET)


def new_text_encoder() -> CLIPTextModel:
    """An untrained text encoder whose embedding table comes from the fixed seed."""
    model = CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER))
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(_seeded_table())
    return model


@functools.cache
def _seeded_table() -> Tensor:
    """The embedding table before training, ``V C``."""
    generator = torch.Generator().manual_seed(EMBEDDING_SEED)
    return torch.randn(VOCABULARY, TEXT_WIDTH, generator=generator) * EMBEDDING_STD


def weights_file(name: str, folder: Path = WEIGHTS) -> Path:
    """Path of a shipped weights file.

    Raises:
        LikenessError: it is not there.
    """
    path = folder / f"{name}.safetensors"
    if not path.exists():
        raise LikenessError(
            f"Miniature: weights file {path.name} is missing; restore it from the repository or make it with: "
            f"python run.py train {'unet' if name in (*UNET_FILES, 'text_encoder') else name}"
        )
    return path


def unet_weights() -> dict[str, Tensor]:
    """The UNet's weights, fp32, diffusers keys."""
    parts = [load_file(weights_file(name)) for name in UNET_FILES]
    return {k: v.float() for part in parts for k, v in part.items()}


def text_encoder_weights() -> dict[str, Tensor]:
    """The text encoder's weights, fp32, ``text_model.`` keys, the whole embedding table."""
    stored = {k: v.float() if v.is_floating_point() else v for k, v in load_file(weights_file("text_encoder")).items()}
    rows, values = stored.pop("rows"), stored.pop("row_values")
    table = _seeded_table().clone()
    table[rows.long()] = values
    return {**stored, _TABLE: table}


def autoencoder_weights() -> dict[str, Tensor]:
    """The autoencoder's weights, fp32."""
    return {k: v.float() for k, v in load_file(weights_file("autoencoder")).items()}


def picture_size() -> int:
    """Side in pixels of the pictures the UNet was last trained on (128 or 256)."""
    with safe_open(weights_file(UNET_FILES[0]), "pt") as file:
        return int((file.metadata() or {}).get("picture_size", 256))


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


def load_autoencoder() -> Autoencoder:
    """The shipped autoencoder (fp32, evaluation mode, no gradients)."""
    model = Autoencoder()
    model.load_state_dict(autoencoder_weights())
    return model.eval().requires_grad_(False)


def scheduler() -> DDIMScheduler:
    """The noise schedule (SD1.5's), as a DDIM scheduler."""
    return DDIMScheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=False, steps_offset=1)


def load_text_weights(model: CLIPTextModel, weights: dict[str, Tensor]) -> None:
    """Load ``text_model.`` keys whether or not this transformers version has the prefix."""
    prefixed = any(key.startswith("text_model.") for key in model.state_dict())
    model.load_state_dict(weights if prefixed else {k.removeprefix("text_model."): v for k, v in weights.items()})


def save_unet(weights: dict[str, Tensor], size: int, **metadata: object) -> None:
    """Write UNet weights as fp16 with the picture size they were trained at."""
    WEIGHTS.mkdir(exist_ok=True)
    meta = {"picture_size": str(size), **{k: json.dumps(v) for k, v in metadata.items()}}
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in UNET_FILES}
    for key, value in weights.items():
        parts[UNET_FILES[key.startswith(_DECODER_KEYS)]][key] = value.detach().cpu().half().contiguous()
    for name, part in parts.items():
        save_file(part, WEIGHTS / f"{name}.safetensors", meta)


def save_text_encoder(weights: dict[str, Tensor]) -> None:
    """Write text encoder weights as fp16; of the embedding table only the rows that differ from the seeded ones."""
    WEIGHTS.mkdir(exist_ok=True)
    keyed = {f"text_model.{k.removeprefix('text_model.')}": v.detach().cpu() for k, v in weights.items()}
    keyed = {k: v for k, v in keyed.items() if not k.endswith("position_ids")}
    table = keyed.pop(_TABLE)
    rows = (table - _seeded_table()).abs().amax(dim=1).gt(1e-6).nonzero().flatten()
    out = {k: v.half().contiguous() for k, v in keyed.items()}
    out |= {"rows": rows.int(), "row_values": table[rows].half().contiguous()}
    save_file(out, WEIGHTS / "text_encoder.safetensors")


def tokenize(captions: list[str]) -> Tensor:
    """Token ids ``B 77``."""
    tokenizer = load_tokenizer()
    return tokenizer(captions, padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids
