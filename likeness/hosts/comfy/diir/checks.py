"""What must hold of the inputs of *DIIR Face Repair*."""

from __future__ import annotations

from typing import Any

import comfy.model_sampling
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ....core.errors import bad_input
from .. import images, text
from ..magicface.session import MagicFacePatch
from ..unet import read_unet
from .choose import NODE


def check_model(model: Any) -> int:
    """Only a UNet that predicts noise or velocity, and takes nothing but latents, can be inverted.

    Returns:
        Channels of the text it reads.

    Raises:
        LikenessError: another kind of model.
    """
    sampling = model.get_model_object("model_sampling")
    flows = tuple(
        getattr(comfy.model_sampling, name)
        for name in ("CONST", "COSMOS_RFLOW", "IMG_TO_IMG_FLOW")
        if hasattr(comfy.model_sampling, name)
    )
    if isinstance(sampling, flows):
        raise bad_input(
            f"{NODE}: model",
            "a flow-matching model (such as SD3, Flux or Qwen-Image)",
            "a diffusion model of SD1.x, SD2.x or SDXL",
            "DDIM inversion walks a diffusion schedule, which a flow does not have. Repair with an SD checkpoint: the "
            "picture may come from any model.",
        )
    blocks = read_unet(model, f"{NODE}: model")
    channels = model.model.model_config.unet_config.get("in_channels", 4)
    if channels != model.model.latent_format.latent_channels:
        raise bad_input(
            f"{NODE}: model",
            f"a model with {channels} input channels (made for inpainting or editing)",
            f"one with {model.model.latent_format.latent_channels}",
            "Load the plain checkpoint of the same family.",
        )
    return blocks.context_width


def check_text(clip: Any, width: int) -> None:
    """Raise a :class:`LikenessError` where the text encoder is that of another family."""
    given = text.encode(clip, "").context.shape[-1]
    if given != width:
        raise bad_input(
            f"{NODE}: clip",
            f"text of {given} channels",
            f"the {width} channels this model reads",
            "Connect the CLIP of the same checkpoint (SD1.x, SD2.x and SDXL differ).",
        )


def read_pictures(image: Tensor) -> list[Tensor]:
    """IMAGE ``P H W C`` as pictures ``C H W`` with at least three channels, on the CPU.

    Raises:
        LikenessError: no picture, or one without pixels.
    """
    if image.ndim != 4 or 0 in image.shape:
        raise bad_input(
            f"{NODE}: image", f"shape {tuple(image.shape)}", "pictures of some size", "Check the node that makes it."
        )
    colours = image if image.shape[-1] >= 3 else images.to_torch(image).movedim(1, -1)
    return [picture.movedim(-1, 0).cpu() for picture in colours]


def model_notes(model: Any, has_references: bool) -> list[str]:
    """What on the model does not fit a crop."""
    if has_references or MagicFacePatch.key not in model.wrappers.get(WrappersMP.OUTER_SAMPLE, {}):
        return []
    return [
        "the model carries MagicFace Apply, made for the whole picture: better connect its references here, and the "
        "model from before it"
    ]
