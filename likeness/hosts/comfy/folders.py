"""Folders of the user's model files."""

from __future__ import annotations

from pathlib import Path


def model_folders(name: str) -> tuple[Path, ...]:
    """Where files of a kind may lie: folders that other packs or the user have named, then the one below ``models``."""
    import folder_paths

    known = folder_paths.folder_names_and_paths.get(name, ([], set()))[0]
    return tuple(dict.fromkeys((*map(Path, known), Path(folder_paths.models_dir) / name)))
