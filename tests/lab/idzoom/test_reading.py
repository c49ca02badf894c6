"""Reading: whatever a file holds, it costs that file only; what is decoded is upright RGB over white."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lab.idzoom import hostile
from lab.idzoom.places import IMAGE, Part, Place
from lab.idzoom.reading import Dropped, read_photo
from lab.idzoom.settings import Settings

SMALL = replace(Settings(), least_side=16)


def place(path: Path) -> Place:
    return Place(str(path), {IMAGE: Part(str(path))})


def png(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, options.pop("format", "PNG"), **options)
    return buffer.getvalue()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8))
HOSTILE = {
    "empty": (b"", "unreadable"), "words": (b"no picture at all", "unreadable"),
    "cut": (png(NOISE)[:-900], "unreadable"), "huge": (hostile.png(11_000, 11_000), "too large"),
    "small": (png(NOISE.resize((15, 40))), "too small"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_bad_files_are_dropped_with_a_reason(tmp_path, name):
    data, reason = HOSTILE[name]
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(Dropped) as dropped:
        read_photo(place(tmp_path / "x.png"), SMALL)
    assert dropped.value.reason == reason


def test_no_plain_file_is_never_opened(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    for name in ("pipe.png", "loop.png", "gone.png"):
        with pytest.raises(Dropped, match="unreadable"):
            read_photo(place(tmp_path / name), SMALL)


def test_the_ending_does_not_matter(tmp_path):
    (tmp_path / "x.png").write_bytes(png(NOISE, format="JPEG"))
    photo = read_photo(place(tmp_path / "x.png"), SMALL)
    assert photo.original == (tmp_path / "x.png").read_bytes()
    assert photo.pixels().shape == (3, 40, 30)


def test_turned_by_exif_and_transparent_over_white(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    (tmp_path / "t.jpg").write_bytes(png(NOISE, format="JPEG", exif=exif))
    turned = read_photo(place(tmp_path / "t.jpg"), SMALL)
    assert turned.image.size == (40, 30) and turned.original is None
    (tmp_path / "a.png").write_bytes(png(Image.new("RGBA", (20, 20), (0, 0, 0, 0))))
    assert read_photo(place(tmp_path / "a.png"), SMALL).pixels().min() == 1


def test_sixteen_bits_keep_their_greys(tmp_path):
    grey = Image.fromarray(np.full((20, 20), 32768, dtype=np.uint16))
    (tmp_path / "g.png").write_bytes(png(grey))
    assert read_photo(place(tmp_path / "g.png"), SMALL).pixels().mean().item() == pytest.approx(0.5, abs=0.01)


def test_brought_down_to_the_longest_side(tmp_path):
    (tmp_path / "x.png").write_bytes(png(NOISE))
    assert read_photo(place(tmp_path / "x.png"), replace(SMALL, longest_side=24)).image.size == (18, 24)
    with pytest.raises(Dropped, match="too small"):
        read_photo(place(tmp_path / "x.png"), replace(SMALL, longest_side=20))
