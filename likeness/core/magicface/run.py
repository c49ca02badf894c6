"""One sampling run of MagicFace: the state made when sampling starts and dropped when it ends.

Hosts drive it as follows::

    run = MagicFaceRun(request, layout, sigmas, model_key, references, attention)
    try:
        for every model call:
            with run.begin_call(sigma, conditional, grid) as call:
                forward, self-attention of call.self_blocks through call.self_attention,
                cross-attention of call.cross_blocks shown to call.cross_attention
    finally:
        run.close()
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Sequence

import torch

from ..attention import AttentionFunction, attend
from ..blocks import BlockId, UNetLayout
from ..errors import bad_input
from ..masks import Grid, level_grid
from ..schedule import Schedule, same_sigma
from . import guidance
from .cache import ReferenceEntry
from .call import MagicFaceCall
from .concepts import Placement, group_references
from .injection import ReferenceKeys
from .maps import MapBuilder, _Maps, auto_ca_scale
from .preview import RunRecorder
from .references import Capture, ReferenceBatch, ReferencePath, ReferencesCaptured, noised
from .request import MagicFaceRequest

__all__ = ["Capture", "MagicFaceCall", "MagicFaceRun", "ReferenceBatch", "ReferencesCaptured", "check_layout"]

ReferenceForward = Callable[[ReferenceBatch, Capture], None]
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


class MagicFaceRun:
    """State and method of one sampling run.

    Args:
        request: what the user asked for.
        layout: the model's transformer blocks.
        sigmas: the sampler's VE noise levels, first to last.
        model_key: changes whenever the model's weights change (part of the cache's keys).
        references: runs a reference batch through the host's plain UNet and shows K, V to the capture.
        attention: the host's plain self-attention ``(q, k, v, heads) -> out``, for rows without references.
        device: where the model computes; None is where the first reference's latent lies.

    Attributes:
        enabled: False when nothing would change (no reference with weight and a non-empty mask).
        blocks: the blocks with reference attention.
    """

    def __init__(
        self,
        request: MagicFaceRequest,
        layout: UNetLayout,
        sigmas: Sequence[float],
        model_key: Hashable,
        references: ReferenceForward,
        attention: AttentionFunction | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.request = request
        self.layout = layout
        self.schedule = Schedule(sigmas)
        self.attention = attention or attend
        self._forward = references
        self._device = device
        self.paths = tuple(
            ReferencePath(reference, index, request.weighting, layout)
            for index, reference in enumerate(request.references)
            if reference.weight > 0 and (reference.mask is None or bool((reference.mask > 0).any()))
        )
        self.enabled = bool(self.paths)
        self._sigma: float | None = None
        self._entries: tuple[float, list[ReferenceEntry]] | None = None
        self._maps: dict[Hashable, _Maps] = {}
        self.recorder: RunRecorder | None = None
        if self.enabled:
            self._prepare(model_key)

    def _prepare(self, model_key: Hashable) -> None:
        request = self.request
        check_layout(self.layout)
        self.blocks = self.layout.select(request.layers)
        self.placement = Placement(group_references([path.reference for path in self.paths]))
        self._check_positions()
        self.map_blocks = frozenset(b for b in self.layout.blocks if self.layout.factor(b) in request.maps.factors)
        if not self.map_blocks:
            raise bad_input(
                "MagicFace: map resolutions",
                f"{request.maps.factors}",
                f"some of {self.layout.factors}, where this model has attention",
                "Choose at least one of them.",
            )
        self.ca_scale = request.maps.ca_scale or auto_ca_scale(len(self.placement.concepts))
        self._cache_keys = [path.cache_key(model_key, request.noise_seed, self.blocks) for path in self.paths]
        request.cache.begin_run()
        if request.recorder is not None:
            self.recorder = RunRecorder(request.recorder, self)

    def _check_positions(self) -> None:
        lost = [c for c in self.placement.concepts if not c.positions and c.region is None]
        if self.request.alpha < 1 and lost:
            names = [self.paths[index].reference.name for concept in lost for index in concept.members]
            raise bad_input(
                "MagicFace: references",
                f"no token positions for {', '.join(map(repr, names))}",
                "the concept's word in the picture's prompt (needed to find its region)",
                "Put the word into the prompt, give the reference a region, or set alpha to 1.",
            )

    # -- calls ---------------------------------------------------------------------------------------------------

    def begin_call(
        self,
        sigma: float,
        conditional: Sequence[bool],
        grid: Grid,
        samples: Sequence[int] | None = None,
        area: Hashable = None,
        worded: Sequence[bool] | None = None,
    ) -> MagicFaceCall:
        """Start one model call; use the result in a ``with`` statement round the forward.

        Args:
            sigma: VE noise level of the call.
            conditional: per row whether it is a conditional one.
            grid: height and width of the latent.
            samples: per row which picture of the batch it belongs to; by default rows come in chunks of the batch.
            area: key of the part of the picture this call covers (area conditioning); None is all of it.
            worded: per row whether its text is the prompt in which the concepts' tokens were found; only such
                conditional rows make maps. None is all of them.
        """
        sigma, conditional = float(sigma), tuple(bool(c) for c in conditional)
        if not self.enabled:
            return MagicFaceCall.idle()
        if not same_sigma(sigma, self._sigma):
            self._advance(sigma)
        stage = RSA if self.schedule.before(sigma, self.request.alpha) else RBA
        maps, whole = self._maps.setdefault(area, _Maps()), area is None
        active = any(conditional) and (stage == RSA or self._has_concepts(maps, whole))
        keys = self._concept_keys(sigma) if active else {}
        observe = self._observes(sigma, whole)
        if observe and maps.builder is None:
            maps.builder = self._new_builder(grid)
        return MagicFaceCall(
            run=self,
            sigma=sigma,
            stage=stage,
            conditional=conditional,
            samples=_samples(conditional) if samples is None else tuple(samples),
            worded=conditional if worded is None else tuple(worded),
            grid=tuple(grid),
            whole=whole,
            keys=keys,
            maps=maps,
            builder=maps.builder if observe else None,
        )

    def _advance(self, sigma: float) -> None:
        """A new noise level begins: what was observed at the previous one becomes the map in use."""
        for maps in self._maps.values():
            maps.promote()
        self._sigma = sigma

    def _has_concepts(self, maps: _Maps, whole: bool) -> bool:
        if whole and self.placement.any_placed:
            return True
        return maps.current is not None and bool((maps.current.labels > 0).any())

    def _observes(self, sigma: float, whole: bool) -> bool:
        """Whether attention maps are needed at this noise level: from the step before RBA on, or for other users."""
        if self.request.scfg or self.recorder is not None:
            return True
        if whole and self.placement.all_placed:
            return False
        return self.request.alpha < 1 and self.schedule.step(sigma) + 1 >= self.request.alpha * self.schedule.steps

    def _new_builder(self, grid: Grid) -> MapBuilder:
        options = self.request.maps
        finest = min(self.layout.factor(block) for block in self.map_blocks)
        target = level_grid(grid, finest)
        return MapBuilder(self.placement.phrases, self.ca_scale, options.completion, options.chunk, target)

    @property
    def needs_foreground(self) -> bool:
        """Whether unconditional rows are observed."""
        return self.request.scfg or self.ca_scale < auto_ca_scale(1)

    def commit(self, call: MagicFaceCall) -> None:
        """A call ended well: tell the recorder."""
        if self.recorder is not None:
            self.recorder.commit(call)

    # -- references ----------------------------------------------------------------------------------------------

    def _concept_keys(self, sigma: float) -> dict[BlockId, list[ReferenceKeys]]:
        """Keys per block and concept at a noise level."""
        entries = self._reference_entries(sigma)
        keys: dict[BlockId, list[ReferenceKeys]] = {}
        for block in self.blocks:
            made = [ReferenceKeys(*path.keys(block, e[block])) for path, e in zip(self.paths, entries, strict=True)]
            keys[block] = [ReferenceKeys.join([made[i] for i in c.members]) for c in self.placement.concepts]
        return keys

    def _reference_entries(self, sigma: float) -> list[ReferenceEntry]:
        if self._entries is not None and same_sigma(self._entries[0], sigma):
            return self._entries[1]
        self._entries = None
        cache, stamp = self.request.cache, f"{sigma:.6g}"
        device = self._device or self.paths[0].reference.latent.device
        entries = [cache.get((key, stamp), device) for key in self._cache_keys]
        missing = [i for i, entry in enumerate(entries) if entry is None]
        for indices in self._batches(missing):
            for i, entry in zip(indices, self._capture(indices, sigma), strict=True):
                entries[i] = entry
                cache.put((self._cache_keys[i], stamp), entry)
        self._entries = (sigma, entries)
        return entries

    def _batches(self, indices: Sequence[int]) -> list[list[int]]:
        """References that fit one forward: same latent size, same host key."""
        batches: dict[Hashable, list[int]] = {}
        for i in indices:
            reference = self.paths[i].reference
            batches.setdefault((tuple(reference.latent.shape), reference.batch_key), []).append(i)
        return list(batches.values())

    def _capture(self, indices: Sequence[int], sigma: float) -> tuple[ReferenceEntry, ...]:
        paths = tuple(self.paths[i] for i in indices)
        latents = [noised(p.reference.latent, self.request.noise_seed, sigma, p.index) for p in paths]
        batch = ReferenceBatch(tuple(p.reference for p in paths), torch.cat(latents), sigma)
        capture = Capture(paths, self.blocks)
        with contextlib.suppress(ReferencesCaptured):
            self._forward(batch, capture)
        if not capture.complete:
            raise RuntimeError("the host's reference forward did not show every chosen block to the capture")
        return capture.entries

    # -- guidance, end -------------------------------------------------------------------------------------------

    def guide(self, cond: torch.Tensor, uncond: torch.Tensor, scale: float) -> torch.Tensor:
        """S-CFG of the present sigma's predictions ``B C h w`` (noise or denoised); plain guidance without a map."""
        maps = self._maps.get(None) if self.enabled else None
        latest = None
        if maps is not None:
            latest = (maps.builder.finish() if maps.builder else None) or maps.current
        return guidance.guide(cond, uncond, scale, latest)

    def close(self) -> None:
        """Drop all state; may be called twice."""
        self._maps.clear()
        self._entries = None
        self.recorder = None
        self._sigma = None
        self.enabled = False
        self.paths = ()


def _samples(conditional: tuple[bool, ...]) -> tuple[int, ...]:
    """Default picture index of every row: chunks as long as the first run of equal labels."""
    rows = len(conditional)
    first = next((i for i, c in enumerate(conditional) if c != conditional[0]), rows)
    batch = first if rows % max(first, 1) == 0 else rows
    return tuple(i % batch for i in range(rows))
