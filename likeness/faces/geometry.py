"""Boxes, landmarks, alignment and crops. Boxes are ``x0, y0, x1, y1`` in pixels, angles degrees clockwise as seen."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core.errors import bad_input

Box = tuple[float, float, float, float]

#: Faces tilted by no more than this many degrees pass for upright.
UPRIGHT = 10.0

#: Where insightface puts the five landmarks in a crop of 112 pixels: left eye, right eye, nose, mouth corners.
TEMPLATE_112 = (
    (38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041),
)  # fmt: skip

#: The five landmarks in larger sets, each the mean of these points. 68: iBUG; 106: insightface; 478: MediaPipe.
FIVE_OF = {
    68: ((36, 37, 38, 39, 40, 41), (42, 43, 44, 45, 46, 47), (30,), (48,), (54,)),
    70: ((36, 37, 38, 39, 40, 41), (42, 43, 44, 45, 46, 47), (30,), (48,), (54,)),
    106: ((38,), (88,), (86,), (52,), (61,)),
    478: ((468,), (473,), (1,), (61,), (291,)),
}


def area(box: Box) -> float:
    """Area of a box in square pixels, 0 where it is inside out."""
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def centre(box: Box) -> tuple[float, float]:
    """Middle of a box."""
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def intersection(a: Box, b: Box) -> float:
    """Area that two boxes share."""
    return area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))


def intersection_over_union(a: Box, b: Box) -> float:
    """Overlap of two boxes, in [0, 1]."""
    shared = intersection(a, b)
    return shared / (area(a) + area(b) - shared) if shared else 0.0


def intersection_over_smaller(a: Box, b: Box) -> float:
    """Share of the smaller box that lies in the other, in [0, 1]."""
    shared = intersection(a, b)
    return shared / min(area(a), area(b)) if shared else 0.0


def box_of(points: Tensor) -> Box:
    """The box that just holds points ``N 2``."""
    low, high = points.amin(dim=0).tolist(), points.amax(dim=0).tolist()
    return low[0], low[1], high[0], high[1]


#: By how much of their height the box of points that end at the brows grows upwards, to the hair.
FOREHEAD = 0.25


def box_of_turned(points: Tensor, degrees: float, forehead: bool = False) -> tuple[Box, tuple[float, float]]:
    """The box of a face by its points ``N 2``: upright in the picture, and its size in the face's own turned frame.

    Args:
        forehead: the points end at the brows; a detector's box begins at the hair.
    """
    turn = math.radians(degrees)
    forth = torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]).to(points)
    x0, y0, x1, y1 = box_of(points @ forth)  # by the transpose: turned back
    y0 -= FOREHEAD * (y1 - y0) if forehead else 0.0
    middle = (forth @ torch.tensor(centre((x0, y0, x1, y1))).to(points)).tolist()
    size = (x1 - x0, y1 - y0)
    return turned_box((middle[0], middle[1]), size, degrees), size


def turned_box(middle: tuple[float, float], size: tuple[float, float], degrees: float) -> Box:
    """The upright box of an ellipse of ``size`` (width, height) that is turned; of the same size at 0 degrees."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    half_width = math.hypot(size[0] * cosine, size[1] * sine) / 2
    half_height = math.hypot(size[0] * sine, size[1] * cosine) / 2
    return middle[0] - half_width, middle[1] - half_height, middle[0] + half_width, middle[1] + half_height


def five_points(points: Tensor) -> Tensor:
    """The five landmarks ``5 2`` of a set ``N 2`` of 5, 68, 70, 106 or 478.

    Raises:
        LikenessError: a set of another size.
    """
    if len(points) == 5:
        return points
    if len(points) not in FIVE_OF:
        raise bad_input(
            "Face landmarks", f"{len(points)} points", "5, 68, 70, 106 or 478", "Use one of these landmark sets."
        )
    return torch.stack([points[list(part)].mean(dim=0) for part in FIVE_OF[len(points)]])


def tilt(five: Tensor) -> float:
    """Angle of the eye line of landmarks ``5 2`` in degrees, (-180, 180]; 0: upright, 90: lying on its left side."""
    across, down = (five[1] - five[0]).tolist()
    return math.degrees(math.atan2(down, across))


def similarity_transform(source: Tensor, target: Tensor) -> Tensor:
    """The similarity (scale, rotation, shift) that brings points ``B N 2`` closest to others, least squares.

    Umeyama, "Least-squares estimation of transformation parameters between two point patterns" (1991), Eq. 34-43.

    Returns:
        ``B 2 3``, to be applied to ``(x, y, 1)``.
    """
    source, target = source.double(), target.double()
    source_mean, target_mean = source.mean(dim=-2, keepdim=True), target.mean(dim=-2, keepdim=True)
    x, y = source - source_mean, target - target_mean
    u, s, v = torch.linalg.svd(y.transpose(-1, -2) @ x / x.shape[-2])  # B 2 2, B 2, B 2 2
    mirrored = torch.linalg.det(u) * torch.linalg.det(v) < 0
    signs = torch.stack([torch.ones_like(s[..., 0]), torch.where(mirrored, -1.0, 1.0)], dim=-1)  # B 2
    rotation = u * signs[..., None, :] @ v
    variance = x.square().sum(dim=-1).mean(dim=-1).clamp(min=1e-12)
    linear = rotation * ((s * signs).sum(dim=-1) / variance)[..., None, None]
    shift = target_mean.transpose(-1, -2) - linear @ source_mean.transpose(-1, -2)
    return torch.cat([linear, shift], dim=-1)


def apply_transform(matrix: Tensor, points: Tensor) -> Tensor:
    """Points ``... N 2`` through ``... 2 3``."""
    matrix = matrix.to(points)
    return points @ matrix[..., :2].transpose(-1, -2) + matrix[..., None, :, 2]


def invert_transform(matrix: Tensor) -> Tensor:
    """The inverse of ``... 2 3``."""
    linear = torch.linalg.inv(matrix[..., :2])
    return torch.cat([linear, -linear @ matrix[..., 2:]], dim=-1)


def warp(images: Tensor, matrix: Tensor, height: int, width: int, padding: str = "zeros") -> Tensor:
    """Pictures ``B C H W`` seen through ``B 2 3``, which maps their pixels to those of the result; differentiable.

    Whole numbers are middles of pixels, as in OpenCV's ``warpAffine``.

    Args:
        padding: what lies outside, as ``grid_sample`` names it: ``zeros``, ``border`` or ``reflection``.

    Returns:
        ``B C height width``, bilinear.
    """
    back = invert_transform(matrix.double())
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    grid = torch.stack([columns, rows], dim=-1).reshape(1, -1, 2).to(back)  # 1 HW 2
    points = apply_transform(back, grid)  # B HW 2
    size = torch.tensor([images.shape[-1], images.shape[-2]]).to(points)
    grid = ((2 * points + 1) / size - 1).reshape(-1, height, width, 2).to(images)
    return torch.nn.functional.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=False)


def template(size: int) -> Tensor:
    """Where the five landmarks belong in an aligned crop of ``size``, ``5 2``: a multiple of 112, or of 128.

    A multiple of 128 is the crop of 112 with a border of 8 pixels (times the factor) left and right and 16 below.

    Raises:
        LikenessError: another size.
    """
    points = torch.tensor(TEMPLATE_112)
    if size % 112 == 0:
        return points * (size / 112)
    if size % 128 == 0:
        return points * (size / 128) + torch.tensor([8 * size / 128, 0.0])
    raise bad_input("Aligned face crop", f"a side of {size}", "a multiple of 112 or 128", "Choose 112, 224 or 256.")


def norm_crop(images: Tensor, landmarks: Tensor, size: int = 112) -> Tensor:
    """Aligned crops ``B 3 size size`` of pictures ``B 3 H W`` by landmarks ``B 5 2``; black outside the picture."""
    target = template(size).expand(len(landmarks), -1, -1).to(landmarks)
    return warp(images, similarity_transform(landmarks, target), size, size)


def crop_square(images: Tensor, boxes: Tensor, size: int, margin: float = 0.25, degrees: float = 0.0) -> Tensor:
    """Square crops round boxes, differentiable in the pixels.

    Args:
        images: ``B 3 H W``.
        boxes: ``B 4`` as ``x0, y0, x1, y1`` in pixels.
        size: side of the result.
        margin: extra on each side, as a fraction of the longer side of the box.
        degrees: how far what is in the boxes is tilted; it comes out upright.

    Returns:
        ``B 3 size size``; what lies outside the picture repeats its border.
    """
    height, width = images.shape[-2:]
    boxes = boxes.to(images, non_blocking=True)
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2  # B 2
    side = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1) * (1 + 2 * margin)  # B
    ramp = (torch.arange(size, device=images.device, dtype=images.dtype) + 0.5) / size - 0.5
    across, down = torch.meshgrid(ramp, ramp, indexing="xy")  # S S
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    offset = torch.stack([across * cosine - down * sine, across * sine + down * cosine], dim=-1)  # S S 2
    points = middle[:, None, None] + offset * side[:, None, None, None]  # B S S 2
    grid = points / torch.tensor([width, height]).to(points, non_blocking=True) * 2 - 1
    return torch.nn.functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def from_crop_square(shares: Tensor, box: Tensor, margin: float = 0.25, degrees: float = 0.0) -> Tensor:
    """Points of a crop of :func:`crop_square`, as shares ``N 2`` of its side, back in the picture.

    Args:
        box: ``4``; margin, degrees: as they were for the crop.
    """
    side = (box[2:] - box[:2]).max() * (1 + 2 * margin)
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = torch.tensor([[cosine, -sine], [sine, cosine]]).to(shares)
    return (box[:2] + box[2:]) / 2 + side * (shares - 0.5) @ turn.T
