"""What every method needs to know of a diffusers UNet: its transformer blocks, its noise levels, its identity."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ...core.blocks import BlockId, UNetLayout
from ...core.digest import digest
from ...core.errors import bad_input

WEIGHT_SAMPLES = 64  # elements of each weight that go into a model's digest


def transformer_blocks(unet: torch.nn.Module) -> Iterator[tuple[str, BlockId]]:
    """Every transformer block of a UNet (or of a ControlNet) as (module path, identity), in execution order.

    Raises:
        LikenessError: the model is neither, of diffusers' make.
    """
    if not hasattr(unet, "down_blocks") or not hasattr(unet, "mid_block"):
        raise bad_input(
            "model",
            type(unet).__name__,
            "a diffusers UNet2DConditionModel (SD1.x, SD2.x, SDXL)",
            "Load such a checkpoint; transformer-only models (DiT) are not supported.",
        )
    for section in ("down", "mid", "up"):
        single = section == "mid"
        levels = [getattr(unet, "mid_block", None)] if single else getattr(unet, f"{section}_blocks", ())
        for level, module in enumerate(levels):
            root = "mid_block" if single else f"{section}_blocks.{level}"
            for attention, transformer in enumerate(getattr(module, "attentions", None) or ()):
                for depth in range(len(getattr(transformer, "transformer_blocks", ()))):
                    path = f"{root}.attentions.{attention}.transformer_blocks.{depth}"
                    yield path, BlockId(section, level, attention, depth)


def unet_layout(unet: torch.nn.Module) -> UNetLayout:
    """The model's transformer blocks and levels."""
    blocks = tuple(block for _, block in transformer_blocks(unet))
    return UNetLayout(blocks, len(unet.down_blocks))


def processor_names(unet: torch.nn.Module) -> dict[str, tuple[BlockId, bool]]:
    """Names of the UNet's attention processors, each with its block and whether it is the cross-attention."""
    return {
        f"{path}.attn{number}.processor": (block, number == 2)
        for path, block in transformer_blocks(unet)
        for number in (1, 2)
    }


def model_digest(model: torch.nn.Module) -> str:
    """A content key of a model's weights: some elements of each, and the state of adapters on it."""
    samples = []
    for weight in model.parameters():
        flat = weight.detach().flatten()
        samples.append(flat[:: max(1, flat.numel() // WEIGHT_SAMPLES)][:WEIGHT_SAMPLES].float())
    adapters = [
        (name, module.scaling, getattr(module, "active_adapters", None), getattr(module, "disable_adapters", None))
        for name, module in model.named_modules()
        if isinstance(getattr(module, "scaling", None), dict)
    ]
    return digest(torch.cat(samples), str(next(model.parameters()).dtype), adapters)
