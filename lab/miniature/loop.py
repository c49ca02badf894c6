"""What every training of the miniature shares: checkpoints, log, learning-rate curve, device."""

from __future__ import annotations

import contextlib
import json
import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from likeness.miniature.models import STATE

LOGS = Path(__file__).parent / "logs"


def device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast() -> contextlib.AbstractContextManager:
    """bfloat16 autocast; parameters and optimiser stay in float32."""
    return torch.autocast(device().type, torch.bfloat16)


def cosine(progress: float, warmup: float = 0.01, floor: float = 0.02) -> float:
    """Learning-rate factor at ``progress`` in 0..1: linear warm-up, then half a cosine down to ``floor``."""
    if progress < warmup:
        return progress / warmup
    p = min((progress - warmup) / (1 - warmup), 1.0)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * p))


class Checkpoint:
    """Model, optimiser and time spent in one file outside version control, written every ``every`` seconds."""

    def __init__(self, name: str, every: float = 180.0) -> None:
        self.path, self.every, self.last = STATE / f"{name}.pt", every, time.monotonic()

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[float, int]:
        """Load what was saved, if anything; returns seconds spent and step."""
        if not self.path.exists():
            return 0.0, 0
        saved = torch.load(self.path, map_location="cpu", weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        return saved["seconds"], saved["step"]

    def maybe_save(self, model: nn.Module, optimizer: torch.optim.Optimizer, seconds: float, step: int) -> bool:
        """Save if the last time is long enough ago; says whether it did."""
        due = time.monotonic() - self.last > self.every
        if due:
            self.save(model, optimizer, seconds, step)
        return due

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, seconds: float, step: int) -> None:
        """Write to a temporary file and rename, so that an interrupt never leaves half a checkpoint."""
        self.path.parent.mkdir(exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "seconds": seconds, "step": step},
                   temporary)
        temporary.replace(self.path)
        self.last = time.monotonic()


class Log:
    """Appends one JSON object a line to ``lab/miniature/logs/NAME.jsonl``."""

    def __init__(self, name: str) -> None:
        LOGS.mkdir(exist_ok=True)
        self.path = LOGS / f"{name}.jsonl"

    def write(self, **values: float | Tensor) -> None:
        """Append the values, rounded to four digits."""
        values = {k: v.item() if isinstance(v, Tensor) else v for k, v in values.items()}
        row = {k: v if isinstance(v, int) else float(f"{v:.4g}") for k, v in values.items()}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
