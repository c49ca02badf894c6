"""Square crops of faces: framed by the head, turned upright, cut with one warp and put back with one warp.

Pictures are ``C H W`` in [0, 1], coordinates pixels of the picture (x right, y down, the first pixel's middle at .5).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Box = tuple[float, float, float, float]
HEAD_AT = (0.5, 0.46)  # where the middle of the face's box stands in its crop: hair needs more room than the neck
TILTED_ASPECT = 0.8  # width to height of a face, for boxes round tilted ones


@dataclass(frozen=True)
class Crop:
    """A square of a picture.

    Attributes:
        x, y: its middle in pixels.
        side: in pixels.
        angle: radians by which it is turned, as the eye line falls to the right (clockwise on the screen). At 0 the
            square lies on whole pixels.
    """

    x: float
    y: float
    side: float
    angle: float = 0.0

    def to_picture(self, points: Tensor) -> Tensor:
        """Points ``... 2`` of the crop in [0, 1] to pixels of the picture."""
        offset = (points - 0.5) * self.side
        return _turned(offset, self.angle) + points.new_tensor((self.x, self.y))

    def from_picture(self, points: Tensor) -> Tensor:
        """Points ``... 2`` in pixels of the picture to the crop, where it spans [0, 1]."""
        return _turned(points - points.new_tensor((self.x, self.y)), -self.angle) / self.side + 0.5

    def bounds(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Whole pixels ``x0, y0, x1, y1`` of a picture of this size that the crop reaches; empty when outside."""
        reach = self.side / 2 * (abs(math.cos(self.angle)) + abs(math.sin(self.angle)))
        x0, x1 = (min(max(v, 0), width) for v in (math.floor(self.x - reach), math.ceil(self.x + reach)))
        y0, y1 = (min(max(v, 0), height) for v in (math.floor(self.y - reach), math.ceil(self.y + reach)))
        return x0, y0, x1, y1


def _turned(offset: Tensor, angle: float) -> Tensor:
    cos, sin = math.cos(angle), math.sin(angle)
    x, y = offset.unbind(-1)
    return torch.stack([cos * x - sin * y, sin * x + cos * y], dim=-1)


def eye_tilt(landmarks: Tensor | None) -> float:
    """Angle of the eye line in radians in (-pi, pi], 0 for an upright face or without landmarks.

    Args:
        landmarks: ``5 2``; the first two are the eyes, image-left first on an upright face.
    """
    if landmarks is None:
        return 0.0
    x, y = (landmarks[1] - landmarks[0]).tolist()
    return math.atan2(y, x) if math.isfinite(x) and math.isfinite(y) and (x or y) else 0.0


def face_crop(
    box: Box,
    tilt: float = 0.0,
    frame: float = 1.8,
    upright: float = 10.0,
    extent: tuple[float, float] | None = None,
) -> Crop:
    """The square in which a face is repaired.

    Args:
        box: ``x0, y0, x1, y1`` of the face in pixels.
        tilt: of its eye line, radians.
        frame: side of the square in heights of the face.
        upright: degrees from which the square is turned with the face.
        extent: width and height of the face as it would stand upright, where they are known of a tilted one; None
            tells them from the box.
    """
    angle = tilt if abs(math.degrees(tilt)) > upright else 0.0
    width, height = extent or (box[2] - box[0], box[3] - box[1])
    if angle and extent is None:  # round a turned ellipse w x h the box W x H has W^2 + H^2 = w^2 + h^2
        height = math.hypot(width, height) / math.hypot(1, TILTED_ASPECT)
    side = max(1.0, frame * height)
    down = torch.tensor([0.5 - HEAD_AT[0], 0.5 - HEAD_AT[1]]) * side
    middle = torch.tensor([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]) + _turned(down, angle)
    if angle:
        return Crop(*middle.tolist(), side, angle)
    side = float(round(side))
    left, top = ((v - side / 2) for v in middle.tolist())
    return Crop(round(left) + side / 2, round(top) + side / 2, side)


def cut(image: Tensor, crop: Crop, size: int) -> Tensor:
    """The crop as a picture ``C size size``; what lies outside the picture repeats its border.

    One warp: bicubic where the crop is enlarged, averaged where it is made smaller.
    """
    fine = size * _oversampling(crop.side, size)
    ramp = (torch.arange(fine, device=image.device, dtype=torch.float64) + 0.5) / fine
    places = crop.to_picture(torch.stack(torch.meshgrid(ramp, ramp, indexing="xy"), dim=-1))  # F F 2
    return F.adaptive_avg_pool2d(_sampled(image.float(), places, "bicubic"), size).clamp(0, 1)


def put_back(crop_image: Tensor, crop: Crop, height: int, width: int) -> tuple[Tensor, tuple[int, int, int, int]]:
    """A crop's picture or mask ``C S S`` seen from the picture's pixels.

    Returns:
        ``C h w`` for the pixels ``x0, y0, x1, y1`` that the crop reaches, and these; 0 outside the crop.
    """
    x0, y0, x1, y1 = bounds = crop.bounds(height, width)
    if x1 <= x0 or y1 <= y0:
        return crop_image.new_zeros(crop_image.shape[0], 0, 0), bounds
    times = _oversampling(crop_image.shape[-1], crop.side)
    ys = (torch.arange((y1 - y0) * times, device=crop_image.device, dtype=torch.float64) + 0.5) / times + y0
    xs = (torch.arange((x1 - x0) * times, device=crop_image.device, dtype=torch.float64) + 0.5) / times + x0
    places = crop.from_picture(torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1))  # h w 2 in [0, 1]
    inside = ((places >= 0) & (places <= 1)).all(-1)
    seen = _sampled(crop_image.float(), places * crop_image.shape[-1], "bilinear") * inside
    return F.avg_pool2d(seen, times), bounds


def _oversampling(source: float, target: float) -> int:
    """Samples a target pixel along a side, so that no source pixel is left out."""
    return max(1, math.ceil(source / target - 1e-6))


def _sampled(image: Tensor, places: Tensor, mode: str) -> Tensor:
    """``C H W`` at pixel places ``h w 2``."""
    size = places.new_tensor((image.shape[-1], image.shape[-2]))
    grid = (places / size * 2 - 1).to(image.dtype)
    return F.grid_sample(image[None], grid[None], mode=mode, padding_mode="border", align_corners=False)[0]
