"""From a place to a picture. Whatever a file holds, it costs that file only."""

from __future__ import annotations

import io
import json
import os
import stat
import warnings
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from .places import IMAGE, SIDECARS, Part, Place
from .settings import Settings

#: What Pillow is let decode; none of these starts another program.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
PAPER = (255, 255, 255)
#: Text in a PNG that says which picture of the drawn world it is.
WORLD = "likeness-world"
#: Sidecars are words and points.
MOST_SIDECAR_BYTES = 16 * 2**20


class Dropped(Exception):
    """A picture is not for the shards: ``reason`` of a few fixed words, ``detail`` in free ones."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, eq=False)
class Photo:
    """A decoded picture.

    Attributes:
        image: RGB, upright, no larger than asked for.
        sidecars: by role what lies beside it.
        original: the file's bytes where they are a JPEG that shows just ``image``; else None.
        world: seed and side of the drawn picture that this is; None for anything else.
    """

    image: Image.Image
    sidecars: dict[str, bytes] = field(default_factory=dict)
    original: bytes | None = None
    world: tuple[int, int] | None = None

    def pixels(self) -> Tensor:
        """``3 H W`` in [0, 1]."""
        return torch.from_numpy(np.array(self.image)).permute(2, 0, 1).float() / 255


def read_photo(place: Place, settings: Settings) -> Photo:
    """The picture of a place.

    Raises:
        Dropped: it cannot be read, or is too large to be.
    """
    if place.problem:
        raise Dropped("unreadable", place.problem)
    try:
        data = read_part(place.parts[IMAGE], settings.most_bytes)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return decode(data, settings, read_sidecars(place))
    except Dropped:
        raise
    except Image.DecompressionBombError as error:
        raise Dropped("too large", str(error)) from error
    except Exception as error:  # decoders raise anything on bytes made to harm them
        raise Dropped("unreadable", f"{type(error).__name__}: {error}") from error


def read_part(part: Part, most: int) -> bytes:
    """The bytes of a part, if it is a plain file of no more than ``most``."""
    state = os.stat(part.file)
    if not stat.S_ISREG(state.st_mode):
        raise Dropped("unreadable", "no plain file")
    size = state.st_size if part.size < 0 else part.size
    if size > most:
        raise Dropped("too large", f"{size} bytes")
    with open(part.file, "rb") as file:
        file.seek(part.offset)
        data = file.read(size)
    if not data or len(data) < size:
        raise Dropped("unreadable", f"{len(data)} bytes of {size}" if size else "an empty file")
    return data


def read_sidecars(place: Place) -> dict[str, bytes]:
    """What lies beside a picture, by role: parts of its sample, or files of its name."""
    parts = {role: part for role, part in place.parts.items() if role != IMAGE}
    image = place.parts[IMAGE]
    if image.size < 0:
        stem = os.path.splitext(image.file)[0]
        for role, endings in SIDECARS.items():
            found = next((stem + ending for ending in endings if os.path.isfile(stem + ending)), None)
            if found:
                parts[role] = Part(found)
    return {role: data for role, part in parts.items() if (data := _sidecar(part)) is not None}


def _sidecar(part: Part) -> bytes | None:
    """Its bytes; None where it cannot be read: the picture may do without, or is dropped for the lack."""
    try:
        return read_part(part, MOST_SIDECAR_BYTES)
    except (Dropped, OSError):
        return None


def decode(data: bytes, settings: Settings, sidecars: dict[str, bytes] | None = None) -> Photo:
    """The first frame, upright, RGB over white, brought down to the longest side.

    Raises:
        Dropped: it says that it has too many pixels, or too few.
    """
    with Image.open(io.BytesIO(data), formats=FORMATS) as file:
        width, height = file.size
        if width * height > settings.most_pixels:
            raise Dropped("too large", f"{width} x {height} pixels")
        if min(width, height) < settings.least_side:
            raise Dropped("too small", f"{width} x {height} pixels")
        world = _world(file)
        upright = ImageOps.exif_transpose(file)
        image = _rgb(upright)
        plain = file.format == "JPEG" and file.mode == "RGB" and file.getexif().get(0x0112, 1) == 1
    image.thumbnail((settings.longest_side,) * 2, Image.Resampling.LANCZOS)
    if min(image.size) < settings.least_side:
        raise Dropped("too small", f"{width} x {height} pixels, {image.width} x {image.height} when brought down")
    return Photo(image, sidecars or {}, data if plain and image.size == (width, height) else None, world)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":  # Pillow would cut what is above 255
        values = np.nan_to_num(np.asarray(image, dtype=np.float32))
        top = 65535.0 if image.mode.startswith("I") else 1.0 if values.max(initial=0.0) <= 1 else 255.0
        return Image.fromarray((values / top * 255).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        over = image.convert("RGBA")
        paper = Image.new("RGB", image.size, PAPER)
        paper.paste(over, mask=over.getchannel("A"))
        return paper
    return image.convert("RGB")


def _world(file: Image.Image) -> tuple[int, int] | None:
    try:
        said = json.loads(file.info[WORLD])
        seed, side = int(said["seed"]), int(said["side"])
    except (KeyError, ValueError, TypeError):
        return None
    return (seed, side) if file.size == (side, side) else None
