"""The miniature's face models behind the interfaces: for the drawn world only, never for photographs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..faces.geometry import crop_square, intersection_over_union
from ..faces.interface import Face, FaceModels
from . import referees


class MiniatureDetector:
    """Finds drawn faces, from 10% to 65% of the picture's side.

    Args:
        threshold: least score of a face, in [0, 1].
        overlap: a face whose box overlaps a more certain one by more than this (IoU) is dropped.
    """

    name = "miniature"
    working_side = referees.DETECTOR_SIDE
    smallest = 13
    tilt_range = 40.0
    certain = 0.7
    turns = 24

    def __init__(self, threshold: float = 0.5, overlap: float = 0.4) -> None:
        self.threshold, self.overlap = threshold, overlap
        self.model = referees.load_referee("detector")

    @torch.no_grad()
    def detect(self, images: Tensor) -> list[list[Face]]:
        """``B 3 H W`` in [0, 1] -> per picture its faces, most confident first."""
        side = referees.DETECTOR_SIDE
        cpu = images.detach().float().cpu()
        longest = max(cpu.shape[-2:])
        square = F.pad(cpu, (0, longest - cpu.shape[-1], 0, longest - cpu.shape[-2]), mode="replicate")
        scores, boxes, points = referees.decode_cells(self.model(referees.resize(square, side)))
        zoom = longest / side
        rows = zip(scores, boxes * zoom, points * zoom, strict=True)
        return [self._faces(*row) for row in rows]

    def _faces(self, scores: Tensor, boxes: Tensor, points: Tensor) -> list[Face]:
        faces: list[Face] = []
        for i in scores.argsort(descending=True).tolist():
            if scores[i] < self.threshold:
                break
            face = Face(tuple(boxes[i].tolist()), float(scores[i]), points[i])
            if all(intersection_over_union(face.box, other.box) <= self.overlap for other in faces):
                faces.append(face)
        return faces

    def landmarks(self, images: Tensor, boxes: Tensor) -> Tensor:
        """Five landmarks ``B 5 2`` inside given boxes ``B 4``, one face a picture (LandmarkDetector)."""
        side = referees.DETECTOR_SIDE
        crops = crop_square(images.detach().float().cpu(), boxes.cpu(), side, margin=0.4)
        scores, _, points = referees.decode_cells(self.model(crops))
        best = points[torch.arange(len(points)), scores.argmax(dim=1)]  # B 5 2
        centre = ((boxes[:, :2] + boxes[:, 2:]) / 2).cpu()
        zoom = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1).cpu() * 1.8 / side
        return ((best - side / 2) * zoom[:, None, None] + centre[:, None]).to(images)


class MiniatureEmbedder:
    """Identity vectors of drawn faces, from crops made with :func:`crop_square` and its default margin."""

    name = "miniature"
    size = referees.EMBEDDER_SIDE
    width = referees.EMBEDDING
    margin = 0.25
    aligned = False
    differentiable = True
    same_person = 0.4
    euclidean = False

    def __init__(self) -> None:
        self.model = referees.load_referee("embedder")

    def embed(self, crops: Tensor) -> Tensor:
        """``B 3 64 64`` in [0, 1] -> ``B 128`` of unit length."""
        return F.normalize(self.model(crops.float()), dim=1)

    @torch.no_grad()
    def traits(self, crops: Tensor) -> list[dict[str, object]]:
        """``B 3 64 64`` in [0, 1] -> per face the traits it seems to have, by the names of ``Identity``."""
        logits = self.model.trait_logits(self.model(crops.float()))
        picks = [part.argmax(dim=1).tolist() for part in logits]
        names = list(referees.TRAITS)
        return [{n: referees.TRAITS[n][picks[i][row]] for i, n in enumerate(names)} for row in range(len(crops))]


def miniature_models() -> FaceModels:
    """The miniature's detector with its embedder."""
    return FaceModels("miniature", MiniatureDetector(), MiniatureEmbedder)
