"""The ``personas`` models folder."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from ....core.errors import bad_input
from ....core.persona.persona import Persona
from ....formats.files import free_path, given_path, plain_name
from ....formats.persona import load_persona, save_persona
from ....formats.persona_import import import_mapper
from .text import TokenizerAdapter, encoder_names, token_table, unwritten

FOLDER = "personas"
EXTENSIONS = {".safetensors"}
NONE = "(none)"


def register_folder() -> None:
    """Tell the host of ``models/personas``; paths a user has configured for it stay."""
    import folder_paths

    path = str(Path(folder_paths.models_dir) / FOLDER)
    paths, extensions = folder_paths.folder_names_and_paths.get(FOLDER, ([], set()))
    known = paths if path in paths else [*paths, path]
    folder_paths.folder_names_and_paths[FOLDER] = (known, set(extensions) | EXTENSIONS)


def list_personas() -> list[str]:
    """Names of the persona files, or one entry that says there are none."""
    import folder_paths

    register_folder()
    return folder_paths.get_filename_list(FOLDER) or [NONE]


def find_persona(name: str) -> Path:
    """Path of a persona file in the folder.

    Raises:
        LikenessError: there is none of that name.
    """
    import folder_paths

    register_folder()
    path = None if name == NONE else folder_paths.get_full_path(FOLDER, name)
    if path is None:
        raise bad_input(
            "Persona Load: persona", repr(name), "a file in models/personas", "Train and save a persona first."
        )
    return Path(path)


def load(name: str) -> Persona:
    """Read a persona from the folder."""
    return load_persona(find_persona(name))


def save(persona: Persona, name: str, overwrite: bool) -> Path:
    """Write a persona into the folder; an existing name gets a number unless it may be replaced.

    Raises:
        LikenessError: a name that is not a plain file name, or a disk that is full.
    """
    import folder_paths

    register_folder()
    stem = plain_name(name, "Persona Save: name")
    return save_persona(persona, free_path(Path(folder_paths.get_folder_paths(FOLDER)[-1]), stem, overwrite))


def state_path(name: str) -> Path:
    """Where an unfinished training of that name, any text, is kept."""
    import folder_paths

    register_folder()
    safe = re.sub(r"[^\w\-]+", "_", name.strip())[:60] or "persona"
    other = hashlib.sha256(name.strip().encode()).hexdigest()[:8]  # names that are alike when made safe
    return Path(folder_paths.get_folder_paths(FOLDER)[-1]) / "unfinished" / f"{safe}-{other}.state"


def describe(persona: Persona) -> str:
    """A persona in words."""
    trained, config = persona.training, persona.mapper.config
    base = persona.base.get("family", "unknown")
    lines = [
        f"name: {persona.name}",
        f"stands for: {persona.supercategory}",
        f"base: {base}, text widths {', '.join(map(str, config.widths))}",
        f"words: {config.tokens}; residual branch: {'yes' if persona.image is not None else 'no'}",
        f"dynamic stage: {persona.stages.low}-{persona.stages.high}, after it: {persona.stages.late}",
    ]
    if trained:
        lines.append(
            f"trained: {trained.get('done', '?')} steps of {trained.get('batch', '?')}, seed {trained.get('seed')}"
        )
    return "\n".join(lines)


def import_persona(
    clip: Any, path: str, supercategory: str, bounds: tuple[int, int], image: Tensor | None, clip_vision: Any
) -> Persona:
    """A persona from the authors' ``mapper-steps-N.pt``, with the word's vector from this CLIP.

    Args:
        path: as a user writes it. image: IMAGE that it was trained on, with ``clip_vision`` to embed it, or None.

    Raises:
        LikenessError: not such a file, one that asks for more than tensors, or a CLIP of another width.
    """
    node = "Persona Import"
    file = given_path(path, f"{node}: path", "the file mapper-steps-N.pt of the published code")
    if (image is None) != (clip_vision is None):
        raise bad_input(f"{node}: image", "one of image and clip_vision", "both or none", "Connect the other.")
    supercategory = unwritten(supercategory)
    pieces = TokenizerAdapter(clip, f"{node}: clip").pieces(supercategory)
    if not pieces:
        raise bad_input(f"{node}: supercategory", repr(supercategory), "a word", "Write the word it was trained with.")
    table = token_table(clip, encoder_names(clip, f"{node}: clip")[0])
    embedded = None if image is None else clip_vision.encode_image(image, crop="none")["image_embeds"].float().cpu()
    return import_mapper(file, table[pieces[0]].detach().float().cpu(), supercategory, embedded, bounds)
