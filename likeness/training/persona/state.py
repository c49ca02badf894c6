"""Saves and restores an unfinished persona training."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ...core.errors import LikenessError, bad_input
from ...formats.files import write_whole
from .trainer import PersonaTrainer

METADATA_KEY = "likeness.training"


def save_state(trainer: PersonaTrainer, path: str | Path) -> None:
    """Write the trainer's state whole or not at all."""
    tensors, plain = trainer.state()
    write_whole(Path(path), save(tensors, metadata={METADATA_KEY: json.dumps(plain)}))


def load_state(trainer: PersonaTrainer, path: str | Path) -> None:
    """Put a trainer where a saved one stood.

    Raises:
        LikenessError: an unreadable file, or one saved with other settings.
    """
    try:
        with safe_open(path, framework="pt") as file:
            plain = json.loads((file.metadata() or {})[METADATA_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        trainer.restore(tensors, plain)
    except LikenessError:
        raise
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as cause:
        raise bad_input(
            "Persona Train: resume", f"a saved training that cannot be read, {path.name} ({cause})",
            "a whole one", "Switch resume off to begin anew.",
        ) from cause  # fmt: skip
