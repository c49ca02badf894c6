"""Files that harm a careless reader: what tests and ``run.py idzoom prove`` put among the pictures."""

from __future__ import annotations

import functools
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from .draw import drawn_png

#: Bytes of the file that is too large to be read: it has a hole and takes no space.
HOLE = 300 * 2**20
LONGEST_NAME = 255


def png(width: int, height: int, *chunks: tuple[bytes, bytes], rows: bytes = b"") -> bytes:
    """A PNG of one bit a pixel by its parts: what the head says, further chunks, compressed rows."""
    head = (b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    parts = (head, *chunks, (b"IDAT", rows or zlib.compress(b"")), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + body


@functools.cache
def bomb(side: int = 30_000) -> bytes:
    """A true decompression bomb: ``side`` squared pixels, all there, in a thousandth of the bytes."""
    pack, row = zlib.compressobj(9), bytes(1 + side // 8)
    return png(side, side, rows=b"".join(pack.compress(row) for _ in range(side)) + pack.flush())


@functools.cache
def text_bomb() -> bytes:
    """A small PNG with a text that grows to 64 MiB."""
    return png(512, 512, (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(64 * 2**20), 9)))


def archive() -> bytes:
    """A ZIP file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("picture.jpg", b"")
    return buffer.getvalue()


def ring() -> bytes:
    """A TIFF whose first page is followed by itself, and which has no pixels."""
    return b"II*\0" + struct.pack("<IH", 8, 0) + struct.pack("<I", 8)


def jpeg(picture: bytes) -> bytes:
    """A picture as a JPEG."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(picture)) as image:
        image.save(buffer, "JPEG")
    return buffer.getvalue()


#: Kind -> ending, and what is in the file, made of a good PNG.
CONTENTS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "empty": (".png", lambda good: b""),
    "cut": (".png", lambda good: good[: len(good) // 2]),
    "cut-jpeg": (".jpg", lambda good: jpeg(good)[:-200]),
    "huge": (".png", lambda good: png(60_000, 60_000)),
    "huge-gif": (".gif", lambda good: b"GIF89a" + b"\xff\xff\xff\xff\0\0\0;"),
    "bomb": (".png", lambda good: bomb()),
    "text-bomb": (".png", lambda good: text_bomb()),
    "ring": (".tif", lambda good: ring()),
    "words": (".png", lambda good: b"no picture at all"),
    "page": (".webp", lambda good: b"<svg xmlns='http://www.w3.org/2000/svg' width='9999999' height='9999999'/>"),
    "script": (".jpg", lambda good: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{} loop\n"),
    "archive": (".jpg", lambda good: archive()),
    "shard": (".tar", lambda good: bytes(range(256)) * 4),
    "other-ending": (".png", jpeg),
}
#: Kind -> what follows it in the name of a good picture.
NAMES: dict[str, bytes] = {
    "newline": b"\nnext line\r\n.png", "no-text": b"\xff\xfe\x80.png", "quotes": b"'\"`$(exit)\\;.png",
    "longest": b".png",
}  # fmt: skip
#: Kinds that are no plain file, or none at all.
OTHERS = ("link-to-itself", "dangling-link", "pipe", "hole", "folder-in-itself")
KINDS = (*CONTENTS, *NAMES, *OTHERS)
#: How their names begin, with the kind behind it.
PREFIX = "hostile-"


def put(folder: Path, number: int, seed: int, side: int) -> None:
    """Hostile file ``number`` into a folder, the kinds in turn; one that is there stays.

    Args:
        seed, side: of the drawn picture that it is made of.
    """
    kind = KINDS[number % len(KINDS)]
    path = _path(folder, kind, number)
    if os.path.lexists(path):
        return
    folder.mkdir(parents=True, exist_ok=True)
    if kind in OTHERS:
        _put_other(kind, path)
        return
    good = drawn_png(seed, side)
    with open(path, "wb") as file:
        file.write(CONTENTS[kind][1](good) if kind in CONTENTS else good)


def _path(folder: Path, kind: str, number: int) -> bytes:
    """Its path, in bytes: not every name is text."""
    name = f"{PREFIX}{kind}-{number:08d}".encode()
    if kind == "longest":
        name = name.ljust(LONGEST_NAME - 4, b"x")
    ending = CONTENTS[kind][0].encode() if kind in CONTENTS else NAMES.get(kind, b".png")
    return os.path.join(os.fsencode(folder), name + (b"" if kind == "folder-in-itself" else ending))


def _put_other(kind: str, path: bytes) -> None:
    if kind == "folder-in-itself":
        os.mkdir(path)
        os.symlink(path, os.path.join(path, b"again"))
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "hole":
        with open(path, "wb") as file:
            file.truncate(HOLE)
    else:
        os.symlink(os.path.basename(path) if kind == "link-to-itself" else b"nowhere.png", path)
