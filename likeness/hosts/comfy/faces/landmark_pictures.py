"""What Draw Landmarks does: faces or people of any of three types, drawn for a ControlNet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ....core.errors import bad_input
from ....drawing.pose import draw_faces, draw_people
from ....faces.interface import Faces
from ....faces.keypoints import parse
from .. import images
from .wired import faces_from

NODE = "Draw Landmarks"


def draw_landmarks(landmarks: Any, style: str) -> Tensor:
    """FACES, POSE_KEYPOINT or FACE_LANDMARKS as an IMAGE of the size of their pictures, black where there is nobody.

    Raises:
        LikenessError: something else.
    """
    if isinstance(landmarks, Mapping) and "frames" in landmarks:
        height, width = (int(side) for side in landmarks["image_size"])
        landmarks = faces_from(landmarks, torch.zeros(len(landmarks["frames"]), 3, height, width))
    if isinstance(landmarks, Faces):
        size = landmarks.height, landmarks.width
        drawn = [draw_faces(faces, *size, style) for faces in landmarks.pictures]
    else:
        poses = parse(landmarks, f"{NODE}: landmarks")
        drawn = [draw_people(pose.people, pose.height, pose.width, style) for pose in poses]
    if not drawn:
        raise bad_input(f"{NODE}: landmarks", "those of no picture", "at least one picture's", "Check the batch.")
    return images.to_comfy(torch.stack(drawn))
