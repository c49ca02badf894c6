"""Sharpness in squared grey levels, and duplicates: the same picture in another size and quality, and no other."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from lab.idzoom.draw import drawn_png
from lab.idzoom.filters import Seen, perceptual_hash, sharpness
from lab.idzoom.settings import Settings


def test_sharpness():
    assert sharpness(Image.new("RGB", (32, 32), (90, 20, 200))) == 0
    board = np.indices((64, 64)).sum(axis=0) % 2  # neighbours differ by 1: the Laplacian is +4 and -4 but at the rim
    inside = sharpness(Image.fromarray((board * 10).astype(np.uint8)))
    assert inside == pytest.approx((4 * 10) ** 2, rel=0.06)
    picture = Image.open(io.BytesIO(drawn_png(3, 256)))
    assert sharpness(picture.filter(ImageFilter.GaussianBlur(6))) < Settings.sharpness < sharpness(picture)


def test_duplicates_are_found_and_others_are_not():
    seen, most = Seen(), Settings.distance
    pictures = [Image.open(io.BytesIO(drawn_png(seed, 256))).convert("RGB") for seed in range(12)]
    for number, picture in enumerate(pictures, 1):
        nearest = seen.nearest(perceptual_hash(picture))
        assert nearest is None or nearest[1] > most
        seen.add(number, perceptual_hash(picture))
    for number, picture in enumerate(pictures, 1):
        buffer = io.BytesIO()
        picture.resize((180, 180)).save(buffer, "JPEG", quality=60)
        found, bits = seen.nearest(perceptual_hash(Image.open(buffer)))
        assert found == number and bits <= most


def test_the_nearest_among_many():
    rng = np.random.default_rng(1)
    hashes = rng.integers(0, 256, (3000, 32), dtype=np.uint8)
    seen = Seen()
    for number, bits in enumerate(hashes, 1):
        seen.add(number, bits.tobytes())
    asked = hashes[2345].copy()
    asked[[0, 5, 31]] ^= np.array([1, 128, 3], dtype=np.uint8)
    assert seen.nearest(asked.tobytes()) == (2346, 4)
