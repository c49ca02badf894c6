"""A landmark ControlNet in the crop: the landmarks of each face, drawn anew as its crop shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....core.diir.geometry import Crop
from ....drawing.pose import draw_faces
from ....faces.interface import Face
from ....faces.masks import in_crop
from ..control import with_control


@dataclass(frozen=True)
class LandmarkControl:
    """Puts the ControlNet on conditioning, a picture of its own for every face of a chunk.

    Attributes:
        control_net: the host's. vae: for those that take latents. style: one of :data:`.drawing.pose.STYLES`.
        strength, end: how strongly it acts, and the share of the steps after which it is off.
        faces, crops: every face, and where it is. size: side of the crops.
    """

    control_net: Any
    vae: Any
    style: str
    strength: float
    end: float
    faces: Sequence[Face]
    crops: Sequence[Crop]
    size: int

    def __call__(self, positive: list, negative: list, chunk: Sequence[int]) -> tuple[list, list]:
        """Positive and negative with the ControlNet on them; as they came where no face of the chunk has landmarks."""
        if not any(_has_landmarks(self.faces[face]) for face in chunk):
            return positive, negative
        hint = torch.stack([self.picture(face) for face in chunk])
        made: dict[int, Any] = {}
        return self._put(positive, hint, made), self._put(negative, hint, made)

    def picture(self, face: int) -> Tensor:
        """The landmarks of one face in its crop, ``3 S S``."""
        return draw_faces([in_crop(self.faces[face], self.crops[face], self.size)], self.size, self.size, self.style)

    def _put(self, conditioning: list, hint: Tensor, made: dict[int, Any]) -> list:
        return with_control(conditioning, self.control_net, hint, self.strength, (0.0, self.end), made, self.vae)


def _has_landmarks(face: Face) -> bool:
    return face.dense is not None or face.landmarks is not None
