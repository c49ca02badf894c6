"""Identity files: encoded people in one safetensors file, with the encoder that made them told in JSON metadata."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..core.errors import LikenessError, bad_input
from .files import write_whole

METADATA_KEY = "likeness"
KIND, VERSION = "identities", 1
PARTS, TOLD = ("tokens", "nobody", "vector"), ("name", "scale", "start", "end", "embedder")


@dataclass(frozen=True, eq=False)
class SavedPerson:
    """One person of a file.

    Attributes:
        name: of the person. tokens: ``F_id``, ``L C``. nobody: what unconditional rows get, ``M C``.
        scale, start, end: weight, and the shares of the steps between which it acts.
        vector: ``E``, to know the person by, or None. embedder: who made it.
    """

    name: str
    tokens: Tensor
    nobody: Tensor
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    vector: Tensor | None = None
    embedder: str = ""


@dataclass(frozen=True, eq=False)
class SavedIdentities:
    """What an identity file holds.

    Attributes:
        people: in order. encoder: digest of the encoder that made the tokens. made_with: its weights' file, in words.
    """

    people: tuple[SavedPerson, ...]
    encoder: str
    made_with: str


def save_identities(saved: SavedIdentities, path: str | Path) -> Path:
    """Write the people whole or not at all; the name gets ``.safetensors`` if it has another ending."""
    path = Path(path)
    path = path if path.suffix == ".safetensors" else path.with_name(path.name + ".safetensors")
    parts = {f"{n}.{part}": getattr(one, part) for n, one in enumerate(saved.people) for part in PARTS}
    tensors = {name: tensor for name, tensor in parts.items() if tensor is not None}
    told = {
        "kind": KIND, "version": VERSION, "encoder": saved.encoder, "made_with": saved.made_with,
        "people": [{k: getattr(one, k) for k in TOLD} for one in saved.people],
    }  # fmt: skip
    ready = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_whole(path, save(ready, metadata={METADATA_KEY: json.dumps(told)}))
    return path


def load_identities(path: str | Path) -> SavedIdentities:
    """Read what :func:`save_identities` has written.

    Raises:
        LikenessError: no such file, a truncated one, one of a newer version, or another kind of file.
    """
    path = Path(path)
    source = f"Identity file {path.name}"
    if not path.is_file():
        raise bad_input(source, "no such file", "an existing one", "Check the name, or save identities first.")
    try:
        with safe_open(path, framework="pt") as file:
            told = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        _check(told, source)
        return SavedIdentities(_people(told["people"], tensors), told["encoder"], told["made_with"])
    except LikenessError:
        raise
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as cause:
        raise bad_input(source, f"a file that cannot be read ({cause})", "a whole file", "Save it again.") from cause


def _check(told: dict, source: str) -> None:
    if told.get("kind") != KIND:
        raise bad_input(source, "a file of another kind", "identities saved by this pack", "Pick another file.")
    if told["version"] > VERSION:
        raise bad_input(source, f"version {told['version']}", f"at most {VERSION}", "Update the pack.")


def _people(told: Sequence[dict], tensors: dict[str, Tensor]) -> tuple[SavedPerson, ...]:
    return tuple(
        SavedPerson(
            tokens=tensors[f"{n}.tokens"], nobody=tensors[f"{n}.nobody"], vector=tensors.get(f"{n}.vector"), **one
        )
        for n, one in enumerate(told)
    )  # fmt: skip
