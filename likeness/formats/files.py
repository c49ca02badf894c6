"""Files written whole or not at all, and the names and paths that users write."""

from __future__ import annotations

import os
import re
import secrets
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from ..core.errors import LikenessError, bad_input

#: Bytes of a name that leave room for a number and an ending on every file system.
LONGEST_NAME = 200
#: Names of devices on Windows, with any ending.
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}


def write_whole(path: Path, data: bytes) -> None:
    """Write a file through a temporary neighbour and a rename; an older file survives every failure.

    Its mode is what the user's umask makes of a new file.

    Raises:
        LikenessError: the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as cause:
        raise LikenessError(
            f"Saving {path}: {cause.strerror or cause}. Nothing was lost: an older file of that name is untouched. "
            "Free some space or choose another folder, and save again."
        ) from cause
    finally:
        with suppress(OSError):  # where the file could not be made, it cannot be removed either
            temporary.unlink()


def plain_name(name: str, source: str, ending: str = ".safetensors") -> str:
    """A file name a user has written, without its ending, as every file system takes it.

    Args:
        source: node and input to name in the error.

    Raises:
        LikenessError: it is empty, too long, a path, or a name that some system keeps for itself.
    """
    stem = name.strip().removesuffix(ending)
    faults = (
        (not stem, "an empty name"),
        (len(stem.encode()) > LONGEST_NAME, f"{stem[:40]!r}..., {len(stem.encode())} bytes"),
        (not re.fullmatch(r"[\w\- .]+", stem), repr(stem)),
        (stem[:1] == "." or stem[-1:] in (".", " "), repr(stem)),
        (stem.split(".")[0].strip().lower() in _RESERVED, f"{stem!r}, a device's name on Windows"),
    )
    for wrong, came in faults:
        if wrong:
            raise bad_input(
                source,
                came,
                f"a file name of at most {LONGEST_NAME} bytes: letters, digits, spaces, - and _, dots only inside",
                "Choose a plain name, without folders.",
            )
    return stem


def free_path(folder: Path, stem: str, overwrite: bool, ending: str = ".safetensors") -> Path:
    """Where a file of a plain name goes: an existing one is left, the new one numbered, unless it may be replaced."""
    path, number = folder / f"{stem}{ending}", 1
    while path.exists() and not overwrite:
        number += 1
        path = folder / f"{stem}_{number}{ending}"
    return path


def given_path(text: str, source: str, wanted: str) -> Path:
    """The file that a user has written the path of: quoted, with ``~``, or as ``file://``.

    Args:
        source: node and input to name in the error. wanted: what the file is, for the error.

    Raises:
        LikenessError: nothing, a folder, or a file that is not there.
    """
    bare = text.strip()
    if len(bare) > 1 and bare[0] == bare[-1] and bare[0] in "\"'":
        bare = bare[1:-1].strip()
    if not bare:
        raise bad_input(source, "an empty path", wanted, "Write its path, for example ~/Downloads/file.")
    if bare.lower().startswith("file://"):
        bare = url2pathname(urlsplit(bare).path)
    try:
        path = Path(bare).expanduser()
        kind = "file" if path.is_file() else "folder" if path.is_dir() else "nothing there"
    except (OSError, ValueError, RuntimeError) as cause:  # too long a name, a null character, no such user's home
        raise bad_input(source, f"{bare[:80]!r} ({cause})", wanted, "Check the path.") from cause
    if kind != "file":
        raise bad_input(source, f"{str(path)!r}, {kind}", wanted, "Check the path.")
    return path
