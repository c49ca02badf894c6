"""YuNet and SFace of the OpenCV zoo (MIT and Apache 2.0 licences), from ONNX files of the user's, by OpenCV itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import bad_input
from .interface import Face
from .optional import bgr_bytes, first_file, installed, missing_file, package, points_tensor

PACKAGE = "cv2"
COMMAND = "pip install opencv-python-headless (not beside another OpenCV package)"
DETECTOR, EMBEDDER = "face_detection_yunet_2023mar.onnx", "face_recognition_sface_2021dec.onnx"
FOLDER = "opencv"
ZOO = "https://github.com/opencv/opencv_zoo/tree/main/models"


def available(folders: Sequence[Path]) -> bool:
    """Whether OpenCV and the detector's file are there."""
    return installed(PACKAGE) and first_file(folders, DETECTOR) is not None


def _file(folders: Sequence[Path], name: str, page: str) -> Path:
    path = first_file(folders, name)
    if path is None:
        raise missing_file("opencv", f"models/{FOLDER}/{name}", f"{ZOO}/{page}")
    return path


def _load(make: Any, path: Path, *arguments: Any) -> Any:
    try:
        return make(str(path), *arguments)
    except Exception as cause:  # cv2.error, and others from the import of a damaged file
        raise bad_input(
            "Face models: opencv", f"a file {path.name} that OpenCV cannot read ({cause})", "the zoo's ONNX file",
            f"Get it from {ZOO} once more; a few bytes long, it is a Git LFS pointer and not the file.",
        ) from cause  # fmt: skip


class YuNetDetector:
    """YuNet on the CPU.

    Args:
        folders: where its file may lie.
        threshold: least confidence of a face, in [0, 1].

    Raises:
        LikenessError: no OpenCV, no file, or another file.
    """

    name = "opencv"
    working_side = 1024
    smallest = 10
    certain = 0.7

    def __init__(self, folders: Sequence[Path], threshold: float = 0.6) -> None:
        cv2 = package("opencv", PACKAGE, COMMAND)
        path = _file(folders, DETECTOR, "face_detection_yunet")
        self.model = _load(cv2.FaceDetectorYN.create, path, "", (320, 320), threshold, 0.3, 5000)

    def detect(self, images: Tensor) -> list[list[Face]]:
        """``B 3 H W`` in [0, 1] -> per picture its faces, most confident first."""
        return [self._faces(picture) for picture in bgr_bytes(images)]

    def _faces(self, picture: np.ndarray) -> list[Face]:
        self.model.setInputSize((picture.shape[1], picture.shape[0]))
        _, rows = self.model.detect(picture)
        faces = [read_row(row) for row in ([] if rows is None else rows)]
        return sorted(faces, key=lambda face: face.score, reverse=True)


def read_row(row: np.ndarray) -> Face:
    """A row of YuNet: x, y, width, height, five landmarks (the subject's right eye first), score."""
    x, y, width, height = (float(value) for value in row[:4])
    score = min(1.0, max(0.0, float(row[14])))
    return Face((x, y, x + width, y + height), score, points_tensor(np.reshape(row[4:14], (5, 2))))


class SFaceEmbedder:
    """SFace on aligned crops.

    Raises:
        LikenessError: no OpenCV, no file, or another file.
    """

    name = "opencv"
    size = 112
    width = 128
    margin = 0.0
    aligned = True
    differentiable = False
    same_person = 0.363  # the threshold that OpenCV's documentation gives
    euclidean = False

    def __init__(self, folders: Sequence[Path]) -> None:
        cv2 = package("opencv", PACKAGE, COMMAND)
        self.model = _load(cv2.FaceRecognizerSF.create, _file(folders, EMBEDDER, "face_recognition_sface"), "")

    def embed(self, crops: Tensor) -> Tensor:
        """Aligned crops ``B 3 112 112`` in [0, 1] -> ``B 128`` of unit length."""
        rows = [np.array(self.model.feature(crop), np.float32).reshape(-1) for crop in bgr_bytes(crops)]
        return F.normalize(torch.from_numpy(np.stack(rows)), dim=1)
