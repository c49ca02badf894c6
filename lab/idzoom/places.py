"""Where pictures are: files of a folder, lines of a list, samples of WebDataset shards; only shards are opened."""

from __future__ import annotations

import glob
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import braceexpand

from likeness.core.errors import bad_input

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")
SHARD = ".tar"
IMAGE, TEXT, KEYPOINTS = "image", "text", "keypoints"
#: Sidecars by what follows the picture's name without its ending, the first that is there.
SIDECARS = {TEXT: (".caption.txt", ".txt", ".caption"), KEYPOINTS: (".pose.json", ".json")}


@dataclass(frozen=True)
class Part:
    """A stretch of a file; ``size`` -1: all of it."""

    file: str
    offset: int = 0
    size: int = -1


@dataclass(frozen=True)
class Place:
    """One picture and what lies beside it.

    Attributes:
        name: the picture's path; in a shard ``<path>:<offset>/<key>``. No two places share it.
        parts: by role: :data:`IMAGE`, and of a shard's sample :data:`TEXT` and :data:`KEYPOINTS`.
        problem: why there is nothing to read; empty where there is.
    """

    name: str
    parts: dict[str, Part] = field(default_factory=dict)
    problem: str = ""

    def dumps(self) -> str:
        """One line of ASCII, whatever bytes the names hold."""
        return json.dumps([self.name, {k: [p.file, p.offset, p.size] for k, p in self.parts.items()}, self.problem])

    @classmethod
    def loads(cls, line: str) -> Place:
        """The inverse of :meth:`dumps`."""
        name, parts, problem = json.loads(line)
        return cls(name, {role: Part(*part) for role, part in parts.items()}, problem)


def find(inputs: Iterable[str], lists: Iterable[str] = (), without: str = "") -> Iterator[Place]:
    """Everything that the inputs hold, in a stable order.

    Args:
        inputs: folders (with all their folders), pictures, and shards; ``*``, ``?`` and ``{000..012}`` are expanded.
        lists: files with one path a line, or with paths ended by zero bytes.
        without: a folder that is passed over: that of the output, should it lie in an input.

    Raises:
        LikenessError: an input that is not there.
    """
    for given in inputs:
        for path in _expanded(given):
            yield from _of_path(path, os.path.abspath(without) if without else "")
    for given in lists:
        for path in _lines(given):
            yield from _of_file(os.path.abspath(path))


def _expanded(given: str) -> list[str]:
    if os.path.lexists(given):
        return [os.path.abspath(given)]
    paths = [path for part in braceexpand.braceexpand(given) for path in sorted(glob.glob(part)) or [part]]
    missing = [path for path in paths if not os.path.lexists(path)]
    if missing:
        raise bad_input("IDZoom: input", f"{missing[0]} (not there)", "a folder, a picture or a shard",
                        "Check the path.")  # fmt: skip
    return [os.path.abspath(path) for path in paths]


def _lines(file: str) -> Iterator[str]:
    """The paths of a list, read as bytes: names need not be text."""
    try:
        data = Path(file).read_bytes()
    except OSError as cause:
        raise bad_input("IDZoom: --list", f"{file} ({cause.strerror})", "a file with one path a line",
                        "Check the path.") from cause  # fmt: skip
    paths = data.split(b"\0") if b"\0" in data else data.splitlines()
    return (os.fsdecode(path) for path in paths if path.strip())


def _of_path(path: str, without: str) -> Iterator[Place]:
    return _walk(path, without) if os.path.isdir(path) else _of_file(path)


def _of_file(path: str) -> Iterator[Place]:
    return _samples(path) if path.lower().endswith(SHARD) else iter([Place(path, {IMAGE: Part(path)})])


def _walk(top: str, without: str) -> Iterator[Place]:
    """The pictures and shards below a folder, by name; a link to a folder that it lies in is not followed."""
    waiting: list[tuple[str, tuple[tuple[int, int], ...]]] = [(top, ())]
    while waiting:
        path, above = waiting.pop()
        if path == without:
            continue
        if not os.path.isdir(path):
            yield from _of_file(path)
            continue
        try:
            state = os.stat(path)
            with os.scandir(path) as found:
                names = sorted((entry.name for entry in found), reverse=True)
        except OSError as error:
            yield Place(path, problem=f"folder: {error.strerror}")
            continue
        here = (state.st_dev, state.st_ino)
        if here not in above:
            inside = ((os.path.join(path, name), name) for name in names)
            waiting += [(p, (*above, here)) for p, name in inside if _wanted(p, name)]


def _wanted(path: str, name: str) -> bool:
    return name.lower().endswith((*PICTURES, SHARD)) or os.path.isdir(path)


# --- shards -----------------------------------------------------------------------------------------------------------


def _samples(path: str) -> Iterator[Place]:
    """The samples of a shard by its headers; where it is damaged, what comes before the damage and a place for that."""
    key, offset, members = "", 0, {}
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                shard.members = []  # tarfile keeps all it has seen
                folder, _, file = member.name.rpartition("/")
                stem, _, ending = file.partition(".")
                if not member.isreg() or member.issparse() or not stem:
                    continue
                if f"{folder}/{stem}" != key and members:
                    yield _sample(path, key, offset, members)
                    members = {}
                if not members:
                    key, offset = f"{folder}/{stem}", member.offset
                members.setdefault(f".{ending.lower()}", Part(path, member.offset_data, member.size))
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        yield Place(path, problem=f"shard: {error}")
    if members:
        yield _sample(path, key, offset, members)


def _sample(path: str, key: str, offset: int, members: dict[str, Part]) -> Place:
    """The picture of a sample is ``image.*`` where there is one, else the first with a picture's ending."""
    images = [ending for ending in members if ending.endswith(PICTURES)]
    image = next((ending for ending in images if ending.startswith(".image.")), next(iter(images), None))
    parts = {} if image is None else {IMAGE: members[image]}
    for role, endings in SIDECARS.items():
        found = next((ending for ending in endings if ending in members), None)
        if found:
            parts[role] = members[found]
    name = f"{path}:{offset}/{key.lstrip('/')}"
    return Place(name, parts, "" if image else "sample without a picture")
