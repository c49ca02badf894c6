"""MagicID Apply's work at node time: identities projected for this model, put on a clone with their regions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.lora
import torch
from torch import Tensor

from ....core.blocks import BlockId
from ....core.errors import bad_input
from ....core.magicid.projections import public_order
from ....core.magicid.run import PlacedIdentity, project
from ....formats.identity import IdentityWeights
from .. import images
from ..unet import UNetBlocks, read_unet
from ..wrappers import install
from .identities import Identities, Identity
from .session import NODE, MagicIdPatch


def apply(
    model: Any,
    identities: Identities | None,
    regions: Tensor | None = None,
    strength: float = 1.0,
    overlap: str = "add",
    lora_strength: float = 0.0,
    middle: bool = True,
) -> Any:
    """Put identities on a clone of ``model``.

    Args:
        regions: MASK, one for each identity in the same order; None: everywhere.
        lora_strength: of the LoRA inside FaceID files, which acts on the whole picture.
        middle: False leaves out the middle block, as some other packs do.

    Returns:
        The patched model, or the model as it is where there is nobody.

    Raises:
        LikenessError: no UNet, weights for another base, more people than regions or the reverse.
    """
    blocks = read_unet(model, f"{NODE}: model")
    if identities is None or not identities.people:
        return model
    weights = identities.loaded.weights
    widths = attention_widths(model, blocks)
    attention = weights.for_unet(widths, blocks.context_width)
    patched = with_lora(model, weights, blocks, lora_strength)
    if attention is None:
        return patched
    people = placed(identities.people, regions)
    with torch.no_grad():
        layers = project(attention.float() if _half_on_cpu(attention) else attention, people)
    if not middle:
        layers = {block: keys for block, keys in layers.items() if block.section != "mid"}
    return install(patched, MagicIdPatch(layers, people, blocks, overlap, strength))


def _half_on_cpu(attention: torch.nn.Module) -> bool:
    parameter = next(attention.parameters())
    return parameter.dtype == torch.float16 and parameter.device.type == "cpu"


def placed(people: Sequence[Identity], regions: Tensor | None) -> tuple[PlacedIdentity, ...]:
    """People with their regions, in order.

    Raises:
        LikenessError: another number of regions.
    """
    planes: Sequence[Tensor | None] = [None] * len(people)
    if regions is not None:
        planes = list(images.mask_to_torch(regions, source=f"{NODE}: regions")[:, 0])
        if len(planes) != len(people):
            raise bad_input(
                f"{NODE}: regions", f"{len(planes)} regions for {len(people)} identities", "one for each, in order",
                "Add or remove a mask, or leave the regions out to have everybody everywhere.",
            )  # fmt: skip
    return tuple(
        PlacedIdentity(one.tokens, one.nobody, plane, one.scale, one.start, one.end, one.name)
        for one, plane in zip(people, planes, strict=True)
    )


def attention_widths(model: Any, blocks: UNetBlocks) -> dict[BlockId, int]:
    """Width of every cross-attention, in execution order."""
    unet = model.get_model_object("diffusion_model")
    sections = {"input": "input_blocks", "output": "output_blocks"}
    widths = {}
    for block in blocks.layout.blocks:
        section, index, depth = blocks.address[block]
        layers = unet.middle_block if section == "middle" else getattr(unet, sections[section])[index]
        transformer = next(layer for layer in layers if hasattr(layer, "transformer_blocks"))
        widths[block] = transformer.transformer_blocks[depth].attn2.to_k.out_features
    return widths


def with_lora(model: Any, weights: IdentityWeights, blocks: UNetBlocks, strength: float) -> Any:
    """A clone of the model with the LoRA inside a FaceID file, by the host's own loader.

    Raises:
        LikenessError: the LoRA is not of this model.
    """
    if not weights.lora or strength == 0:
        return model
    named = host_lora(weights, blocks)
    targets = {name.partition(".lora_")[0] for name in named}
    loaded = comfy.lora.load_lora(named, {target: f"{target}.weight" for target in targets})
    patched = model.clone()
    if len(patched.add_patches(loaded, strength)) != len(weights.lora) // 2:
        raise bad_input(
            f"{NODE}: LoRA inside {weights.name}", "weights that this model has no place for", "all of them to fit",
            "Use the file for this model's family, or set lora_strength to 0.",
        )  # fmt: skip
    return patched


def host_lora(weights: IdentityWeights, blocks: UNetBlocks) -> dict[str, Tensor]:
    """The LoRA under names the host's loader knows: its own ``diffusion_model.`` keys of each attention.

    IP-Adapter counts attentions: even numbers are self-attentions, odd ones cross-attentions of the same block.
    """
    order, named = public_order(blocks.layout.blocks), {}
    for key, value in weights.lora.items():
        number, projection, direction, _ = key.split(".")
        section, index, depth = blocks.address[order[int(number) // 2]]
        place = "middle_block.1" if section == "middle" else f"{section}_blocks.{index}.1"
        attention = f"attn{int(number) % 2 + 1}"
        part = projection.removesuffix("_lora")
        part = "to_out.0" if part == "to_out" else part
        base = f"diffusion_model.{place}.transformer_blocks.{depth}.{attention}.{part}"
        named[f"{base}.lora_{direction}.weight"] = value
    return named
