"""Self-attention outputs of the inversion, kept and fused into the restoration (Alg. 2, line 5).

A host shows every self-attention output, after its output projection, to :meth:`FeatureFusion.output` and goes on with
what it gets back. Outside of :meth:`~FeatureFusion.recording` and :meth:`~FeatureFusion.fusing` it gets its own back.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ..errors import bad_input
from .fusion import fuse_tokens, mask_to_tokens
from .inversion import Denoise, Trajectory
from .request import CACHES

log = logging.getLogger("likeness")
Key = tuple[Hashable, int]
"""``(block, face)``"""
PLACES = ("device", "host")


class FeatureCache:
    """Features of every level, each level where there was room for it: on the device, in host memory, or nowhere.

    Args:
        mode: one of :data:`~.request.CACHES`; the others than ``"auto"`` name the only place that is used.
        room: bytes that may be used in each place; None is no limit of its own.
    """

    def __init__(self, mode: str = "auto", room: dict[str, int | None] | None = None) -> None:
        if mode not in CACHES:
            raise bad_input("DIIR: feature cache", repr(mode), f"one of {', '.join(CACHES)}", "Pick one.")
        self.places = list(PLACES) if mode == "auto" else [p for p in PLACES if p == mode]
        self.room = {"device": None, "host": None} | (room or {})
        self.used = dict.fromkeys(PLACES, 0)
        self._levels: dict[int, dict[Key, Tensor]] = {}
        self._dropped: set[int] = set()

    def holds(self, level: int) -> bool:
        """Whether all of a level is kept."""
        return level in self._levels

    def put(self, level: int, key: Key, feature: Tensor) -> None:
        """Keep one feature ``N C``, or drop its whole level where there is no room left."""
        if level in self._dropped:
            return
        kept = self._kept(feature)
        if kept is None:
            self._dropped.add(level)
            self.release(level)
            return
        self._levels.setdefault(level, {})[key] = kept

    def level(self, level: int) -> dict[Key, Tensor]:
        """All features of a level, where they lie."""
        return self._levels[level]

    def release(self, level: int) -> None:
        """Forget a level that is not needed any more."""
        self._levels.pop(level, None)

    def _kept(self, feature: Tensor) -> Tensor | None:
        while self.places:
            place = self.places[0]
            limit = self.room[place]
            if limit is None or self.used[place] + feature.nbytes <= limit:
                try:
                    kept = _copied(feature, place)
                except RuntimeError as error:
                    if "memory" not in str(error).lower():
                        raise
                else:
                    self.used[place] += feature.nbytes
                    return kept
            self.places.pop(0)
            log.info("DIIR: no room left for features on the %s; the rest go %s", place,
                     f"to the {self.places[0]}" if self.places else "nowhere and are computed again")
        return None


def _copied(feature: Tensor, place: str) -> Tensor:
    if place == "device" or feature.device.type == "cpu":
        return feature.detach().clone()
    pinned = torch.empty(feature.shape, dtype=feature.dtype, pin_memory=feature.device.type == "cuda")
    # a copy in stream order: read back in the same stream, so nothing waits for it
    return pinned.copy_(feature.detach(), non_blocking=True)


class FeatureFusion:
    """One chunk of faces in the paper's mode; made for a run and dropped with it.

    Args:
        mask: ``M_p`` of every face, ``B 1 h w`` at the latents' size.
        plain: the inversion's model; asked again for levels that are not kept.
        cache: where features go.
    """

    def __init__(self, mask: Tensor, plain: Denoise, cache: FeatureCache | None = None) -> None:
        self.mask, self.plain = mask, plain
        self.cache = cache if cache is not None else FeatureCache()
        self.again = 0  # levels computed again
        self._masks: dict[int, Tensor | None] = {}
        self._record: int | None = None
        self._beside: dict[Key, Tensor] | None = None
        self._fused: dict[Key, Tensor] | None = None

    @contextmanager
    def recording(self, level: int) -> Iterator[None]:
        """Round the inversion's model call that reaches ``level``."""
        self._record = level
        try:
            yield
        finally:
            self._record = None

    @contextmanager
    def fusing(self, level: int, trajectory: Trajectory) -> Iterator[None]:
        """Round the restoration's model call at ``level``."""
        kept = self.cache.level(level) if self.cache.holds(level) else self._computed(level, trajectory)
        self._fused = kept
        try:
            yield
        finally:
            self._fused = None
            self.cache.release(level)

    def output(self, block: Hashable, x: Tensor, faces: Sequence[int | None]) -> Tensor:
        """What goes on from a self-attention layer.

        Args:
            block: which layer, the same in both passes.
            x: its output after the projection, ``R N C``.
            faces: which face of the chunk each row is (both guidance rows of a face name it); None is left alone.
        """
        if self._record is not None or self._beside is not None:
            for row, face in enumerate(faces):
                if face is not None:
                    self._keep((block, face), x[row])
            return x
        if self._fused is None:
            return x
        return self._fuse(block, x, faces)

    def _keep(self, key: Key, feature: Tensor) -> None:
        if self._beside is not None:
            self._beside[key] = feature.detach().clone()
        else:
            self.cache.put(self._record, key, feature)

    def _computed(self, level: int, trajectory: Trajectory) -> dict[Key, Tensor]:
        self._beside = beside = {}
        self.again += 1
        try:
            self.plain(trajectory.inputs[level], trajectory.sigmas[level])
        finally:
            self._beside = None
        return beside

    def _fuse(self, block: Hashable, x: Tensor, faces: Sequence[int | None]) -> Tensor:
        chosen = {row: face for row, face in enumerate(faces) if face is not None and (block, face) in self._fused}
        mask = self._mask(x)
        if not chosen or mask is None:
            return x
        kept = torch.stack([self._fused[block, face].to(x, non_blocking=True) for face in chosen.values()])
        if kept.shape[1:] != x.shape[1:]:
            return x
        # rows are picked one by one: a list of numbers as index is copied to the device, which waits for it
        own = x if len(chosen) == len(x) else torch.stack([x[row] for row in chosen])
        fused = fuse_tokens(own, kept, torch.stack([mask[face] for face in chosen.values()]))
        if len(chosen) == len(x):
            return fused
        by_row = dict(zip(chosen, fused, strict=True))
        return torch.stack([by_row.get(row, x[row]) for row in range(len(x))])

    def _mask(self, x: Tensor) -> Tensor | None:
        tokens = x.shape[1]
        if tokens not in self._masks:
            mask = mask_to_tokens(self.mask, tokens)
            self._masks[tokens] = mask if mask is None else mask.to(x.device)
            if mask is None:
                log.warning("DIIR: a self-attention layer of %d tokens fits no level of the latents; another patch "
                            "merges or tiles them. Its features are not fused.", tokens)
        return self._masks[tokens]
