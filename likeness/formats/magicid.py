"""Our own identity weights: one safetensors file that MMF training writes and the hosts read.

Prefixes: ``resampler.`` (the encoder), ``id_attn.unet.`` and ``id_attn.control.`` (identity layers by block name),
``control.`` (the Identity ControlNet in diffusers' keys). JSON metadata tells the structures, what the weights were
trained with, and the version of the form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..core.blocks import BlockId
from ..core.errors import LikenessError, bad_input
from ..core.magicid.encoder import EncoderShape, IdentityEncoder, build_encoder
from ..core.magicid.projections import IdentityAttention, block_key, block_of
from .files import write_whole

METADATA_KEY = "likeness"
KIND = "magicid"
VERSION = 1
PLACES = ("unet", "control")


@dataclass(frozen=True)
class MagicIdWeights:
    """Identity weights of our own training.

    Attributes:
        encoder: makes ``F_id``.
        attention: per place (:data:`PLACES`) its identity layers; either may be missing.
        control: the Identity ControlNet's state dict in diffusers' keys, empty without one.
        embedder: name of the face embedder whose vectors the encoder takes.
        modes: the pose conditions it was trained with (``"landmarks"``, ``"skeleton"``).
        steps: training steps.
        notes: whatever else the training tells; plain JSON values.
    """

    encoder: IdentityEncoder
    attention: Mapping[str, IdentityAttention]
    control: Mapping[str, Tensor] = field(default_factory=dict)
    embedder: str = ""
    modes: tuple[str, ...] = ()
    steps: int = 0
    notes: Mapping[str, Any] = field(default_factory=dict)


def save_magicid(weights: MagicIdWeights, path: str | Path, dtype: torch.dtype | None = None) -> Path:
    """Write the weights whole or not at all; ``dtype`` is what the tensors are stored in, None as they are."""
    path = Path(path)
    path = path if path.suffix == ".safetensors" else path.with_name(path.name + ".safetensors")
    parts = {"resampler": weights.encoder.state_dict(), "control": weights.control}
    parts |= {f"id_attn.{place}": layers.state_dict() for place, layers in weights.attention.items()}
    tensors = {
        f"{prefix}.{name}": value.detach().to("cpu", dtype or value.dtype).contiguous()
        for prefix, state in parts.items()
        for name, value in state.items()
    }
    write_whole(path, save(tensors, metadata={METADATA_KEY: json.dumps(_description(weights))}))
    return path


def _description(weights: MagicIdWeights) -> dict[str, Any]:
    return {
        "kind": KIND,
        "version": VERSION,
        "encoder": weights.encoder.shape.as_json(),
        "attention": {
            place: {block_key(block): width for block, width in layers.widths.items()}
            for place, layers in weights.attention.items()
        },
        "embedder": weights.embedder,
        "modes": list(weights.modes),
        "steps": weights.steps,
        "notes": dict(weights.notes),
    }


def read_description(path: str | Path) -> dict[str, Any] | None:
    """The metadata of our own form, or None where the file is of another form."""
    with safe_open(path, framework="pt") as file:
        told = (file.metadata() or {}).get(METADATA_KEY)
    described = json.loads(told) if told else {}
    return described if described.get("kind") == KIND else None


def load_magicid(path: str | Path) -> MagicIdWeights:
    """Read weights written by :func:`save_magicid`, in the type they are stored in.

    Raises:
        LikenessError: no such file, a truncated one, one of another form or of a newer version, or tensors that do not
            fit what the file tells of itself.
    """
    path = Path(path)
    source = f"Identity weights {path.name}"
    if not path.is_file():
        raise bad_input(source, "no such file", "an existing one", "Check name and folder.")
    try:
        described = read_description(path)
        if described is None:
            raise bad_input(source, "a file of another form", "weights of MagicID's training", "Pick another file.")
        if described["version"] > VERSION:
            raise bad_input(source, f"version {described['version']}", f"at most {VERSION}", "Update the pack.")
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _weights(tensors, described)
    except LikenessError:
        raise
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as cause:
        raise bad_input(source, f"a file that cannot be read ({cause})", "a whole file", "Copy it again.") from cause


def _weights(tensors: Mapping[str, Tensor], described: Mapping[str, Any]) -> MagicIdWeights:
    encoder = build_encoder(EncoderShape(**described["encoder"]))
    _fill(encoder, part(tensors, "resampler."))
    attention = {}
    for place, widths in described["attention"].items():
        blocks: dict[BlockId, int] = {block_of(key): width for key, width in widths.items()}
        attention[place] = IdentityAttention(blocks, encoder.shape.width)
        _fill(attention[place], part(tensors, f"id_attn.{place}."))
    return MagicIdWeights(
        encoder,
        attention,
        part(tensors, "control."),
        described["embedder"],
        tuple(described["modes"]),
        described["steps"],
        described["notes"],
    )


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _fill(module: torch.nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load strictly, keeping the stored type."""
    module.load_state_dict(dict(state), strict=True, assign=True)
    module.requires_grad_(False).eval()
