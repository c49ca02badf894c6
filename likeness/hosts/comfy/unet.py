"""ComfyUI's UNet: its transformer blocks under the pack's block numbers, and attention replaces for one call.

ComfyUI keeps one replace per block and the last one set wins. So nothing of ours is left in a model: for each call
the options are copied, and our replace is put before whatever replace is found there at that moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from comfy.cldm.cldm import ControlNet as ControlNetwork
from comfy.ldm.modules.attention import SpatialTransformer, SpatialVideoTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, ResBlock, UNetModel, Upsample
from comfy.model_base import SDXL

from ...core.blocks import BlockId, UNetLayout
from ...core.errors import bad_input

#: ``("input" | "middle" | "output", index of the UNet's block, index of the transformer block)``.
Address = tuple[str, int, int]
#: ``(q, k, v, extra_options) -> out``, all ``B N C``: ComfyUI's attention replace.
Replace = Callable[..., Any]


@dataclass(frozen=True)
class UNetBlocks:
    """A UNet's structure in both languages.

    Attributes:
        layout: the pack's block numbering.
        address: where ComfyUI finds each block.
        context_width: channels of the text context its cross-attention takes.
    """

    layout: UNetLayout
    address: Mapping[BlockId, Address]
    context_width: int


def read_unet(model: Any, source: str) -> UNetBlocks:
    """Read the structure off a loaded model.

    Args:
        model: ComfyUI's ModelPatcher.
        source: node and input for the error, e.g. ``"MagicFace Apply: model"``.

    Raises:
        LikenessError: the model is not a UNet with self-attention (a DiT, a video UNet, an upscaler).
    """
    unet = model.get_model_object("diffusion_model")
    if not isinstance(unet, UNetModel):
        raise _unfit(source, "a model without a UNet")
    transformers = [m for m in unet.modules() if isinstance(m, SpatialTransformer)]
    if not transformers:
        raise _unfit(source, "a UNet without transformer blocks")
    if any(isinstance(m, SpatialVideoTransformer) for m in transformers):
        raise _unfit(source, "a video UNet")
    if any(block.disable_self_attn for m in transformers for block in m.transformer_blocks):
        raise _unfit(source, "a UNet with levels whose self-attention is switched off")
    return _layout(unet, transformers[0].transformer_blocks[0].attn2.to_k.in_features)


def _unfit(source: str, came: str) -> Exception:
    return bad_input(
        source,
        came,
        "a Stable Diffusion UNet with self-attention (SD1.x, SD2.x, SDXL)",
        "Load such a checkpoint; transformer models (SD3, Flux, ...) have no such layers.",
    )


def _changes_size(layer: Any, kind: type) -> bool:
    return isinstance(layer, kind) or (isinstance(layer, ResBlock) and isinstance(getattr(layer, "h_upd", None), kind))


def _levels(blocks: Iterable[Any], section: str, boundary: type) -> tuple[list[list[int]], list[tuple[Any, ...]]]:
    """Depths of the spatial transformers per level, and ``(level, attention, block index, depth)`` of each block."""
    levels: list[list[int]] = [[]]
    found = []
    for index, block in enumerate(blocks):
        for layer in block:
            if isinstance(layer, SpatialTransformer):
                depth = len(layer.transformer_blocks)
                found += [(len(levels) - 1, len(levels[-1]), index, i) for i in range(depth)]
                levels[-1].append(depth)
            elif _changes_size(layer, boundary):
                levels.append([])
    return levels, [(section, *entry) for entry in found]


def read_control(network: Any, source: str) -> UNetBlocks:
    """Read the structure off the network of a ControlNet: the encoder and the middle block of a UNet.

    Raises:
        LikenessError: it is no ControlNet of a UNet, or one of several kinds of pictures at once (union).
    """
    union = getattr(network, "control_add_embedding", None) is not None
    if not isinstance(network, ControlNetwork) or union:
        came = "a union ControlNet" if union else "another network"
        raise bad_input(source, came, "a ControlNet of SD1.x or SDXL", "Load the one that belongs to the weights.")
    transformers = [m for m in network.modules() if isinstance(m, SpatialTransformer)]
    if not transformers:
        raise bad_input(source, "a ControlNet without attention", "one with cross-attention", "Load another one.")
    return _layout(network, transformers[0].transformer_blocks[0].attn2.to_k.in_features)


def attention_of(network: Any, address: Address) -> Any:
    """The cross-attention module at an address of a UNet or a ControlNet."""
    section, index, depth = address
    layers = network.middle_block if section == "middle" else getattr(network, f"{section}_blocks")[index]
    transformer = next(layer for layer in layers if isinstance(layer, SpatialTransformer))
    return transformer.transformer_blocks[depth].attn2


def _layout(unet: UNetModel | ControlNetwork, context_width: int) -> UNetBlocks:
    down, inputs = _levels(unet.input_blocks, "down", Downsample)
    mid, middle = _levels([unet.middle_block] if unet.middle_block is not None else [], "mid", Downsample)
    up, outputs = _levels(getattr(unet, "output_blocks", ()), "up", Upsample)
    host_section = {"down": "input", "mid": "middle", "up": "output"}
    address = {
        BlockId(section, level, attention, depth): (host_section[section], index, depth)
        for section, level, attention, index, depth in (*inputs, *middle, *outputs)
    }
    return UNetBlocks(UNetLayout.from_counts(down, mid[0], up), address, context_width)


def with_replaces(options: Mapping[str, Any], replaces: Mapping[str, Mapping[Address, Callable]]) -> dict[str, Any]:
    """A copy of ``transformer_options`` in which the given replaces stand before those found there.

    Args:
        options: left untouched.
        replaces: ``"attn1"`` and ``"attn2"`` to a maker per address; a maker gets the replace found at its block
            (for the transformer block, else for the whole spatial transformer, else None) and returns ours.
    """
    tables = dict(options.get("patches_replace", {}))
    for kind, makers in replaces.items():
        found = tables.get(kind, {})
        ours = {address: make(found.get(address, found.get(address[:2]))) for address, make in makers.items()}
        tables[kind] = {**found, **ours}
    return {**options, "patches_replace": tables}


#: Attachment on a MODEL that tells the side, in pixels, of the pictures it was trained on.
NATIVE_SIDE = "likeness_native_side"


def native_side(model: Any) -> int:
    """The picture side a model was trained on: its own word (:data:`NATIVE_SIDE`), else 1024 for SDXL and 512."""
    told = model.get_attachment(NATIVE_SIDE)
    return int(told) if told else 1024 if isinstance(model.model, SDXL) else 512
