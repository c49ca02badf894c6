"""What a generated picture is worth: identity, prompt, sharpness; means with bootstrap intervals over people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from likeness.faces.geometry import crop_square
from likeness.faces.interface import Face, FaceDetector, FaceEmbedder

NO_FACE = -1.0


@dataclass(frozen=True)
class Summary:
    """A mean with its 95% bootstrap interval over ``count`` people."""

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.2f} ({self.low:.2f} to {self.high:.2f})"


def summarise(values: Mapping[object, Sequence[float]] | Sequence[float], rounds: int = 2000, seed: int = 0) -> Summary:
    """Mean and percentile bootstrap interval.

    Args:
        values: per person the values of all pictures (people are resampled, not pictures), or one value a person.
        rounds, seed: of the bootstrap.

    Raises:
        ValueError: there is no value.
    """
    groups = values.values() if isinstance(values, Mapping) else ([v] for v in values)
    means = np.array([np.mean(group) for group in groups if len(group)], dtype=float)
    if means.size == 0:
        raise ValueError("summarise: got no values; expected at least one")
    picks = np.random.default_rng(seed).integers(len(means), size=(rounds, len(means)))
    low, high = np.percentile(means[picks].mean(axis=1), (2.5, 97.5))
    return Summary(float(means.mean()), float(low), float(high), len(means))


@dataclass(frozen=True)
class IdentityJudge:
    """Identity similarity: the cosine of a reference's and a found face's vectors."""

    detector: FaceDetector
    embedder: FaceEmbedder

    @torch.no_grad()
    def vectors(self, images: Tensor) -> list[tuple[list[Face], Tensor]]:
        """Per picture of ``B 3 H W`` its faces, left to right, and their vectors ``F D``."""
        out = []
        for image, faces in zip(images, self.detector.detect(images), strict=True):
            faces = sorted(faces, key=lambda face: face.box[0])
            out.append((faces, self.embed(image, [face.box for face in faces])))
        return out

    @torch.no_grad()
    def embed(self, image: Tensor, boxes: Sequence[tuple[float, float, float, float]]) -> Tensor:
        """Vectors ``F D`` of the faces of one picture ``3 H W`` at known boxes."""
        if not boxes:
            return torch.zeros(0, self.embedder.width)
        crops = crop_square(image.expand(len(boxes), -1, -1, -1), torch.tensor(boxes), self.embedder.size)
        return self.embedder.embed(crops)

    def similarity(self, images: Tensor, reference: Tensor) -> list[float]:
        """Cosine of the largest face of every picture with the vector ``D``; ``NO_FACE`` where there is none."""
        scores = []
        for faces, vectors in self.vectors(images):
            largest = max(range(len(faces)), key=lambda i: faces[i].area, default=None)
            scores.append(NO_FACE if largest is None else float(vectors[largest] @ reference))
        return scores

    def colour_distances(self, images: Tensor, reference: Tensor) -> list[float]:
        """Distance of the largest face's skin and hair colours from ``2 3``; 1 where there is no face."""
        out = []
        for image, faces in zip(images, self.detector.detect(images), strict=True):
            face = max(faces, key=lambda f: f.area, default=None)
            out.append(1.0 if face is None else colour_distance(face_colours(image, face.box), reference))
        return out

    def assignment(self, images: Tensor, references: Tensor) -> list[list[float]]:
        """For several people in one picture: cosine of each reference ``R D`` with its face.

        Faces are taken from left to right in the order of the references; a picture with fewer faces than references
        scores ``NO_FACE`` for those left over, of more faces the largest are taken.
        """
        scores = []
        for faces, vectors in self.vectors(images):
            largest = sorted(sorted(range(len(faces)), key=lambda i: -faces[i].area)[: len(references)])
            row = [float(vectors[i] @ reference) for i, reference in zip(largest, references, strict=False)]
            scores.append(row + [NO_FACE] * (len(references) - len(row)))
        return scores


Box = tuple[float, float, float, float]
#: parts of a face's box, as shares of its width and height: x0, y0, x1, y1
SKIN_PART, HAIR_PART = (0.28, 0.45, 0.72, 0.85), (0.25, -0.06, 0.75, 0.1)


def face_colours(image: Tensor, box: Box) -> Tensor:
    """Mean colours of skin and hair, ``2 3``, of a face ``box`` in a picture ``3 H W``."""
    return torch.stack([_part_colour(image, box, part) for part in (SKIN_PART, HAIR_PART)])


def _part_colour(image: Tensor, box: Box, part: Box) -> Tensor:
    (x0, y0, x1, y1), (height, width) = box, image.shape[-2:]
    xs = [min(max(round(x0 + share * (x1 - x0)), 0), width - 1) for share in (part[0], part[2])]
    ys = [min(max(round(y0 + share * (y1 - y0)), 0), height - 1) for share in (part[1], part[3])]
    return image[:, ys[0] : ys[1] + 1, xs[0] : xs[1] + 1].mean(dim=(1, 2))


def colour_distance(a: Tensor, b: Tensor) -> float:
    """Mean absolute difference of :func:`face_colours`, 0 (equal) to 1."""
    return float((a - b).abs().mean())


def detection_rate(scores: Sequence[float]) -> float:
    """Share of similarity scores that come from a found face."""
    return sum(score != NO_FACE for score in scores) / len(scores)


def sharpness(images: Tensor) -> list[float]:
    """Mean absolute Laplacian of every picture's grey values (the drawn pictures themselves lie near 0.05)."""
    grey = images.mean(dim=1, keepdim=True)
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]).view(1, 1, 3, 3)
    return F.conv2d(grey, kernel).abs().mean(dim=(1, 2, 3)).tolist()


def psnr(images: Tensor, targets: Tensor) -> list[float]:
    """Peak signal-to-noise ratio of every picture in dB."""
    return (-10 * (images - targets).square().mean(dim=(1, 2, 3)).clamp(min=1e-10).log10()).tolist()
