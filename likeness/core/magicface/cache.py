"""Reference K, V kept per sigma, so that the next seed or prompt with the same references skips the reference path."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch

from ..blocks import BlockId

log = logging.getLogger("likeness")

KeyValue = tuple[torch.Tensor, torch.Tensor]
ReferenceEntry = dict[BlockId, KeyValue]
MIB = 1024 * 1024


def entry_bytes(entry: ReferenceEntry) -> int:
    """Bytes an entry's tensors occupy."""
    return sum(t.numel() * t.element_size() for pair in entry.values() for t in pair)


@dataclass
class _Slot:
    entry: ReferenceEntry
    size: int
    on_device: bool
    run: int


class ReferenceCache:
    """A bounded store of reference K, V: first on the model's device, then in host memory.

    Sampling visits sigmas in the same order every run, where evicting the oldest would always evict what is needed
    next. So entries of the present run are never evicted: what does not fit is simply not kept, and only entries no
    longer used by the present run make room.

    Args:
        device_mb: mebibytes on the model's device (ignored for a model on the CPU).
        host_mb: mebibytes in host memory. Both 0 switches the cache off.
        free_bytes: tells how many bytes are free on a device; entries go to host memory when less than twice their
            size would remain. None does not ask.
    """

    def __init__(
        self,
        device_mb: float = 1024,
        host_mb: float = 4096,
        free_bytes: Callable[[torch.device], int] | None = None,
    ) -> None:
        self.budget = {True: int(device_mb * MIB), False: int(host_mb * MIB)}
        self.used = {True: 0, False: 0}
        self.free_bytes = free_bytes
        self.hits = 0
        self.misses = 0
        self._slots: OrderedDict[Hashable, _Slot] = OrderedDict()
        self._run = 0
        self._broken = False

    def __len__(self) -> int:
        return len(self._slots)

    def begin_run(self) -> None:
        """Mark the start of a sampling run: entries it does not touch may make room for its own."""
        self._run += 1
        self._broken = False

    def get(self, key: Hashable, device: torch.device) -> ReferenceEntry | None:
        """The entry stored under ``key``, on ``device``, or None."""
        slot = self._slots.get(key)
        if slot is None:
            self.misses += 1
            return None
        self.hits += 1
        slot.run = self._run
        self._slots.move_to_end(key)
        return {
            b: (k.to(device, non_blocking=True), v.to(device, non_blocking=True)) for b, (k, v) in slot.entry.items()
        }

    def put(self, key: Hashable, entry: ReferenceEntry) -> bool:
        """Keep ``entry``; False when it does not fit. Out of memory is a warning, and the run goes on without."""
        if self._broken or key in self._slots:
            return False
        size = entry_bytes(entry)
        device = next(iter(entry.values()))[0].device
        tier = device.type != "cpu" and self._device_has_room(device, size)
        try:
            if tier and self._make_room(True, size):
                self._keep(key, entry, size, True)
                return True
            if self._make_room(False, size):
                self._keep(key, {b: (k.cpu(), v.cpu()) for b, (k, v) in entry.items()}, size, False)
                return True
        except (torch.OutOfMemoryError, MemoryError) as error:
            self._broken = True
            log.warning("MagicFace: no memory for the reference cache (%s); going on without it.", error)
        return False

    def clear(self) -> None:
        """Forget everything."""
        self._slots.clear()
        self.used = {True: 0, False: 0}

    def _device_has_room(self, device: torch.device, size: int) -> bool:
        return self.free_bytes is None or self.free_bytes(device) > 2 * size

    def _keep(self, key: Hashable, entry: ReferenceEntry, size: int, on_device: bool) -> None:
        self._slots[key] = _Slot(entry, size, on_device, self._run)
        self.used[on_device] += size

    def _make_room(self, on_device: bool, size: int) -> bool:
        """Evict entries of earlier runs from a tier until ``size`` bytes fit; False when they cannot."""
        budget = self.budget[on_device]
        stale = [key for key, s in self._slots.items() if s.on_device == on_device and s.run != self._run]
        evictable = sum(self._slots[key].size for key in stale)
        if size > budget - self.used[on_device] + evictable:
            return False
        for key in stale:
            if self.used[on_device] + size <= budget:
                break
            self.used[on_device] -= self._slots.pop(key).size
        return True
