"""Where heads are in a picture: parsed, or an ellipse round the face's box."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.diir.geometry import Crop
from . import geometry
from .interface import NOT_HEAD, PARTS, Face, FaceParser

#: Of a face's box: width of the head; up and down from its middle, in half heights.
ELLIPSE = (1.45, 1.35, 1.08)
#: What the crop of a parser holds beyond the face's box, as a share of its longer side.
MARGIN = 0.6
#: A parsed head is looked for in the ellipse grown by this factor, and taken if it is of a likely size beside it.
REACH, LIKELY = 1.3, (0.35, 2.2)


def in_crop(face: Face, crop: Crop, size: int) -> Face:
    """A face in pixels of its crop, whose side is ``size``."""

    def moved(points: Tensor | None) -> Tensor | None:
        return None if points is None else crop.from_picture(points.float().cpu()) * size

    (x, y), zoom = moved(torch.tensor(face.centre)).tolist(), size / crop.side
    width, height = (edge * zoom for edge in face.size)
    box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    return replace(
        face,
        box=box,
        extent=None,
        turned=face.turned - math.degrees(crop.angle),
        landmarks=moved(face.landmarks),
        dense=moved(face.dense),
    )


def head_mask(image: Tensor, face: Face, parser: FaceParser | None = None) -> Tensor:
    """The head with its hair in a picture ``3 H W``: ``H W`` in [0, 1]."""
    height, width = image.shape[-2:]
    ellipse = head_ellipse(face, height, width)
    if parser is None:
        return ellipse
    parsed = _parsed(image, face, parser) * head_ellipse(face, height, width, REACH)
    share = float(parsed.sum() / ellipse.sum().clamp(min=1))
    return parsed if LIKELY[0] <= share <= LIKELY[1] else ellipse


def _upright(face: Face, height: int, width: int) -> Tensor:
    """The middles of all pixels in the frame of a face, ``H W 2``: pixels from its middle, upright."""
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    offset = torch.stack([columns - face.centre[0], rows - face.centre[1]], dim=-1)
    turn = math.radians(face.tilt)
    return offset @ torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])


def head_ellipse(face: Face, height: int, width: int, grow: float = 1.0) -> Tensor:
    """The head by its face's box alone, ``H W`` of 0 and 1: an ellipse, turned as the face is."""
    wide, up, down = ELLIPSE
    half_width, half_height = (grow * max(side, 1e-6) / 2 for side in face.size)
    x, y = _upright(face, height, width).unbind(dim=-1)
    tall = torch.where(y < 0, up * half_height, down * half_height)
    return ((x / (wide * half_width)).square() + (y / tall).square() <= 1).float()


def _parsed(image: Tensor, face: Face, parser: FaceParser) -> Tensor:
    """What the parser holds for the head, ``H W``, 0 outside its crop."""
    height, width = image.shape[-2:]
    (x, y), half = face.centre, max(face.size) / 2
    box = torch.tensor([[x - half, y - half, x + half, y + half]])
    labels = parser.parse(geometry.crop_square(image[None], box, parser.size, MARGIN, face.tilt))
    head = ~torch.isin(labels, torch.tensor([PARTS.index(part) for part in NOT_HEAD]))
    places = _upright(face, height, width) / (half * (1 + 2 * MARGIN))  # the crop spans -1 to 1
    return F.grid_sample(head[:, None].float(), places[None], padding_mode="zeros", align_corners=False)[0, 0]
