"""Writes models of diffusers' make under the key names of original checkpoints: SD1.x, SD2.x, SDXL (for tests)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
          "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
ENDS = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
        "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
OPEN_CLIP = {"embeddings.token_embedding": "token_embedding", "final_layer_norm": "ln_final",
             "encoder.layers": "transformer.resblocks", "layer_norm": "ln_", "self_attn": "attn", "fc1": "c_fc",
             "fc2": "c_proj"}


def unet_key(key: str, attentive: set[int]) -> str:
    """Key of a UNet weight; ``attentive``: the decoder levels with attention."""
    for ours, theirs in ENDS.items():
        if key.startswith(f"{ours}."):
            return key.replace(ours, theirs, 1)
    section, *rest = key.split(".")
    if section == "mid_block":
        kind, index, *tail = rest
        where = f"middle_block.{2 * int(index) if kind == 'resnets' else 1}"
    else:
        level, kind, index, *tail = rest
        where = _place(section, int(level), kind, int(index), int(level) in attentive)
        tail = ["op", *tail[1:]] if kind == "downsamplers" else tail
    if kind == "resnets":
        tail = [RESNET[tail[0]], *tail[1:]]
    return ".".join([where, *tail])


def _place(section: str, level: int, kind: str, index: int, attentive: bool) -> str:
    if section == "down_blocks":
        number = 3 * (level + 1) if kind == "downsamplers" else 3 * level + index + 1
        return f"input_blocks.{number}.{int(kind == 'attentions')}"
    if kind == "upsamplers":
        return f"output_blocks.{3 * level + 2}.{2 if attentive else 1}"
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


def open_clip(encoder: nn.Module) -> dict[str, Tensor]:
    """A text encoder's weights as OpenCLIP names them: query, key and value in one, the projection transposed."""
    weights = {k.removeprefix("text_model."): v for k, v in encoder.state_dict().items()}
    out = {"positional_embedding": weights.pop("embeddings.position_embedding.weight")}
    if "text_projection.weight" in weights:
        out["text_projection"] = weights.pop("text_projection.weight").T
    for key, value in weights.items():
        for ours, theirs in OPEN_CLIP.items():
            key = key.replace(ours, theirs)
        before, projection, kind = (key.rsplit(".", 2) if "_proj." in key else (key, "", ""))
        if projection in ("k_proj", "v_proj"):
            continue
        if projection == "q_proj":
            parts = [weights[k] for k in _qkv(before, kind)]
            key, value = f"{before}.in_proj_{kind}", torch.cat(parts)
        out[key] = value
    return out


def _qkv(place: str, kind: str) -> list[str]:
    layer = place.removeprefix("transformer.resblocks.").removesuffix(".attn")
    return [f"encoder.layers.{layer}.self_attn.{name}_proj.{kind}" for name in "qkv"]


def clip(encoder: nn.Module) -> dict[str, Tensor]:
    """A text encoder's weights as SD1.x has them."""
    return {f"transformer.text_model.{k.removeprefix('text_model.')}": v for k, v in encoder.state_dict().items()}


def write(
    path: Path, unet: nn.Module, vae: nn.Module, encoders: Mapping[str, Mapping[str, Tensor]],
    metadata: Mapping[str, str] | None = None, markers: Sequence[str] = (),
) -> None:
    """One checkpoint file; ``encoders``: prefix -> weights by :func:`clip` or :func:`open_clip`."""
    attentive = {i for i, block in enumerate(unet.up_blocks) if getattr(block, "attentions", None)}
    tensors = {f"model.diffusion_model.{unet_key(k, attentive)}": v for k, v in unet.state_dict().items()}
    tensors |= {f"first_stage_model.{k}": v for k, v in (vae_item(*item) for item in vae.state_dict().items())}
    tensors |= {f"{prefix}.{k}": v for prefix, weights in encoders.items() for k, v in weights.items()}
    tensors |= {marker: torch.zeros(1) for marker in markers}
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, dict(metadata or {}))
