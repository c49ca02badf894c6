"""MagicID Apply's work at node time: identities projected for this model, put on a clone with their regions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.lora
import torch
from torch import Tensor

from ....core.blocks import BlockId
from ....core.errors import bad_input
from ....core.magicid.projections import IdentityAttention, public_order
from ....core.magicid.run import LayerKeys, PlacedIdentity, project
from ....formats.identity import INSTANTID, IdentityWeights
from .. import images
from ..control import check_control, with_control
from ..unet import UNetBlocks, attention_of, read_unet
from ..wrappers import install
from .control import identities_alone, with_text
from .control_weights import build
from .identities import Identities, Identity
from .session import NODE, MagicIdPatch


@dataclass(frozen=True, eq=False)
class How:
    """Settings of *MagicID Apply*.

    Attributes:
        strength: factor on all people. overlap: see :class:`RegionMasks`.
        lora: strength of the LoRA inside FaceID files, which acts on the whole picture.
        middle: False leaves out the middle block, as some other packs do.
        control: strength of the ControlNet. span: shares of the steps between which it acts.
    """

    strength: float = 1.0
    overlap: str = "add"
    lora: float = 1.0
    middle: bool = True
    control: float = 0.8
    span: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True, eq=False)
class Applied:
    """A model with identities on it, and the conditioning with their ControlNet."""

    model: Any
    positive: list | None
    negative: list | None


def apply(
    model: Any,
    identities: Identities | None,
    regions: Tensor | None = None,
    how: How = How(),
    positive: list | None = None,
    negative: list | None = None,
    control_net: Any = None,
    pose: Tensor | None = None,
) -> Applied:
    """Put identities on a clone of ``model``, and their ControlNet on the conditioning.

    Args:
        regions: MASK, one for each identity in the same order; None: everywhere.
        control_net: CONTROL_NET. With InstantID's identities its cross-attention reads them; otherwise it is put on as
            it is. None: our own weights bring theirs. pose: IMAGE, its picture.

    Raises:
        LikenessError: no UNet, weights for another base, more people than regions or the reverse, a ControlNet without
            a pose or of another family.
    """
    blocks = read_unet(model, f"{NODE}: model")
    if identities is None or not identities.people:
        people, weights, patched = (), None, model
    else:
        weights = identities.loaded.weights
        people = placed(identities.people, regions)
        patched = _on_unet(model, blocks, weights, people, how)
    control = _control(model, blocks, weights, people, how, control_net, pose)
    if control is None or how.control == 0:
        return Applied(patched, positive, negative)
    hint, made = images.to_torch(pose), {}  # positive and negative share its copies

    def put(conditioning: list | None) -> list | None:
        if conditioning is None:
            return None
        return with_control(conditioning, control, hint, how.control, how.span, made)

    return Applied(patched, put(positive), put(negative))


def _on_unet(
    model: Any, blocks: UNetBlocks, weights: IdentityWeights, people: tuple[PlacedIdentity, ...], how: How
) -> Any:
    attention = weights.for_unet(attention_widths(model, blocks), blocks.context_width)
    layers = {} if attention is None else _projected(attention, people)
    if not how.middle:
        layers = {block: keys for block, keys in layers.items() if block.section != "mid"}
    patched = with_lora(model, weights, blocks, how.lora)
    return install(patched, MagicIdPatch(layers, people, blocks, how.overlap, how.strength))


@torch.no_grad()
def _projected(attention: IdentityAttention, people: tuple[PlacedIdentity, ...]) -> dict[BlockId, LayerKeys]:
    return project(attention.float() if _half_on_cpu(attention) else attention, people)


def _control(
    model: Any, blocks: UNetBlocks, weights: IdentityWeights | None, people: tuple[PlacedIdentity, ...], how: How,
    control_net: Any, pose: Tensor | None,
) -> Any:  # fmt: skip
    """The ControlNet to put on the conditioning; None where there is none."""
    own = weights is not None and "control" in weights.own
    if control_net is None and not (own and pose is not None):
        if own and "unet" not in weights.own:
            raise bad_input(
                f"{NODE}: pose", "nothing", f"a pose picture: {weights.name} acts through its ControlNet only",
                "Connect Draw Landmarks or a pose preprocessor.",
            )  # fmt: skip
        return None
    if pose is None:
        raise bad_input(f"{NODE}: pose", "nothing", "the picture that control_net reads", "Connect Draw Landmarks.")
    if control_net is None:
        built = build(weights.control, model, weights.name)
        return with_text(built, weights.own["control"], people, overlap=how.overlap, scale=how.strength)
    check_control(control_net, blocks.context_width, f"{NODE}: control_net")
    if weights is None or weights.form != INSTANTID:
        return control_net
    return identities_alone(control_net, people, how.overlap) if how.strength else None


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
    found = {block: attention_of(unet, blocks.address[block]) for block in blocks.layout.blocks}
    return {block: attention.to_k.out_features for block, attention in found.items()}


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
