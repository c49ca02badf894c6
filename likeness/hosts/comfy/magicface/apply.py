"""MagicFace Apply's work at node time: read the model, encode prompt and references, put the patch on a clone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ....core.blocks import DEFAULT_LAYERS
from ....core.errors import bad_input
from ....core.magicface.concepts import group_references
from ....core.magicface.request import MagicFaceRequest, MapOptions
from .. import text, unet
from ..unet import UNetBlocks, read_unet
from ..wrappers import install
from . import references
from .previews import MagicFaceRecord
from .references import GivenConcept, References
from .session import NODE, MagicFacePatch

#: Resolutions of the semantic map, in latent pixels per token: half, quarter, eighth of the latent's side; 1 is all.
MAP_FACTORS = (2, 4, 8)


@dataclass(frozen=True)
class Settings:
    """The node's widgets; what they mean stands in their tooltips and in :class:`MagicFaceRequest`."""

    alpha: float = 0.4
    weighting: str = "additive"
    s_cfg: bool = False
    layers: str = DEFAULT_LAYERS
    map_completion: str = "paper"
    map_full_resolution: bool = False
    ca_scale: float = 0.0
    native_size: bool = True
    reference_null_prompt: bool = False
    reference_seed: int = 0
    cache_device_mb: int = 1024
    cache_host_mb: int = 4096
    record: bool = True
    record_points: str = ""

    @property
    def maps(self) -> MapOptions:
        """The semantic map's options."""
        factors = (1, *MAP_FACTORS) if self.map_full_resolution else MAP_FACTORS
        return MapOptions(factors, self.map_completion, self.ca_scale or None)


def apply(
    model: Any, clip: Any, vae: Any, prompt: str, chain: References | None, settings: Settings
) -> tuple[Any, list, MagicFaceRecord]:
    """Put the references on a clone of ``model``.

    Returns:
        The model, the prompt's conditioning, and the record runs will fill. Without references of some weight the
        model comes back as it is.

    Raises:
        LikenessError: the model has no such layers, text encoder or VAE do not fit it, or a concept is not in the
            prompt.
    """
    blocks = read_unet(model, f"{NODE}: model")
    encoded = text.encode(clip, prompt)
    _check_width(encoded, blocks)
    concepts = tuple(item for item in chain.concepts if item.weight > 0) if chain else ()
    if not concepts:
        return model, encoded.conditioning, MagicFaceRecord(enabled=False)
    blocks.layout.select(settings.layers)  # a wrong name is told here, not in the middle of sampling
    request = _request(model, clip, vae, prompt, chain, concepts, settings)
    record = _record(request, concepts, settings)
    patch = MagicFacePatch(request, encoded.context, blocks, record, chain.weights_key)
    return install(model, patch), encoded.conditioning, record


def _check_width(encoded: text.Encoded, blocks: UNetBlocks) -> None:
    if encoded.context.shape[-1] != blocks.context_width:
        raise bad_input(
            f"{NODE}: clip",
            f"text of {encoded.context.shape[-1]} channels",
            f"the {blocks.context_width} channels this model reads",
            "Connect the CLIP of the same checkpoint (SD1.x, SD2.x and SDXL differ).",
        )


def _request(
    model: Any,
    clip: Any,
    vae: Any,
    prompt: str,
    chain: References,
    concepts: tuple[GivenConcept, ...],
    settings: Settings,
) -> MagicFaceRequest:
    positions = text.assign_tokens(clip, prompt, [item.name for item in concepts], source=f"{NODE}: prompt")
    side = unet.native_side(model) if settings.native_size else None
    return MagicFaceRequest(
        references=references.prepare(
            model, clip, vae, concepts, positions, side=side, null_prompt=settings.reference_null_prompt
        ),
        alpha=settings.alpha,
        layers=settings.layers,
        weighting=settings.weighting,
        maps=settings.maps,
        scfg=settings.s_cfg,
        noise_seed=settings.reference_seed,
        cache=chain.cache(settings.cache_device_mb, settings.cache_host_mb),
    )


def _record(request: MagicFaceRequest, concepts: tuple[GivenConcept, ...], settings: Settings) -> MagicFaceRecord:
    grouped = group_references(request.references)
    return MagicFaceRecord(
        concepts=tuple(request.references[concept.members[0]].name for concept in grouped),
        names=tuple(reference.name for reference in request.references),
        pictures=tuple(view[None] for item in concepts for view in item.images),
        patches=parse_points(settings.record_points),
        enabled=settings.record,
    )


def parse_points(points: str) -> tuple[tuple[float, float], ...]:
    """``"x, y; x, y"`` in 0..1 to (y, x) pairs; an empty text gives none.

    Raises:
        LikenessError: a part is not two numbers in 0..1.
    """
    found = []
    for part in filter(str.strip, points.split(";")):
        try:
            x, y = (float(number) for number in part.split(","))
        except ValueError:
            x = y = -1.0
        if not (0 <= x <= 1 and 0 <= y <= 1):
            raise bad_input(f"{NODE}: record_points", repr(part.strip()), "x, y in 0..1", "Write such as '0.5, 0.35'.")
        found.append((y, x))
    return tuple(found)
