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


def to_host(x: torch.Tensor) -> torch.Tensor:
    """A copy in host memory; for CUDA in pinned memory, where nothing waits for the copy, if the system has some."""
    if not x.is_cuda:
        return x.cpu()
    try:
        return torch.empty_like(x, device="cpu", pin_memory=True).copy_(x, non_blocking=True)
    except RuntimeError:
        return x.cpu()


def _mapped(entry: ReferenceEntry, copy: Callable[[torch.Tensor], torch.Tensor]) -> ReferenceEntry:
    return {block: (copy(k), copy(v)) for block, (k, v) in entry.items()}


@dataclass
class _Slot:
    entry: ReferenceEntry
    size: int
    on_device: bool
    run: int


class ReferenceCache:
    """A bounded store of reference K, V: on the model's device while a run lasts, between runs in host memory.

    Sampling visits sigmas in the same order every run, where evicting the oldest would always evict what is needed
    next. So entries of the present run are never evicted: what does not fit is simply not kept, and only entries no
    longer used by the present run make room.

    Args:
        device_mb: mebibytes on the model's device (ignored for a model on the CPU).
        host_mb: mebibytes in host memory. Both 0 switches the cache off.
        free_bytes: tells how many bytes are free on a device. None does not ask.
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
        self._reserve = 0
        self._broken = False

    def __len__(self) -> int:
        return len(self._slots)

    def begin_run(self, reserve: int = 0) -> None:
        """Mark the start of a sampling run: entries it does not touch may make room for its own.

        Args:
            reserve: bytes on the device that the cache leaves free for the model's forward.
        """
        self._run += 1
        self._reserve = reserve
        self._broken = False

    def end_run(self) -> None:
        """The device is for others now: what is there goes to host memory, as far as that has room."""
        self._leave_device(lambda: True)

    def relieve(self, device: torch.device) -> None:
        """Give up room on the device while less is free there than the run's reserve."""
        if self.free_bytes is not None and device.type != "cpu":
            self._leave_device(lambda: self.free_bytes(device) < self._reserve)

    def get(self, key: Hashable, device: torch.device) -> ReferenceEntry | None:
        """The entry stored under ``key``, on ``device``, or None."""
        slot = self._slots.get(key)
        if slot is None:
            self.misses += 1
            return None
        self.hits += 1
        slot.run = self._run
        self._slots.move_to_end(key)
        return _mapped(slot.entry, lambda x: x.to(device, non_blocking=True))

    def put(self, key: Hashable, entry: ReferenceEntry) -> bool:
        """Keep ``entry``; False when it does not fit. Out of memory is a warning, and the run goes on without."""
        if self._broken or key in self._slots:
            return False
        size = entry_bytes(entry)
        device = next(iter(entry.values()))[0].device
        try:
            if device.type != "cpu" and self._make_room(True, size) and self._device_has_room(device):
                self._keep(key, entry, size, True)
                return True
            if self._make_room(False, size):
                self._keep(key, _mapped(entry, to_host), size, False)
                return True
        except (torch.OutOfMemoryError, MemoryError) as error:
            self._broken = True
            log.warning("MagicFace: no memory for the reference cache (%s); going on without it.", error)
        return False

    def clear(self) -> None:
        """Forget everything."""
        self._slots.clear()
        self.used = {True: 0, False: 0}

    def _device_has_room(self, device: torch.device) -> bool:
        """Whether what is free there (the new entry is there already) is more than the run's reserve."""
        return self.free_bytes is None or self.free_bytes(device) >= self._reserve

    def _keep(self, key: Hashable, entry: ReferenceEntry, size: int, on_device: bool) -> None:
        self._slots[key] = _Slot(entry, size, on_device, self._run)
        self.used[on_device] += size

    def _leave_device(self, wanted: Callable[[], bool]) -> None:
        """Bring entries from the device to host memory, the longest unused first, while that is wanted."""
        for key in [key for key, slot in self._slots.items() if slot.on_device]:
            if not wanted():
                return
            slot = self._slots.pop(key)
            self.used[True] -= slot.size
            try:
                if self._make_room(False, slot.size):
                    self._keep(key, _mapped(slot.entry, to_host), slot.size, False)
            except (torch.OutOfMemoryError, MemoryError):
                log.warning("MagicFace: no host memory for the reference cache; the next run reads references anew.")
                return

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
