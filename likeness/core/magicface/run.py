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

from ..attention import AttentionFunction
from ..blocks import BlockId, UNetLayout
from ..masks import FULL_FRAME, Frame, Grid
from ..schedule import same_sigma
from . import guidance
from .cache import ReferenceEntry
from .call import MagicFaceCall
from .injection import BlockKeys
from .record import RunRecorder
from .references import Capture, Noising, ReferenceBatch, ReferencesCaptured, add_noise, noised
from .regions import Regions
from .request import MagicFaceRequest
from .run_maps import RunMaps, View
from .setting import RSA, RunSetting, check_layout

__all__ = ["Capture", "MagicFaceCall", "MagicFaceRun", "ReferenceBatch", "ReferencesCaptured", "check_layout"]

ReferenceForward = Callable[[ReferenceBatch, Capture], None]


class MagicFaceRun:
    """State and method of one sampling run.

    Args:
        request: what the user asked for.
        layout: the model's transformer blocks.
        sigmas: the sampler's noise levels, first to last.
        model_key: changes whenever the model's weights change (part of the cache's keys).
        references: runs a reference batch through the host's plain UNet and shows K, V to the capture.
        attention: the host's plain self-attention ``(q, k, v, heads) -> out``, for rows without references.
        device: where the model computes; None is where the first reference's latent lies.
        noising: the model's forward process; by default the variance-exploding one.
        reserve: bytes on the device that the cache leaves free for the forward.

    Attributes:
        setting: what stays the same through the run; None when nothing would change, and after the end.
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
        noising: Noising = add_noise,
        reserve: int = 0,
    ) -> None:
        self.setting = RunSetting.of(request, layout, sigmas, attention)
        self.recorder: RunRecorder | None = None
        self._forward = references
        self._device = device
        self._noising = noising
        self._sigma: float | None = None
        self._keys: tuple[float, dict[BlockId, BlockKeys]] | None = None
        self._maps = RunMaps()
        if self.setting is not None:
            self._prepare(self.setting, model_key, reserve)

    def _prepare(self, setting: RunSetting, model_key: Hashable, reserve: int) -> None:
        request = setting.request
        self._cache_keys = [path.cache_key(model_key, request.noise_seed, setting.blocks) for path in setting.paths]
        request.cache.begin_run(reserve)
        if request.recorder is not None:
            self.recorder = RunRecorder(request.recorder, setting.schedule.steps)

    @property
    def enabled(self) -> bool:
        """False when nothing would change (no reference with weight and a non-empty mask), and after the end."""
        return self.setting is not None

    # -- calls ---------------------------------------------------------------------------------------------------

    def begin_call(
        self,
        sigma: float,
        conditional: Sequence[bool],
        grid: Grid,
        image_index: Sequence[int] | None = None,
        frames: Sequence[Frame | None] | None = None,
        is_prompt_row: Sequence[bool] | None = None,
    ) -> MagicFaceCall:
        """Start one model call; use the result in a ``with`` statement round the forward.

        Args:
            sigma: noise level of the call.
            conditional: per row whether it is a conditional one.
            grid: height and width of the latent.
            image_index: per row which picture of the batch it belongs to; by default rows come in chunks of the batch.
            frames: per row which part of its picture it shows (area conditioning, tiles), None where nobody knows: such
                a row has no regions and makes no map. By default every row is a whole picture.
            is_prompt_row: per row whether its text is the prompt in which the concepts' tokens were found; only such
                conditional rows make maps. None is all of them.
        """
        sigma, conditional = float(sigma), tuple(bool(c) for c in conditional)
        setting = self.setting
        if setting is None:
            return MagicFaceCall.idle()
        if not same_sigma(sigma, self._sigma):
            self._maps.promote()
            self._sigma = sigma
        stage, grid = setting.stage(sigma), tuple(grid)
        views = _views(_image_index(conditional) if image_index is None else image_index, frames)
        regions = Regions(setting.placement, self._maps, setting.constants, self._on)
        wanted = [view for view, mine in zip(views, conditional, strict=True) if mine]
        active = bool(wanted) and (stage == RSA or self._any_concept(regions, wanted, grid))
        needed = setting.needs_map(sigma)
        return MagicFaceCall(
            setting=setting,
            sigma=sigma,
            stage=stage,
            conditional=conditional,
            views=views,
            is_prompt_row=conditional if is_prompt_row is None else tuple(is_prompt_row),
            grid=grid,
            keys=self._block_keys(sigma) if active else {},
            maps=self._maps,
            regions=regions,
            observes=needed or self._recorded(sigma),
            keeps=needed,
            recorder=self.recorder,
        )

    def _any_concept(self, regions: Regions, views: Sequence[View], grid: Grid) -> bool:
        """Whether a concept has a place in any of the views: where none has, RBA is plain attention."""
        if not self.setting.placement.any_placed and all(self._maps.current([view]) is None for view in views):
            return False
        return any(map(len, regions.groups(views, self.setting.attention_grids(grid)).values()))

    def _recorded(self, sigma: float) -> bool:
        return self.recorder is not None and self.recorder.wants_map(self.setting.schedule.step(sigma))

    # -- references ----------------------------------------------------------------------------------------------

    @property
    def _on(self) -> torch.device:
        return self._device or self.setting.paths[0].reference.latent.device

    def _block_keys(self, sigma: float) -> dict[BlockId, BlockKeys]:
        """Keys per block at a noise level, made once."""
        if self._keys is not None and same_sigma(self._keys[0], sigma):
            return self._keys[1]
        self._keys = None
        entries = self._reference_entries(sigma)
        keys: dict[BlockId, BlockKeys] = {}
        paths, concepts = self.setting.paths, self.setting.placement.concepts
        for block in self.setting.blocks:
            made = [path.keys(block, e[block]) for path, e in zip(paths, entries, strict=True)]
            keys[block] = BlockKeys(tuple(tuple(key for i in c.members for key in made[i]) for c in concepts))
        self._keys = (sigma, keys)
        return keys

    def _reference_entries(self, sigma: float) -> list[ReferenceEntry]:
        cache, stamp = self.setting.request.cache, f"{sigma:.6g}"
        cache.relieve(self._on)
        entries = [cache.get((key, stamp), self._on) for key in self._cache_keys]
        missing = [i for i, entry in enumerate(entries) if entry is None]
        for indices in self._batches(missing):
            for i, entry in zip(indices, self._capture(indices, sigma), strict=True):
                entries[i] = entry
                cache.put((self._cache_keys[i], stamp), entry)
        return entries

    def _batches(self, indices: Sequence[int]) -> list[list[int]]:
        """References that fit one forward: same latent size, same host key."""
        batches: dict[Hashable, list[int]] = {}
        for i in indices:
            reference = self.setting.paths[i].reference
            batches.setdefault((tuple(reference.latent.shape), reference.batch_key), []).append(i)
        return list(batches.values())

    def _capture(self, indices: Sequence[int], sigma: float) -> tuple[ReferenceEntry, ...]:
        paths = tuple(self.setting.paths[i] for i in indices)
        latents = [
            noised(p.reference.latent, self.setting.request.noise_seed, sigma, p.index, self._noising) for p in paths
        ]
        batch = ReferenceBatch(tuple(p.reference for p in paths), torch.cat(latents), sigma)
        capture = Capture(paths, self.setting.blocks)
        with contextlib.suppress(ReferencesCaptured):
            self._forward(batch, capture)
        if not capture.complete:
            raise RuntimeError("the host's reference forward did not show every chosen block to the capture")
        return capture.entries

    # -- guidance, end -------------------------------------------------------------------------------------------

    def guide(self, cond: torch.Tensor, uncond: torch.Tensor, scale: float) -> torch.Tensor:
        """S-CFG of the present sigma's predictions ``B C h w`` (noise or denoised); plain guidance without a map."""
        views = [(image, FULL_FRAME) for image in range(cond.shape[0])]
        found = self._maps.present(views) or self._maps.current(views)
        return guidance.guide(cond, uncond, scale, found, self.setting.constants if self.setting else None)

    def close(self) -> None:
        """Drop all state; may be called twice."""
        self._maps.clear()
        self._keys = None
        if self.recorder is not None:
            self.recorder.close()
        self.recorder = None
        self._sigma = None
        if self.setting is not None:
            self.setting.request.cache.end_run()
        self.setting = None


def _views(image_index: Sequence[int], frames: Sequence[Frame | None] | None) -> tuple[View, ...]:
    return tuple(zip(image_index, frames or [FULL_FRAME] * len(image_index), strict=True))


def _image_index(conditional: tuple[bool, ...]) -> tuple[int, ...]:
    """Default picture index of every row: chunks as long as the first run of equal labels."""
    rows = len(conditional)
    first = next((i for i, c in enumerate(conditional) if c != conditional[0]), rows)
    batch = first if rows % max(first, 1) == 0 else rows
    return tuple(i % batch for i in range(rows))
