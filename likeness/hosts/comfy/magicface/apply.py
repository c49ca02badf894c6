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

#: Resolutions of the semantic map: a half, a quarter and an eighth of the finest attention's side; 1 is all.
MAP_FACTORS = (2, 4, 8)


#: How large reference pictures are read: as the model was trained, or as they come.
NATIVE_SIZE, OWN_SIZE = REFERENCE_SIZES = ("model native", "own")


@dataclass(frozen=True)
class ApplyOptions:
    """The widgets of MagicFace Options; what they mean stands in their tooltips and in :class:`MagicFaceRequest`."""

    weighting: str = "additive"
    layers: str = DEFAULT_LAYERS
    s_cfg: bool = False
    map_completion: str = "paper"
    map_full_resolution: bool = False
    ca_scale: float = 0.0
    reference_size: str = NATIVE_SIZE
    reference_null_prompt: bool = False
    reference_seed: int = 0
    cache_device_mb: int = 1024
    cache_host_mb: int = 4096
    record: bool = True
    record_points: str = "0.5, 0.35"

    @property
    def maps(self) -> MapOptions:
        """The semantic map's options."""
        factors = (1, *MAP_FACTORS) if self.map_full_resolution else MAP_FACTORS
        return MapOptions(factors, self.map_completion, self.ca_scale or None)


@dataclass(frozen=True)
class Applied:
    """What the node gives: the model, the CONDITIONING for the sampler, and the record that runs will fill."""

    model: Any
    positive: list
    record: MagicFaceRecord


def apply(
    model: Any,
    clip: Any,
    vae: Any,
    prompt: str,
    alpha: float,
    chain: References | None,
    positive: list | None = None,
    options: ApplyOptions | None = None,
) -> Applied:
    """Put the references on a clone of ``model``.

    Args:
        prompt: in which the concepts' words are looked up. alpha: see :class:`MagicFaceRequest`.
        positive: the prompt as somebody else has encoded it; None encodes it here.

    Returns:
        Without references of some weight, the model as it is.

    Raises:
        LikenessError: the model has no such layers, text encoder or VAE do not fit it, or a concept is not in the
            prompt.
    """
    options = options or ApplyOptions()
    blocks = read_unet(model, f"{NODE}: model")
    encoded = text.encode(clip, prompt)
    _check_width(encoded, blocks)
    positive = encoded.conditioning if positive is None else positive
    concepts = tuple(item for item in chain.concepts if item.weight > 0) if chain else ()
    if not concepts:
        return Applied(model, positive, MagicFaceRecord(enabled=False))
    blocks.layout.select(options.layers)  # a wrong name is told here, not in the middle of sampling
    request = build_request(model, clip, vae, prompt, alpha, chain, options)
    record = _record(request, concepts, options)
    patch = MagicFacePatch(request, encoded.contexts, blocks, record, chain.weights_key)
    return Applied(install(model, patch), positive, record)


def _check_width(encoded: text.Encoded, blocks: UNetBlocks) -> None:
    if encoded.context.shape[-1] != blocks.context_width:
        raise bad_input(
            f"{NODE}: clip",
            f"text of {encoded.context.shape[-1]} channels",
            f"the {blocks.context_width} channels this model reads",
            "Connect the CLIP of the same checkpoint (SD1.x, SD2.x and SDXL differ).",
        )


def build_request(
    model: Any, clip: Any, vae: Any, prompt: str, alpha: float, chain: References, options: ApplyOptions
) -> MagicFaceRequest:
    """The core's request, of the references that have weight."""
    concepts = tuple(item for item in chain.concepts if item.weight > 0)
    positions = text.assign_tokens(clip, prompt, [item.name for item in concepts], source=f"{NODE}: prompt")
    side = unet.native_side(model) if options.reference_size == NATIVE_SIZE else None
    return MagicFaceRequest(
        references=references.prepare(
            model, clip, vae, concepts, positions, side=side, null_prompt=options.reference_null_prompt
        ),
        alpha=alpha,
        layers=options.layers,
        weighting=options.weighting,
        maps=options.maps,
        scfg=options.s_cfg,
        noise_seed=options.reference_seed,
        cache=chain.cache(options.cache_device_mb, options.cache_host_mb),
    )


def _record(request: MagicFaceRequest, concepts: tuple[GivenConcept, ...], options: ApplyOptions) -> MagicFaceRecord:
    grouped = group_references(request.references)
    return MagicFaceRecord(
        concepts=tuple(request.references[concept.members[0]].name for concept in grouped),
        names=tuple(reference.name for reference in request.references),
        pictures=tuple(view[None] for item in concepts for view in item.images),
        patches=parse_points(options.record_points),
        enabled=options.record,
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
            where = "MagicFace Options: record_points"
            raise bad_input(where, repr(part.strip()), "x, y in 0..1", "Write such as '0.5, 0.35'.")
        found.append((y, x))
    return tuple(found)
