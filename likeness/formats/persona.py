"""Persona files: one safetensors file with JSON metadata, written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..core.errors import bad_input
from ..core.persona.persona import Persona, persona_description, persona_from, persona_tensors
from .files import write_whole

METADATA_KEY = "likeness"


def save_persona(persona: Persona, path: str | Path) -> Path:
    """Write a persona; the name gets ``.safetensors`` if it has another ending."""
    path = Path(path)
    path = path if path.suffix == ".safetensors" else path.with_name(path.name + ".safetensors")
    metadata = {METADATA_KEY: json.dumps(persona_description(persona))}
    write_whole(path, save(persona_tensors(persona), metadata=metadata))
    return path


def load_description(path: str | Path) -> dict:
    """The JSON half of a persona file, without its tensors.

    Raises:
        LikenessError: no such file, a truncated one, or another kind of file.
    """
    path = Path(path)
    if not path.is_file():
        raise bad_input("Persona file", f"no {path.name}", "a file", "Check the name, or train a persona first.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return json.loads(metadata[METADATA_KEY])
    except (SafetensorError, OSError, ValueError) as cause:
        raise bad_input(
            "Persona file", f"{path.name}, unreadable ({cause})", "a whole file", "Save it again."
        ) from cause
    except KeyError as cause:
        raise bad_input(
            "Persona file", f"{path.name} without persona data", "a persona saved by this pack", "Pick another file."
        ) from cause


def load_persona(path: str | Path) -> Persona:
    """Read a persona file; ``.pt`` files of the authors' code are imported without running anything in them."""
    path = Path(path)
    if path.suffix == ".pt":
        from .persona_import import import_mapper

        return import_mapper(path)
    description = load_description(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as cause:
        raise bad_input(
            "Persona file", f"{path.name}, unreadable ({cause})", "a whole file", "Save it again."
        ) from cause
    return persona_from(tensors, description, f"Persona file {path.name}")
