"""Boxes and crops."""

from __future__ import annotations

import torch
from torch import Tensor


def intersection_over_union(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Overlap of two boxes ``x0, y0, x1, y1``, in [0, 1]."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (area - width * height)


def crop_square(images: Tensor, boxes: Tensor, size: int, margin: float = 0.25) -> Tensor:
    """Square crops round boxes, differentiable in the pixels.

    Args:
        images: ``B 3 H W``.
        boxes: ``B 4`` as ``x0, y0, x1, y1`` in pixels.
        size: side of the result.
        margin: extra on each side, as a fraction of the longer side of the box.

    Returns:
        ``B 3 size size``; what lies outside the picture repeats its border.
    """
    height, width = images.shape[-2:]
    boxes = boxes.to(images)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2  # B 2
    side = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1) * (1 + 2 * margin)  # B
    ramp = (torch.arange(size, device=images.device, dtype=images.dtype) + 0.5) / size - 0.5
    xs = centre[:, 0, None] + ramp * side[:, None]  # B S
    ys = centre[:, 1, None] + ramp * side[:, None]
    grid_x = (xs / width * 2 - 1)[:, None, :].expand(-1, size, -1)
    grid_y = (ys / height * 2 - 1)[:, :, None].expand(-1, -1, size)
    grid = torch.stack([grid_x, grid_y], dim=-1)  # B S S 2
    return torch.nn.functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
