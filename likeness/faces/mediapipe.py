"""Google's MediaPipe: detection and the 478-point face mesh, with the weights that its package brings (Apache 2.0).

Only releases before 1.0 bring weights; 0.10.14 is the last that works with any numpy. It has no embedder.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.errors import bad_input
from . import geometry
from .interface import Face
from .optional import installed, package, points_tensor, rgb_bytes

PACKAGE = "mediapipe"
COMMAND = "pip install mediapipe==0.10.14 (Python 3.12 or older)"
#: its detectors: 0 for faces near the camera, 1 for small ones
MODELS = (1, 0)
#: the mesh looks at a crop of the box with so much on each side, as a share of its longer side
MARGIN = 0.5
#: the crop in which the mesh is looked for
CROP = 256


def available() -> bool:
    """Whether a release with weights is there; only its name and version are read."""
    from importlib.metadata import PackageNotFoundError, version

    with contextlib.suppress(PackageNotFoundError):
        return installed(PACKAGE) and version(PACKAGE).startswith("0.")
    return False


def _solutions() -> ModuleType:
    module = package("mediapipe", PACKAGE, COMMAND)
    if not hasattr(module, "solutions"):
        raise bad_input(
            "Face models: mediapipe", f"mediapipe {getattr(module, '__version__', '')}, which brings no weights",
            "a release before 1.0", f"Run in ComfyUI's Python: {COMMAND}",
        )  # fmt: skip
    return module.solutions


class MediaPipeDetector:
    """Detection, then the mesh inside each box; faces have all 478 landmarks and the five made of them.

    Args:
        threshold: least confidence of a face, in [0, 1].

    Raises:
        LikenessError: no package, or a release without weights.
    """

    name = "mediapipe"
    working_side = 1024
    smallest = 64  # its detectors look at 128 and 192 pixels for the whole picture
    tilt_range = 45.0
    turns = 4

    def __init__(self, threshold: float = 0.5) -> None:
        solutions = _solutions()
        self.detectors = [
            solutions.face_detection.FaceDetection(model_selection=which, min_detection_confidence=threshold)
            for which in MODELS
        ]
        self.mesh = solutions.face_mesh.FaceMesh(
            static_image_mode=True, max_num_faces=1, refine_landmarks=True, min_detection_confidence=0.3
        )

    def detect(self, images: Tensor) -> list[list[Face]]:
        """``B 3 H W`` in [0, 1] -> per picture its faces, most confident first."""
        rows = zip(images, rgb_bytes(images), strict=True)
        return [[self._with_mesh(image, face) for face in self._faces(picture)] for image, picture in rows]

    def _faces(self, picture: np.ndarray) -> list[Face]:
        found: list[Face] = []
        for detector in self.detectors:
            for face in self._read(detector.process(picture), *picture.shape[:2]):
                if all(geometry.intersection_over_union(face.box, other.box) < 0.4 for other in found):
                    found.append(face)
        return sorted(found, key=lambda face: face.score, reverse=True)

    @staticmethod
    def _read(result: Any, height: int, width: int) -> Iterator[Face]:
        for one in result.detections or []:
            box = one.location_data.relative_bounding_box
            x0, y0 = box.xmin * width, box.ymin * height
            left, right = ((p.x * width, p.y * height) for p in one.location_data.relative_keypoints[:2])
            eyes = torch.tensor([left, right])
            corner = (x0, y0, x0 + box.width * width, y0 + box.height * height)
            yield Face(corner, float(one.score[0]), turned=geometry.tilt(eyes))

    def _with_mesh(self, image: Tensor, face: Face) -> Face:
        (x, y), half = face.centre, max(face.size) / 2
        points = self._points(image, (x - half, y - half, x + half, y + half), face.turned)
        if points is None:
            return face
        five = geometry.five_points(points)
        box, size = geometry.box_of_turned(points[:468], geometry.tilt(five))  # the detector's own begins at the brows
        return replace(face, box=box, extent=size, landmarks=five, dense=points)

    def landmarks(self, images: Tensor, boxes: Tensor) -> Tensor:
        """The 478 landmarks ``B 478 2`` of one face a picture; NaN where the mesh sees none."""
        rows = [self._points(image, box.tolist()) for image, box in zip(images, boxes, strict=True)]
        return torch.stack([torch.full((478, 2), torch.nan) if row is None else row for row in rows]).to(images)

    def _points(self, image: Tensor, box: Any, degrees: float = 0.0) -> Tensor | None:
        box = torch.tensor([list(box)], dtype=torch.float32)
        crop = geometry.crop_square(image[None].float().cpu(), box, CROP, MARGIN, degrees)
        result = self.mesh.process(rgb_bytes(crop)[0])
        if not result.multi_face_landmarks:
            return None
        shares = points_tensor(np.array([(p.x, p.y) for p in result.multi_face_landmarks[0].landmark]))
        return geometry.from_crop_square(shares, box[0], MARGIN, degrees)
