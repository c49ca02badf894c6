"""The miniature's models: SD1.5's topology, narrower. Configs and weights, for any host.

Weights are fp16 safetensors in ``weights/``: ``autoencoder``; ``unet_encoder`` and ``unet_decoder`` (diffusers
keys, two files to keep each small); ``text_encoder`` (transformers keys under ``text_model.``; of the embedding table
only the rows that were trained, the others come from a seed). The picture size the UNet was last trained at is in its
files' metadata.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..core.errors import LikenessError
from .autoencoder import SCALING_FACTOR, Autoencoder

ROOT = Path(__file__).parent
WEIGHTS = ROOT / "weights"
#: What is made on the way and may be deleted: training checkpoints, the converted tokenizer.
STATE = ROOT.parents[1] / ".state"

VOCABULARY = 49408
BOS, EOS = 49406, 49407
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
UNET_FILES = ("unet_encoder", "unet_decoder")
TOKEN_TABLE = "text_model.embeddings.token_embedding.weight"


@functools.cache
def seeded_table() -> Tensor:
    """The embedding table before training, ``V C``."""
    generator = torch.Generator().manual_seed(EMBEDDING_SEED)
    return torch.randn(VOCABULARY, TEXT_WIDTH, generator=generator) * EMBEDDING_STD


def weights_file(name: str) -> Path:
    """Path of a shipped weights file.

    Raises:
        LikenessError: it is not there.
    """
    path = WEIGHTS / f"{name}.safetensors"
    if not path.exists():
        maker = f"miniature train {'unet' if name in (*UNET_FILES, 'text_encoder') else name}"
        raise LikenessError(
            f"Miniature: weights file {path.name} is missing; restore it from the repository or make it with: "
            f"python run.py {'magicid train' if name == 'magicid' else maker}"
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
    table = seeded_table().clone()
    table[rows.long()] = values
    return {**stored, TOKEN_TABLE: table}


def autoencoder_weights() -> dict[str, Tensor]:
    """The autoencoder's weights, fp32."""
    return {k: v.float() for k, v in load_file(weights_file("autoencoder")).items()}


def picture_size() -> int:
    """Side in pixels of the pictures the UNet was last trained on (128 or 256)."""
    with safe_open(weights_file(UNET_FILES[0]), "pt") as file:
        return int((file.metadata() or {}).get("picture_size", 256))


def load_autoencoder() -> Autoencoder:
    """The shipped autoencoder (fp32, evaluation mode, no gradients)."""
    model = Autoencoder()
    model.load_state_dict(autoencoder_weights())
    return model.eval().requires_grad_(False)
