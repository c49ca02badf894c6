"""Faces and poses as a sample's JSON tells them; needs none of the engine's packages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from likeness.faces.interface import Face
from likeness.faces.keypoints import Pose


def landmarks_of(faces: Sequence[Face], width: int, height: int) -> dict[str, Any]:
    """The faces as JSON: box, five and dense landmarks in pixels of a picture of that size, the largest face first."""
    found = [
        {
            "box": _rounded(torch.tensor(face.box)), "score": round(face.score, 4), "tilt": round(face.tilt, 2),
            "five": None if face.landmarks is None else _rounded(face.landmarks),
            "dense": None if face.dense is None else _rounded(face.dense),
        }
        for face in faces
    ]  # fmt: skip
    return {"width": width, "height": height, "faces": found}


def keypoint_of(pose: Pose) -> list[dict[str, Any]]:
    """A pose as POSE_KEYPOINT: one frame, coordinates in pixels, zeros for what is not known."""
    people = [{"pose_keypoints_2d": _flat(one.body), "face_keypoints_2d": _flat(one.face)} for one in pose.people]
    return [{"people": people, "canvas_width": pose.width, "canvas_height": pose.height}]


def _flat(points: Tensor) -> list[float]:
    known = torch.isfinite(points).all(dim=1, keepdim=True)
    rows = torch.cat([torch.where(known, points, 0.0), known.float()], dim=1)
    return [round(value, 2) for value in rows.flatten().tolist()]


def _rounded(values: Tensor) -> list:
    return torch.round(values.float().cpu(), decimals=2).tolist() if values.dim() < 2 else [_rounded(v) for v in values]
