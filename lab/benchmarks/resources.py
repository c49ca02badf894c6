"""Seconds and peak memory of a piece of work, without further packages."""

from __future__ import annotations

import sys
import time

import torch

MIB = 1024 * 1024


class Meter:
    """Measures a ``with`` block.

    Attributes:
        seconds: wall-clock time.
        peak_mib: on CUDA the block's peak of allocated memory; elsewhere the process's peak resident memory so far
            (it never falls, so measure the smaller piece of work first); None where the system does not tell.
    """

    seconds: float = 0.0
    peak_mib: float | None = None

    def __enter__(self) -> Meter:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._started = time.perf_counter()
        return self

    def __exit__(self, *exc: object) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self._started
        self.peak_mib = peak_memory()


def peak_memory() -> float | None:
    """Peak memory in MiB: allocated on CUDA, resident of this process elsewhere; None on Windows without CUDA."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / MIB
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024
