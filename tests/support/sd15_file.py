"""Writes models of diffusers' make under the key names of the original SD1.x checkpoints (for tests)."""

from __future__ import annotations

import re
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
          "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
ENDS = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
        "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}


def unet_key(key: str) -> str:
    """Key of a UNet weight."""
    for ours, theirs in ENDS.items():
        if key.startswith(f"{ours}."):
            return key.replace(ours, theirs, 1)
    section, *rest = key.split(".")
    if section == "mid_block":
        kind, index, *tail = rest
        where = f"middle_block.{2 * int(index) if kind == 'resnets' else 1}"
    else:
        level, kind, index, *tail = rest
        where = _place(section, int(level), kind, int(index))
        tail = ["op", *tail[1:]] if kind == "downsamplers" else tail
    if kind == "resnets":
        tail = [RESNET[tail[0]], *tail[1:]]
    return ".".join([where, *tail])


def _place(section: str, level: int, kind: str, index: int) -> str:
    if section == "down_blocks":
        number = 3 * (level + 1) if kind == "downsamplers" else 3 * level + index + 1
        return f"input_blocks.{number}.{int(kind == 'attentions')}"
    if kind == "upsamplers":
        return f"output_blocks.{3 * level + 2}.{1 if level == 0 else 2}"
    return f"output_blocks.{3 * level + index}.{int(kind == 'attentions')}"


def vae_item(key: str, value: Tensor, levels: int = 4) -> tuple[str, Tensor]:
    """Key and value of an autoencoder weight (attention was made of 1x1 convolutions)."""
    key = re.sub(r"down_blocks\.(\d)\.resnets\.", r"down.\1.block.", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0\.", r"down.\1.downsample.", key)
    key = re.sub(r"up_blocks\.(\d)\.resnets\.", lambda m: f"up.{levels - 1 - int(m[1])}.block.", key)
    key = re.sub(r"up_blocks\.(\d)\.upsamplers\.0\.", lambda m: f"up.{levels - 1 - int(m[1])}.upsample.", key)
    key = re.sub(r"mid_block\.resnets\.(\d)\.", lambda m: f"mid.block_{int(m[1]) + 1}.", key)
    key = key.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    if "mid_block.attentions.0" in key:
        key = key.replace("mid_block.attentions.0", "mid.attn_1")
        for ours, theirs in ATTENTION.items():
            key = key.replace(ours, theirs)
        value = value[:, :, None, None] if value.ndim == 2 else value
    return key, value


def write(path: Path, unet: nn.Module, vae: nn.Module, text_encoder: nn.Module) -> None:
    """One checkpoint file of the three models."""
    tensors = {f"model.diffusion_model.{unet_key(k)}": v for k, v in unet.state_dict().items()}
    for key, value in vae.state_dict().items():
        key, value = vae_item(key, value)
        tensors[f"first_stage_model.{key}"] = value
    for key, value in text_encoder.state_dict().items():
        tensors[f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}"] = value
    save_file({k: v.contiguous() for k, v in tensors.items()}, path)
