"""Is a picture good enough, and is it there already."""

from __future__ import annotations

import imagehash
import numpy as np
from PIL import Image
from scipy import ndimage

#: Side of the square of cosine coefficients whose signs are the hash: 256 bits.
HASH_SIDE = 16
HASH_BYTES = HASH_SIDE**2 // 8


def sharpness(image: Image.Image) -> float:
    """Variance of the Laplacian of the grey picture, in squared grey levels: 0 for one colour, small when blurred."""
    return float(ndimage.laplace(np.asarray(image.convert("L"), dtype=np.float32)).var())


def perceptual_hash(image: Image.Image) -> bytes:
    """The 256 bits of imagehash's ``phash``: what survives another size, format and quality."""
    return np.packbits(imagehash.phash(image, hash_size=HASH_SIDE).hash.ravel()).tobytes()


class Seen:
    """The hashes of the pictures kept so far, 32 bytes each; every one is compared, so none is missed."""

    def __init__(self) -> None:
        self.count = 0
        self.bits = np.zeros((1024, HASH_BYTES // 8), dtype=np.uint64)
        self.numbers = np.zeros(1024, dtype=np.int64)

    def add(self, number: int, bits: bytes) -> None:
        """Remember a kept picture."""
        if self.count == len(self.bits):
            self.bits = np.concatenate([self.bits, np.zeros_like(self.bits)])
            self.numbers = np.concatenate([self.numbers, np.zeros_like(self.numbers)])
        self.bits[self.count] = np.frombuffer(bits, dtype=np.uint64)
        self.numbers[self.count] = number
        self.count += 1

    def nearest(self, bits: bytes) -> tuple[int, int] | None:
        """Number of the most alike picture, the earliest of them, and the bits that differ; None if there is none."""
        if not self.count:
            return None
        differing = self.bits[: self.count] ^ np.frombuffer(bits, dtype=np.uint64)
        distances = np.bitwise_count(differing).sum(axis=1)
        best = int(distances.argmin())
        return int(self.numbers[best]), int(distances[best])
