"""What the pack asks of face models: tensors in, typed results out. Providers live in the files beside this one.

Pictures are ``B 3 H W`` in [0, 1], coordinates are pixels of that picture (x right, y down). A provider is chosen once
per run and its ``name`` is kept with every embedding it made: embeddings of different providers are never compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor


@dataclass(frozen=True)
class Face:
    """One detected face.

    Attributes:
        box: ``(x0, y0, x1, y1)`` in pixels.
        score: the detector's confidence in [0, 1].
        landmarks: ``5 2`` left eye, right eye, nose, left and right mouth corner (viewer's left first); None if the
            detector gives none.
    """

    box: tuple[float, float, float, float]
    score: float
    landmarks: Tensor | None = None

    @property
    def area(self) -> float:
        """Box area in square pixels."""
        return max(0.0, self.box[2] - self.box[0]) * max(0.0, self.box[3] - self.box[1])


@runtime_checkable
class FaceDetector(Protocol):
    """Finds faces."""

    name: str

    def detect(self, images: Tensor) -> list[list[Face]]:
        """``B 3 H W`` in [0, 1] -> per picture its faces, most confident first; an empty list where there is none."""


@runtime_checkable
class FaceEmbedder(Protocol):
    """Maps face crops to identity vectors.

    Attributes:
        size: side of the square crop it expects.
        width: length of its vectors.
        margin: what its crops hold beyond the box, for :func:`crop_square`.
        differentiable: whether gradients flow from the vectors to the pixels (needed by identity losses).
    """

    name: str
    size: int
    width: int
    margin: float
    differentiable: bool

    def embed(self, crops: Tensor) -> Tensor:
        """``B 3 S S`` in [0, 1] -> ``B D`` of unit length."""


@runtime_checkable
class LandmarkDetector(Protocol):
    """Places landmarks inside given boxes."""

    name: str

    def landmarks(self, images: Tensor, boxes: Tensor) -> Tensor:
        """``B 3 H W`` in [0, 1] and ``B 4`` boxes -> ``B N 2`` points in pixels."""


@dataclass(frozen=True)
class FaceModels:
    """A detector and the embedder that goes with it.

    Attributes:
        make_embedder: called when faces are to be compared; finding one needs no embedder.
    """

    name: str
    detector: FaceDetector
    make_embedder: Callable[[], FaceEmbedder]


def largest_face(faces: Sequence[Face]) -> Face | None:
    """The face with the largest box; None where there is none."""
    return max(faces, key=lambda face: face.area, default=None)
