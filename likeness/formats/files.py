"""Files written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from ..core.errors import LikenessError


def write_whole(path: Path, data: bytes) -> None:
    """Write a file through a temporary neighbour and a rename; an older file survives every failure.

    Raises:
        LikenessError: the disk is full or the folder cannot be written.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        temporary = None
    except OSError as cause:
        raise LikenessError(
            f"Saving {path}: {cause.strerror or cause}. Nothing was lost: an older file of that name is untouched. "
            "Free some space or choose another folder, and save again."
        ) from cause
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
