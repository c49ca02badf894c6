"""MagicFace's references in ComfyUI: what the Reference node hands on, and how Apply turns it into the core's."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4
from weakref import WeakKeyDictionary

import comfy.model_management as management
import torch

from ....core.digest import digest
from ....core.errors import bad_input
from ....core.magicface.cache import ReferenceCache
from ....core.magicface.request import Reference
from ....core.masks import check_mask
from .. import images, text

log = logging.getLogger("likeness")

REFERENCE_NODE = "MagicFace Reference"


@dataclass(frozen=True)
class GivenConcept:
    """One concept as the user gave it: one or several pictures of the same thing.

    Attributes:
        images: ``V 3 H W`` in 0..1, the views. masks: ``V 1 H W`` in 0..1 at the same size, or None for the whole.
        name: the concept's word or phrase. prompt: text of its own forward. weight: w of the paper's section 3.2.4.
        region: ``h w`` in 0..1, where in the new picture it belongs, or None where the semantic map is to find it.
    """

    images: torch.Tensor
    masks: torch.Tensor | None
    name: str
    prompt: str
    weight: float
    region: torch.Tensor | None = None


@dataclass(frozen=True)
class References:
    """A chain of concepts, with the store of their keys and values.

    The store lives here, on the Reference node's output, so that it outlasts a change of the picture's prompt and goes
    when the references do.
    """

    concepts: tuple[GivenConcept, ...]
    _caches: dict[tuple[int, int], ReferenceCache] = field(default_factory=dict, compare=False, repr=False)
    _names: WeakKeyDictionary = field(default_factory=WeakKeyDictionary, compare=False, repr=False)

    def cache(self, device_mb: int, host_mb: int) -> ReferenceCache:
        """The store with these budgets (mebibytes)."""
        if (device_mb, host_mb) not in self._caches:
            self._caches.clear()
            self._caches[device_mb, host_mb] = ReferenceCache(device_mb, host_mb, free_bytes=management.get_free_memory)
        return self._caches[device_mb, host_mb]

    def weights_key(self, guider: Any) -> str:
        """Changes whenever a plain forward of the guider's model would: another model, LoRA, sampling or dtype."""
        model, base = guider.model_patcher, guider.model_patcher.model
        parts = {
            **model.object_patches,
            **getattr(model, "injections", {}),
            **getattr(model, "weight_wrapper_patches", {}),
        }
        changing = uuid4() if guider.model_options.get("registered_hooks") else None  # weights scheduled by the step
        named = sorted((name, self._name(part)) for name, part in parts.items())
        return repr((self._name(base), model.patches_uuid, named, base.manual_cast_dtype, base.get_dtype(), changing))

    def _name(self, thing: Any) -> str:
        """A name of its own for a live object; unlike its address it is never given to another one later."""
        try:
            return self._names.setdefault(thing, uuid4().hex)
        except TypeError:  # lists and other things that cannot be referred to weakly
            return str(id(thing))


@dataclass(frozen=True)
class HostContext:
    """Text conditioning of a reference's forward: the fields of a ComfyUI ``CONDITIONING`` entry."""

    context: torch.Tensor
    extra: dict[str, Any]


def given_concept(
    image: torch.Tensor,
    mask: torch.Tensor | None,
    name: str,
    prompt: str,
    weight: float,
    region: torch.Tensor | None = None,
) -> GivenConcept:
    """Check and normalise what the Reference node got.

    Args:
        image: IMAGE; a batch is several views of the one concept. mask: MASK of any size, one per view; any other
            number of masks is joined and holds for every view. prompt: empty = the name. region: MASK of any size;
            several are joined. *Load Image*'s mask of a picture in which nothing is painted counts as none.

    Raises:
        LikenessError: no word, an empty mask or region, or values that are not finite.
    """
    name = " ".join(name.split())
    if not name:
        raise bad_input(f"{REFERENCE_NODE}: concept", "no word", "a word or phrase", "Name what the picture shows.")
    if 0 in image.shape:
        shape = tuple(image.shape)
        raise bad_input(f"{REFERENCE_NODE}: image", f"an empty batch (shape {shape})", "a picture", "Check its source.")
    pixels = images.to_torch(image).float().cpu()
    if not bool(torch.isfinite(pixels).all()):
        raise bad_input(f"{REFERENCE_NODE}: image", "NaN or infinite values", "values in 0..1", "Check the picture.")
    masks, region = _concept_masks(images.painted(mask), pixels, name), _region(images.painted(region), name)
    return GivenConcept(pixels, masks, name, prompt.strip() or name, float(weight), region)


def _region(region: torch.Tensor | None, name: str) -> torch.Tensor | None:
    if region is None:
        return None
    joined = images.mask_to_torch(region.cpu(), source=f"{REFERENCE_NODE}: region").amax(dim=(0, 1))
    return check_mask(joined, f"{REFERENCE_NODE} '{name}'", "region", "to let the semantic map find its place")


def _concept_masks(mask: torch.Tensor | None, pixels: torch.Tensor, name: str) -> torch.Tensor | None:
    if mask is None:
        log.info("MagicFace: '%s' has no mask, so the whole picture is its reference.", name)
        return None
    masks = images.mask_to_torch(mask.cpu(), source=f"{REFERENCE_NODE}: mask")
    if len(masks) != len(pixels):
        masks = masks.amax(dim=0, keepdim=True).expand(len(pixels), -1, -1, -1)
    for one in masks:
        check_mask(one[0], f"{REFERENCE_NODE} '{name}'")
    return images.resize(masks, pixels.shape[-2:], "bilinear")


def prepare(
    model: Any,
    clip: Any,
    vae: Any,
    concepts: tuple[GivenConcept, ...],
    positions: list[tuple[int, ...]],
    *,
    side: int | None,
    null_prompt: bool = False,
) -> tuple[Reference, ...]:
    """Encode pictures and prompts into the core's references.

    Args:
        positions: token positions of each concept in the picture's prompt.
        side: pictures are brought to ``side`` squared pixels, keeping their shape; None keeps their size.
        null_prompt: run the reference forwards with an empty prompt.
    """
    return tuple(
        reference
        for item, found in zip(concepts, positions, strict=True)
        for reference in _views(model, clip, vae, item, found, side, null_prompt)
    )


def _views(
    model: Any, clip: Any, vae: Any, item: GivenConcept, positions: tuple[int, ...], side: int | None, null_prompt: bool
) -> list[Reference]:
    """One reference per view; views of a concept share its token positions and so its region."""
    size = images.fit_size(*item.images.shape[-2:], side)
    pixels = images.resize(item.images, size)
    masks = [None] * len(pixels) if item.masks is None else images.resize(item.masks, size, "bilinear")[:, 0]
    encoded = text.encode(clip, "" if null_prompt else item.prompt)
    extra = {} if encoded.pooled is None else {"pooled_output": encoded.pooled}
    return [
        Reference(
            name=item.name,
            latent=_latent(model, vae, view[None]),
            context=HostContext(encoded.context, extra),
            context_key=digest(encoded.context, encoded.pooled),
            positions=positions,
            mask=mask,
            weight=item.weight,
            batch_key=encoded.context.shape[1:],
            region=item.region,
        )
        for view, mask in zip(pixels, masks, strict=True)
    ]


def _latent(model: Any, vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Encode ``1 3 H W`` into the model's scaled latent space."""
    latent = model.model.process_latent_in(vae.encode(images.to_comfy(pixels)))
    channels = model.model.latent_format.latent_channels
    if latent.ndim != 4 or latent.shape[1] != channels:
        raise bad_input(
            "MagicFace Apply: vae",
            f"latents of shape {tuple(latent.shape)}",
            f"the model's {channels} channels",
            "Connect the VAE that belongs to the model.",
        )
    return latent


def model_conds(base: Any, latents: torch.Tensor, references: tuple[Reference, ...]) -> dict[str, torch.Tensor]:
    """What the model's forward takes beside latents and sigma (context, SDXL's vector, inpainting channels).

    The host's model makes them itself, as it does for a picture's conditioning: a reference counts as a picture of its
    own size that is to be kept everywhere.

    Args:
        base: the host's model. latents: ``R 4 h w``, for shape and device. references: R of them.
    """
    per_reference = [_conds(base, latents[i : i + 1], item) for i, item in enumerate(references)]
    joined = {
        name: conds.concat([other[name] for other in per_reference[1:]]) for name, conds in per_reference[0].items()
    }
    return {
        name: value.to(latents.device) if isinstance(value, torch.Tensor) else value for name, value in joined.items()
    }


def _conds(base: Any, latent: torch.Tensor, item: Reference) -> dict[str, Any]:
    height, width = latent.shape[-2:]
    made = base.extra_conds(
        **item.context.extra,
        cross_attn=item.context.context,
        noise=latent,
        latent_image=item.latent.to(latent),
        denoise_mask=torch.zeros_like(latent[:, :1]),
        device=latent.device,
        height=height * 8,
        width=width * 8,
        prompt_type="positive",
    )
    return {name: value.process_cond(batch_size=1, area=None) for name, value in made.items()}
