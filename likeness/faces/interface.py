"""What the pack asks of face models: tensors in, typed results out. Providers live in the files beside this one.

Pictures are ``B 3 H W`` in [0, 1], coordinates are pixels of that picture (x right, y down). A provider is chosen once
per run and its ``name`` is kept with every embedding it made: embeddings of different providers are never compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..core.errors import bad_input
from . import geometry
from .geometry import Box

#: The parts of a head that every parser's labels are brought to; the index is the label.
PARTS = (
    "background", "skin", "left brow", "right brow", "left eye", "right eye", "glasses", "left ear", "right ear",
    "earring", "nose", "mouth", "upper lip", "lower lip", "neck", "necklace", "cloth", "hair", "hat",
)  # fmt: skip
#: Parts that are not the head: everything else of :data:`PARTS` is, hair and hat included.
NOT_HEAD = ("background", "neck", "necklace", "cloth")


@dataclass(frozen=True, eq=False)
class Face:
    """One detected face.

    Attributes:
        box: ``(x0, y0, x1, y1)`` in pixels, upright in the picture, from the hair to the chin.
        score: the detector's confidence in [0, 1].
        landmarks: ``5 2`` left eye, right eye, nose, left and right mouth corner (viewer's left first, as the upright
            face is seen); None if the detector gives none.
        dense: a larger set of landmarks ``N 2``, N one of 68 (iBUG), 106 (insightface), 478 (MediaPipe); or None.
        embedding: the identity vector ``D``, or None.
        embedder: name of the provider that made it.
        turned: degrees, clockwise as seen, by which the face stands turned, where landmarks cannot tell.
        extent: width and height of the face in its own upright frame; None: those of the box.
        number: place in the order of its picture, from 1; 0 before it is ordered.
    """

    box: Box
    score: float
    landmarks: Tensor | None = None
    dense: Tensor | None = None
    embedding: Tensor | None = None
    embedder: str = ""
    turned: float = 0.0
    extent: tuple[float, float] | None = None
    number: int = 0

    @property
    def area(self) -> float:
        """Box area in square pixels."""
        return geometry.area(self.box)

    @property
    def centre(self) -> tuple[float, float]:
        """Middle of the box."""
        return geometry.centre(self.box)

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the face as it would stand upright."""
        return self.extent or (self.box[2] - self.box[0], self.box[3] - self.box[1])

    @property
    def tilt(self) -> float:
        """Degrees in (-180, 180] by which the face is turned clockwise as seen; 180: upside down."""
        return self.turned if self.landmarks is None else geometry.tilt(self.landmarks)


@dataclass(frozen=True, eq=False)
class Faces:
    """The faces of a batch of pictures: the value of the type ``LIKENESS_FACES``.

    Attributes:
        pictures: per picture its faces, in order; empty where there is none.
        height, width: of every picture, in pixels.
        provider: name of the models that found them.
        source: what they were found in, in words: the picture, or landmarks or boxes of another node.
    """

    pictures: tuple[tuple[Face, ...], ...]
    height: int
    width: int
    provider: str
    source: str = "picture"

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def count(self) -> int:
        """Faces in all pictures together."""
        return sum(map(len, self.pictures))

    def check(self, images: Tensor, source: str) -> None:
        """Raise unless these faces are those of ``images`` ``B 3 H W``; ``source`` names the input in the error."""
        if (len(self), self.height, self.width) == (len(images), *images.shape[-2:]):
            return
        raise bad_input(
            source,
            f"faces of {len(self)} pictures of {self.width} x {self.height} pixels for {len(images)} pictures of "
            f"{images.shape[-1]} x {images.shape[-2]}",
            "the faces of these pictures",
            "Connect Detect Faces to the same picture, or leave the faces out to have them found.",
        )


@runtime_checkable
class FaceDetector(Protocol):
    """Finds faces. Optional attributes, see :mod:`.find`: ``working_side``, ``tilt_range``, ``turns``."""

    name: str

    def detect(self, images: Tensor) -> list[list[Face]]:
        """``B 3 H W`` in [0, 1] -> per picture its faces, most confident first; an empty list where there is none."""


@runtime_checkable
class FaceEmbedder(Protocol):
    """Maps face crops to identity vectors.

    Attributes:
        size: side of the square crop it expects.
        width: length of its vectors.
        margin: what its crops hold beyond the box, for :func:`.geometry.crop_square`.
        aligned: its crops are :func:`.geometry.norm_crop` of the five landmarks instead.
        differentiable: whether gradients flow from the vectors to the pixels (needed by identity losses).
        same_person: the least similarity, by :func:`similarities`, at which two faces pass for one person.
        euclidean: its vectors are compared by distance, and are not of unit length.
    """

    name: str
    size: int
    width: int
    margin: float
    aligned: bool
    differentiable: bool
    same_person: float
    euclidean: bool

    def embed(self, crops: Tensor) -> Tensor:
        """``B 3 S S`` in [0, 1] -> ``B D`` of unit length (unless ``euclidean``)."""


@runtime_checkable
class LandmarkDetector(Protocol):
    """Places landmarks inside given boxes."""

    name: str

    def landmarks(self, images: Tensor, boxes: Tensor) -> Tensor:
        """``B 3 H W`` in [0, 1] and ``B 4`` boxes -> ``B N 2`` points in pixels."""


@runtime_checkable
class FaceParser(Protocol):
    """Tells the parts of a head.

    Attributes:
        size: side of the square crop it expects, which holds the whole head.
    """

    name: str
    size: int

    def parse(self, crops: Tensor) -> Tensor:
        """``B 3 S S`` in [0, 1] -> labels ``B S S``, indices into :data:`PARTS`."""


@dataclass(frozen=True)
class FaceModels:
    """A detector and what goes with it.

    Attributes:
        make_embedder: called when faces are to be compared; finding one needs no embedder.
        make_landmarker: called when dense landmarks are wanted; None where the provider has none.
        make_parser: called when the parts of a head are wanted; None where no weights of a parser are there.
    """

    name: str
    detector: FaceDetector
    make_embedder: Callable[[], FaceEmbedder]
    make_landmarker: Callable[[], LandmarkDetector] | None = None
    make_parser: Callable[[], FaceParser] | None = None


def largest_face(faces: Sequence[Face]) -> Face | None:
    """The face with the largest box; None where there is none."""
    return max(faces, key=lambda face: face.area, default=None)


def embed_faces(embedder: FaceEmbedder, image: Tensor, faces: Sequence[Face]) -> Tensor:
    """Identity vectors ``F D`` of the faces of one picture ``3 H W``, each turned upright first."""
    if not faces:
        return torch.zeros(0, embedder.width)
    crops = [face_crop(embedder, image, face) for face in faces]
    return embedder.embed(torch.cat(crops))


def face_crop(embedder: FaceEmbedder, image: Tensor, face: Face) -> Tensor:
    """The crop ``1 3 S S`` of a face of ``3 H W`` that an embedder expects.

    Raises:
        LikenessError: it needs landmarks and the face has none.
    """
    if not embedder.aligned:
        centre, size = torch.tensor([face.centre]), torch.tensor([face.size])
        box = torch.cat([centre - size / 2, centre + size / 2], dim=1)
        angle = face.tilt if abs(face.tilt) > geometry.UPRIGHT else 0.0
        return geometry.crop_square(image[None], box, embedder.size, embedder.margin, angle)
    if face.landmarks is None:
        raise bad_input(
            f"Face models: {embedder.name}", "a face without landmarks", "its two eyes, nose and mouth corners",
            "Use a detector that gives landmarks: insightface, opencv or mediapipe.",
        )  # fmt: skip
    return geometry.norm_crop(image[None], face.landmarks[None], embedder.size)


def similarities(embedder: FaceEmbedder, a: Tensor, b: Tensor) -> Tensor:
    """Vectors ``A D`` and ``B D`` of one embedder -> ``A B``: cosines, or 1 - distance where it is ``euclidean``."""
    return 1 - torch.cdist(a.float(), b.float()) if embedder.euclidean else a.float() @ b.float().T


def with_embeddings(embedder: FaceEmbedder, image: Tensor, faces: Sequence[Face]) -> tuple[Face, ...]:
    """The faces of ``3 H W`` with their vectors and the name of who made them; vectors of its own are kept."""
    lacking = [face for face in faces if face.embedding is None or face.embedder != embedder.name]
    made = dict(zip(map(id, lacking), embed_faces(embedder, image, lacking), strict=True))
    return tuple(
        replace(face, embedding=made[id(face)], embedder=embedder.name) if id(face) in made else face for face in faces
    )


def face_similarities(embedder: FaceEmbedder, a: Sequence[Face], b: Sequence[Face]) -> Tensor:
    """Likeness ``A B`` of faces that carry their vectors.

    Raises:
        LikenessError: some carry none, or one of another provider: they mean nothing to each other.
    """
    makers = sorted({face.embedder or "nobody" for face in (*a, *b)} - {embedder.name})
    if makers:
        raise bad_input(
            "Faces: embeddings", f"embeddings by {', '.join(makers)}", f"embeddings by {embedder.name}",
            "Use the same Face Models for the picture and for the references.",
        )  # fmt: skip
    vectors = [torch.stack([f.embedding for f in part]) if part else torch.zeros(0, embedder.width) for part in (a, b)]
    return similarities(embedder, *vectors)
