"""A command in a process of its own, with all the processes that it starts: what they take, and their sudden end."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from likeness.core.errors import LikenessError

#: Seconds between two looks at all processes; what one of them does after the last look at it is not seen.
INTERVAL = 1.0


@dataclass(frozen=True)
class Cost:
    """What a command took, over all its processes.

    Attributes:
        seconds: from start to end.
        cpu: seconds that they computed.
        others: cores that everything else on the machine kept busy meanwhile, on average.
        peak: most bytes of main memory, seen at a look; what processes share counts once where the system tells.
        processes: the most at a time.
    """

    seconds: float
    cpu: float
    others: float
    peak: int
    processes: int


class Tree:
    """The processes of a command, itself first."""

    def __init__(self, command: Sequence[str], log: Path, env: dict[str, str] | None = None) -> None:
        self.log = log
        with log.open("ab") as file:
            self.process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        self.root, self.started, self.busy = psutil.Process(self.process.pid), time.monotonic(), _busy()
        self.cpu: dict[psutil.Process, float] = {}
        self.peak = self.most = 0

    def finish(self) -> Cost:
        """Wait for its end.

        Raises:
            LikenessError: it failed.
        """
        while self.process.poll() is None:
            self.look()
            time.sleep(INTERVAL)
        if self.process.returncode:
            last = self.log.read_text("utf-8", "replace").splitlines()[-1:]
            raise LikenessError(f"IDZoom: a run ended with {self.process.returncode}: {' '.join(last)} ({self.log})")
        seconds, cpu = time.monotonic() - self.started, sum(self.cpu.values())
        return Cost(seconds, cpu, max(0.0, _busy() - self.busy - cpu) / seconds, self.peak, self.most)

    def kill(self) -> None:
        """SIGKILL to all of its processes that run."""
        everybody = self.processes()
        for process in everybody:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(everybody)
        self.process.wait()

    def processes(self) -> list[psutil.Process]:
        """Those that run now."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return [self.root, *self.root.children(recursive=True)]
        return []

    def look(self) -> None:
        """Note what everybody has computed so far, and what all hold now."""
        total, everybody = 0, self.processes()
        for process in everybody:
            with contextlib.suppress(psutil.Error), process.oneshot():
                times = process.cpu_times()
                self.cpu[process] = times.user + times.system
                total += held(process)
        self.peak, self.most = max(self.peak, total), max(self.most, len(everybody))


def held(process: psutil.Process) -> int:
    """Bytes of main memory of a process; of what it shares with others its part, where the system tells (Linux)."""
    return getattr(process.memory_full_info(), "pss", 0) or process.memory_info().rss


def _busy() -> float:
    """Seconds that all cores together have computed since the machine was started."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)
