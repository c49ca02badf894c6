"""A landmark ControlNet in the crop: the landmarks of each face, drawn anew as its crop shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....core.diir.geometry import Crop
from ....core.errors import bad_input
from ....drawing.pose import draw_faces
from ....faces.interface import Face
from ....faces.masks import in_crop


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
        entries = []
        for text, values in conditioning:
            before = values.get("control")
            if id(before) not in made:
                control = self.control_net.copy().set_cond_hint(hint, self.strength, (0.0, self.end), vae=self.vae)
                control.set_previous_controlnet(before)
                made[id(before)] = control
            entries.append([text, {**values, "control": made[id(before)], "control_apply_to_uncond": False}])
        return entries


def _has_landmarks(face: Face) -> bool:
    return face.dense is not None or face.landmarks is not None


def check_control(control_net: Any, context_width: int) -> None:
    """Raise a :class:`LikenessError` where a ControlNet was trained for another family of models.

    Args:
        context_width: channels of the text the model reads.
    """
    network = getattr(control_net, "control_model", None)
    parameters = network.named_parameters() if isinstance(network, torch.nn.Module) else ()
    width = next((weight.shape[1] for name, weight in parameters if name.endswith("attn2.to_k.weight")), None)
    if width not in (None, context_width):
        raise bad_input(
            "DIIR Landmark Control: control_net",
            f"a ControlNet for text of {width} channels",
            f"one for the {context_width} channels this model reads",
            "Load a ControlNet of the model's own family (SD1.x, SD2.x and SDXL differ).",
        )
