"""Time and peak memory of a piece of work, on the CPU or on CUDA."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

MIB = 1024 * 1024


@dataclass(frozen=True)
class Measure:
    """Seconds, and mebibytes at the peak above what was in use before."""

    seconds: float
    peak_mib: float


def now(device: torch.device) -> float:
    """Seconds on a clock of no fixed start, when everything asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def measure(work: Callable[[], object], device: torch.device) -> Measure:
    """Run ``work`` once and measure it."""
    gc.collect()
    return _cuda(work, device) if device.type == "cuda" else _cpu(work)


def _cuda(work: Callable[[], object], device: torch.device) -> Measure:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    started = now(device)
    work()
    seconds = now(device) - started
    return Measure(seconds, (torch.cuda.max_memory_allocated(device) - before) / MIB)


def _cpu(work: Callable[[], object]) -> Measure:
    """Resident memory is sampled every 5 ms while the work runs (Linux; elsewhere memory reads as 0)."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
    before, peak, done = _resident(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], _resident())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    started = time.perf_counter()
    try:
        work()
    finally:
        seconds = time.perf_counter() - started
        done.set()
        watcher.join()
    return Measure(seconds, max(0, peak[0] - before) / MIB)


def _resident() -> int:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def device_name(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
