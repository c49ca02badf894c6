"""What stays the same through one run: the request brought together with the model's blocks and the schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..attention import AttentionFunction, attend
from ..blocks import BlockId, UNetLayout
from ..errors import bad_input
from ..masks import Grid, level_grid
from ..schedule import Schedule
from .concepts import Placement, group_references
from .constants import Constants
from .injection import KeyTokens
from .maps import MapBuilder, auto_ca_scale
from .references import ReferencePath
from .request import MagicFaceRequest

RSA, RBA = "rsa", "rba"


def check_layout(layout: UNetLayout) -> None:
    """Raise a :class:`LikenessError` when a model has no self-attention MagicFace could work in."""
    if not any(block.section == "up" for block in layout.blocks):
        raise bad_input(
            "MagicFace: model",
            f"a model with {len(layout.blocks)} transformer blocks and none in a decoder",
            "a Stable Diffusion UNet (SD1.x, SD2.x, SDXL) with self-attention in its decoder levels",
            "Load such a checkpoint; transformer-only models (DiT) such as SD3 or Flux are not supported.",
        )


@dataclass(frozen=True)
class RunSetting:
    """A request for one model and one schedule; made by :meth:`of`.

    Attributes:
        request: what the user asked for. layout: the model's blocks. schedule: the sampler's noise levels.
        paths: the references that have weight and a mask that is not empty.
        placement: their concepts. blocks: with reference attention. map_blocks: of which maps are made.
        ca_scale: factor on non-concept tokens.
        attention: the host's plain self-attention ``(q, k, v, heads) -> out``, for rows without references.
        constants: what stays the same on the device.
    """

    request: MagicFaceRequest
    layout: UNetLayout
    schedule: Schedule
    paths: tuple[ReferencePath, ...]
    placement: Placement
    blocks: tuple[BlockId, ...]
    map_blocks: frozenset[BlockId]
    ca_scale: float
    attention: AttentionFunction
    constants: Constants

    @classmethod
    def of(
        cls,
        request: MagicFaceRequest,
        layout: UNetLayout,
        sigmas: Sequence[float],
        attention: AttentionFunction | None = None,
    ) -> RunSetting | None:
        """The setting, or None where nothing would change: no step, or no reference with weight and a mask that is not
        empty.

        Raises:
            LikenessError: the model has no such layers or resolutions, or a concept has neither a word nor a region.
        """
        paths = tuple(
            ReferencePath(reference, index, request.weighting, layout)
            for index, reference in enumerate(request.references)
            if reference.weight > 0 and (reference.mask is None or bool((reference.mask > 0).any()))
        )
        if not paths or len(sigmas) < 2:
            return None
        check_layout(layout)
        constants = Constants()
        placement = Placement(group_references([path.reference for path in paths]), constants)
        _check_positions(request, placement, paths)
        ca_scale = request.maps.ca_scale or auto_ca_scale(len(placement.concepts))
        blocks, map_blocks = layout.select(request.layers), _map_blocks(request, layout)
        schedule = Schedule(sigmas)
        parts = (request, layout, schedule, paths, placement, blocks, map_blocks, ca_scale, attention or attend)
        return cls(*parts, constants)

    def stage(self, sigma: float) -> str:
        """:data:`RSA` in the first alpha of the steps, :data:`RBA` afterwards."""
        return RSA if self.schedule.before(sigma, self.request.alpha) else RBA

    def needs_map(self, sigma: float) -> bool:
        """Whether the method needs a map of this noise level: from the step before RBA on, and for S-CFG."""
        if self.request.scfg:
            return True
        if self.placement.all_placed:
            return False
        return self.request.alpha < 1 and self.schedule.step(sigma) + 1 >= self.request.alpha * self.schedule.steps

    @property
    def needs_foreground(self) -> bool:
        """Whether unconditional rows are observed."""
        return self.request.scfg or self.ca_scale < auto_ca_scale(1)

    def attention_grids(self, grid: Grid) -> tuple[Grid, ...]:
        """The token grids of the blocks with reference attention, for latents of this size."""
        return tuple(dict.fromkeys(level_grid(grid, self.layout.factor(block)) for block in self.blocks))

    def new_builder(self, grid: Grid, conditional: Sequence[bool]) -> MapBuilder:
        """A map to be made of rows of these kinds, for latents of this size."""
        options = self.request.maps
        finest = min(self.layout.factor(block) for block in self.map_blocks)
        target = level_grid(grid, finest)
        of_request = (self.placement.phrases, self.ca_scale, options.completion, options.chunk)
        return MapBuilder(*of_request, target, conditional, self.constants)

    def key_tokens(self, block: BlockId) -> KeyTokens:
        """Which reference's which token every key of a block is, in the order of the concepts' keys."""
        tokens = [
            (number, path.index + 1, path.key_tokens(block))
            for number, concept in enumerate(self.placement.concepts, 1)
            for path in (self.paths[index] for index in concept.members)
        ]
        return KeyTokens(
            torch.cat([torch.full_like(token, number) for number, _, token in tokens]),
            torch.cat([torch.full_like(token, number) for _, number, token in tokens]),
            torch.cat([token for _, _, token in tokens]),
            {path.index + 1: path.grid(block) for path in self.paths},
        )


def _map_blocks(request: MagicFaceRequest, layout: UNetLayout) -> frozenset[BlockId]:
    finest = layout.factors[0]
    blocks = frozenset(block for block in layout.blocks if layout.factor(block) // finest in request.maps.factors)
    if not blocks:
        raise bad_input(
            "MagicFace: map resolutions",
            f"{request.maps.factors}",
            f"some of {tuple(factor // finest for factor in layout.factors)}, where this model has attention",
            "Choose at least one of them.",
        )
    return blocks


def _check_positions(request: MagicFaceRequest, placement: Placement, paths: Sequence[ReferencePath]) -> None:
    lost = [concept for concept in placement.concepts if not concept.positions and concept.region is None]
    if request.alpha < 1 and lost:
        names = [paths[index].reference.name for concept in lost for index in concept.members]
        raise bad_input(
            "MagicFace: references",
            f"no token positions for {', '.join(map(repr, names))}",
            "the concept's word in the picture's prompt (needed to find its region)",
            "Put the word into the prompt, give the reference a region, or set alpha to 1.",
        )
