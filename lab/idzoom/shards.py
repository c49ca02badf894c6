"""WebDataset shards that are whole or not there."""

from __future__ import annotations

import contextlib
import os
import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from webdataset import TarWriter

FOLDER = "shards"


def shard_path(out: Path, number: int) -> Path:
    """Where shard ``number`` of an output folder is."""
    return out / FOLDER / f"idzoom-{number:06d}.tar"


def key_of(number: int) -> str:
    """The key of the sample of a picture: its number in the journal."""
    return f"{number:09d}"


def tidy(out: Path, next_shard: int) -> None:
    """Remove what a killed run has left: unfinished shards, and one that the journal does not know."""
    for path in (out / FOLDER).glob("*.part"):
        path.unlink()
    shard_path(out, next_shard).unlink(missing_ok=True)


class Shard:
    """A shard that is being written, beside the place where it will be."""

    def __init__(self, out: Path, number: int) -> None:
        self.path, self.number, self.count = shard_path(out, number), number, 0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.part = self.path.with_suffix(".tar.part")
        self.file = self.part.open("wb")
        self.tar = TarWriter(self.file, mtime=0)  # the same samples make the same bytes

    def write(self, key: str, members: dict[str, bytes]) -> None:
        """Append a sample."""
        self.tar.write({"__key__": key, **members})
        self.count += 1

    def finish(self) -> None:
        """Bring it to the disk, then to its name."""
        self.tar.close()
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        os.replace(self.part, self.path)
        _sync_folder(self.path.parent)

    def abandon(self) -> None:
        """Close and remove it."""
        with contextlib.suppress(OSError):  # its end is of no use, and the disk may be full
            self.tar.close()
        self.file.close()
        self.part.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Bring a rename to the disk, where a folder can be opened."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def keys(path: Path) -> Iterator[str]:
    """The keys of a shard's samples, in order."""
    return (key for key, _ in groupby(member.name.partition(".")[0] for _, member in _entries(path)))


def members(path: Path, key: str) -> dict[str, bytes]:
    """The members of one sample of a shard, by ending."""
    return {
        member.name.partition(".")[2]: shard.extractfile(member).read()
        for shard, member in _entries(path)
        if member.name.partition(".")[0] == key
    }


def _entries(path: Path) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    with tarfile.open(path, "r:") as shard:
        for member in shard:
            yield shard, member
