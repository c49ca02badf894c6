"""Faces marked in their picture, for eyes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..faces.interface import Face

CHOSEN, LEFT_OUT, INK = (90, 220, 120), (150, 150, 150), (10, 10, 10)


def draw_overlay(image: Tensor, faces: Sequence[Face], chosen: Sequence[Face]) -> Tensor:
    """A picture ``3 H W`` with a frame, turned as the face is, the landmarks and the number of every face.

    Args:
        chosen: those of the faces that are meant; the others are grey.
    """
    if min(image.shape[-2:]) == 0:
        return image
    array = (torch.nan_to_num(image).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    canvas = Image.fromarray(array)
    draw = ImageDraw.Draw(canvas)
    numbers = {face.number for face in chosen}
    for face in faces:
        _mark(draw, face, CHOSEN if face.number in numbers else LEFT_OUT, min(image.shape[-2:]))
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1).float() / 255


def _mark(draw: ImageDraw.ImageDraw, face: Face, colour: tuple[int, int, int], side: int) -> None:
    line = max(1, side // 256)
    corners = _corners(face)
    draw.line([*corners, corners[0]], fill=colour, width=line)
    for x, y in [] if face.landmarks is None else face.landmarks.tolist():
        draw.ellipse([x - line, y - line, x + line, y + line], fill=colour)
    font = ImageFont.load_default(max(9, side // 32))
    text = str(face.number)
    x, y = face.box[0], max(0.0, face.box[1])
    left, top, right, bottom = draw.textbbox((x + 2, y + 1), text, font=font)
    draw.rectangle([left - 2, top - 1, right + 2, bottom + 1], fill=colour)
    draw.text((x + 2, y + 1), text, fill=INK, font=font)


def _corners(face: Face) -> list[tuple[float, float]]:
    (x, y), (width, height) = face.centre, face.size
    turn = math.radians(face.tilt)
    cosine, sine = math.cos(turn), math.sin(turn)
    offsets = ((-width, -height), (width, -height), (width, height), (-width, height))
    return [(x + (a * cosine - b * sine) / 2, y + (a * sine + b * cosine) / 2) for a, b in offsets]
