"""Time and memory of a piece of work, on the CPU or on CUDA; and what it asks of a GPU, whatever the machine."""

from __future__ import annotations

import ctypes
import gc
import platform
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import psutil
import torch

from lab.virtual_gpu import DEVICE, move, virtual_gpu

MIB = 1024 * 1024
INTERVAL = 0.005  # seconds between two looks at the process's memory; no system tells a block's peak afterwards


class Meter:
    """Measures a ``with`` block.

    Args:
        device: where the work is done; None: CUDA where there is one.

    Attributes:
        seconds: wall-clock time, until everything asked of the device is done.
        peak_mib: the most memory in use during the block: allocated on CUDA, elsewhere resident of this process.
        above_mib: how much of it is above what was in use before.
    """

    seconds: float = 0.0
    peak_mib: float = 0.0
    above_mib: float = 0.0

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._memory = _CudaPeak(self.device) if self.device.type == "cuda" else _ProcessPeak()

    def __enter__(self) -> Meter:
        gc.collect()
        self._before = self._memory.start()
        self._started = now(self.device)
        return self

    def __exit__(self, *exc: object) -> None:
        self.seconds = now(self.device) - self._started
        peak = self._memory.stop()
        self.peak_mib, self.above_mib = peak / MIB, max(0, peak - self._before) / MIB


class _CudaPeak:
    """Bytes allocated by torch on a device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def start(self) -> int:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        return torch.cuda.memory_allocated(self.device)

    def stop(self) -> int:
        return torch.cuda.max_memory_allocated(self.device)


class _ProcessPeak:
    """Resident bytes of this process, looked at while the work runs."""

    def __init__(self) -> None:
        self._process, self._done = psutil.Process(), threading.Event()

    def start(self) -> int:
        if platform.libc_ver()[0] == "glibc":  # what is free goes back, so that the work's own use shows
            ctypes.CDLL(None).malloc_trim(0)
        self._done.clear()
        self._peak = before = self._resident()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return before

    def stop(self) -> int:
        self._done.set()
        self._watcher.join()
        return max(self._peak, self._resident())

    def _watch(self) -> None:
        while not self._done.wait(INTERVAL):
            self._peak = max(self._peak, self._resident())

    def _resident(self) -> int:
        return self._process.memory_info().rss


def measure(work: Callable[[], object], device: torch.device) -> Meter:
    """Run ``work`` once and measure it."""
    with Meter(device) as meter:
        work()
    return meter


@dataclass(frozen=True)
class Demand:
    """What a piece of work asks of a GPU: kernel launches, times the CPU waits for it, floating-point operations."""

    launches: int
    syncs: int
    flops: int

    #: Heads of a table's columns, see :meth:`columns`.
    HEADS: ClassVar[str] = "launches, x vanilla | waits | FLOPs, x vanilla"

    def columns(self, vanilla: Demand) -> str:
        """The columns of a table: beside vanilla's, and the waits that vanilla has not."""
        launches, flops = self.launches / vanilla.launches, self.flops / vanilla.flops
        return f"{launches:.2f} | {self.syncs - vanilla.syncs} | {flops:.3f}"


def demand(make: Callable[[torch.device], Callable[[], object]]) -> Demand:
    """What work asks of a GPU, counted on a virtual one (:mod:`lab.virtual_gpu`): the same on every machine.

    Args:
        make: builds the work for a device, see :func:`place`; what it does itself does not count.
    """
    with virtual_gpu() as log, torch.no_grad():
        work = make(DEVICE)
        log.clear()
        work()
        return Demand(log.launches, log.syncs, log.flops)


def place(module: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    """``module.to(device, dtype)``, of which the virtual device is not capable."""
    return move(torch.nn.Module.to(module, dtype)) if device == DEVICE else module.to(device, dtype)


def now(device: torch.device) -> float:
    """Seconds on a clock of no fixed start, when everything asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def device_name(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
