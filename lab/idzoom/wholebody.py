"""Bodies and faces by DWPose or RTMW through ``rtmlib``, from ONNX files that the user has. Nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from likeness.faces.keypoints import BODY, CERTAIN, FACE, Person, Pose
from likeness.faces.optional import first_file, installed, package

from .reading import Photo

#: Below ``models``; DWPose's pair as its authors name it.
FOLDER, DETECTOR, NETWORK = "wholebody", "yolox_l.onnx", "dw-ll_ucoco_384.onnx"
COMMAND = "pip install --no-deps rtmlib, and onnxruntime and opencv-python"
#: Where the face's 68 points lie in the 134 of OpenPose's order.
FIRST_FACE, LAST_FACE = 24, 92
LEAST_POINTS = 3


def available(models: str) -> bool:
    """Whether the package and both files are there."""
    folder = [Path(models or "models") / FOLDER]
    return installed("rtmlib", "onnxruntime") and all(first_file(folder, name) for name in (DETECTOR, NETWORK))


class WholeBody:
    """The two networks on the CPU.

    Args:
        models: folder whose ``wholebody`` holds them.

    Raises:
        LikenessError: the package cannot be imported.
    """

    name = "wholebody"

    def __init__(self, models: str) -> None:
        folder = Path(models or "models") / FOLDER
        self.model = package("wholebody", "rtmlib", COMMAND).Wholebody(
            det=str(folder / DETECTOR), pose=str(folder / NETWORK), det_input_size=(640, 640),
            pose_input_size=(288, 384), to_openpose=True, backend="onnxruntime", device="cpu",
        )  # fmt: skip

    def pose(self, photo: Photo) -> Pose | None:
        """The people of a picture; None where there are none."""
        points, scores = self.model(np.ascontiguousarray(np.array(photo.image)[..., ::-1]))
        people = people_of(np.asarray(points), np.asarray(scores))
        return Pose(people, photo.image.height, photo.image.width) if people else None


def people_of(points: np.ndarray, scores: np.ndarray) -> tuple[Person, ...]:
    """``P 134 2`` points in OpenPose's order and ``P 134`` scores -> people of whom more than a few points are sure."""
    if not len(points):
        return ()
    sure = torch.from_numpy(points).float()
    sure[torch.from_numpy(scores) < CERTAIN] = torch.nan
    people = [Person(one[:BODY], _face(one)) for one in sure]
    return tuple(one for one in people if int(torch.isfinite(one.body).all(dim=1).sum()) >= LEAST_POINTS)


def _face(one: torch.Tensor) -> torch.Tensor:
    """iBUG's 68 points, and the body's eyes for the pupils."""
    return torch.cat([one[FIRST_FACE:LAST_FACE], one[14:16]])[:FACE]
