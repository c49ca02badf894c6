"""Masks of heads in their crops, and repaired crops back in their pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import Crop, put_back

LEAST_SEEN = 1 / 512  # of a mask: half a step of an 8-bit picture; below, the picture stays as it is
HULL_GROWN = 0.35  # share of a landmark hull's size by which it grows to hold forehead, ears and hair


def hull_mask(points: Tensor, size: int, grow: float = HULL_GROWN) -> Tensor:
    """The hull of landmarks, grown to hold forehead, ears and hair: ``S S``, 0 or 1.

    Args:
        points: ``N 2`` in the crop, which spans [0, 1]; at least three that are not in one line.
        grow: distance by which the hull grows, as a share of its diagonal; twice that upwards.
    """
    hull = _convex_hull(points.double())
    ramp = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    y, x = torch.meshgrid(ramp, ramp, indexing="ij")
    reach = grow * float((hull.amax(0) - hull.amin(0)).norm()) / 2
    raised = hull - torch.tensor([0.0, reach], dtype=torch.float64)
    hull = _convex_hull(torch.cat([hull, raised]))
    return (_distance(torch.stack([x, y], -1), hull) <= reach).float()


def _convex_hull(points: Tensor) -> Tensor:
    """Corners of the convex hull in order (Andrew's monotone chain)."""
    rows = sorted(set(map(tuple, points.tolist())))

    def half(ordered: list[tuple[float, float]]) -> list[tuple[float, float]]:
        chain: list[tuple[float, float]] = []
        for p in ordered:
            while len(chain) > 1 and _cross(chain[-2], chain[-1], p) <= 0:
                chain.pop()
            chain.append(p)
        return chain[:-1]

    return torch.tensor(half(rows) + half(rows[::-1]) or rows, dtype=torch.float64)


def _cross(o: tuple[float, float], a: tuple[float, float], b: tuple[float, float]) -> float:
    return (a[0] - o[0]) * (b[1] - o[1]) - (a[1] - o[1]) * (b[0] - o[0])


def _distance(places: Tensor, hull: Tensor) -> Tensor:
    """Distance ``...`` of places ``... 2`` from a convex polygon ``K 2``; 0 inside."""
    nearest = torch.full(places.shape[:-1], math.inf, dtype=torch.float64)
    inside = torch.ones(places.shape[:-1], dtype=torch.bool)
    for a, b in zip(hull, hull.roll(-1, 0), strict=True):
        edge, rest = b - a, places - a
        along = ((rest * edge).sum(-1) / edge.square().sum().clamp(min=1e-12)).clamp(0, 1)
        nearest = torch.minimum(nearest, (rest - along[..., None] * edge).norm(dim=-1))
        inside &= edge[0] * rest[..., 1] - edge[1] * rest[..., 0] >= 0
    return torch.where(inside, 0.0, nearest)


def feathered(mask: Tensor, feather: float = 3 / 128) -> Tensor:
    """Soft masks from hard ones, ``... S S`` in [0, 1]: a Gaussian edge, and 0 at the crop's border.

    Args:
        mask: ``... S S`` in [0, 1].
        feather: width of the edge (two standard deviations), as a share of the side.
    """
    size = mask.shape[-1]
    planes = mask.float().clamp(0, 1).reshape(-1, 1, size, size)
    sigma = feather * size / 2
    if sigma > 0.05:
        planes = _blurred(planes, sigma)
    return (planes * _border(size, feather, planes.device)).clamp(0, 1).reshape(mask.shape)


def _blurred(planes: Tensor, sigma: float) -> Tensor:
    reach = max(1, math.ceil(2 * sigma))
    ramp = torch.arange(-reach, reach + 1, device=planes.device, dtype=planes.dtype)
    kernel = torch.exp(-ramp.square() / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    padded = F.pad(planes, (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel[None, None, None]), kernel[None, None, :, None])


def _border(size: int, feather: float, device: torch.device) -> Tensor:
    """Ramp from 0 at the crop's border to 1 inside, ``S S``: a head that reaches it fades out instead of a seam."""
    width = max(1.0, 2 * feather * size)
    place = torch.arange(size, device=device, dtype=torch.float32)
    ramp = (torch.minimum(place, size - 1 - place) / width).clamp(max=1)
    return torch.minimum(ramp[:, None], ramp[None, :])


@dataclass(frozen=True)
class Patch:
    """A repaired crop.

    Attributes:
        crop: where it belongs.
        image: ``3 S S`` in [0, 1].
        mask: soft, ``S S`` in [0, 1].
    """

    crop: Crop
    image: Tensor
    mask: Tensor


def paste(picture: Tensor, patches: Sequence[Patch]) -> tuple[Tensor, Tensor]:
    """Blend repaired crops into their picture; outside the masks it stays as it was, bit for bit.

    Overlapping patches: smaller crops first, so that the larger, nearer face lies on top; of equal ones the later.

    Args:
        picture: ``C H W`` in [0, 1], of which the first three channels are the colours; others (alpha) are not touched.
        patches: any number.

    Returns:
        The picture, and where it changed: ``H W`` in [0, 1]. Without patches the very same picture.
    """
    height, width = picture.shape[-2:]
    changed = torch.zeros(height, width, device=picture.device)
    if not patches:
        return picture, changed
    result = picture.clone()
    for patch in sorted(patches, key=lambda p: p.crop.side):
        mask = patch.mask.float()[None]
        layers = torch.cat([patch.image.float(), mask, torch.ones_like(mask)]).to(picture.device)  # 5 S S
        seen, (x0, y0, x1, y1) = put_back(layers, patch.crop, height, width)
        if seen.numel() == 0:
            continue
        mask, inside = seen[3].clamp(0, 1), seen[4].clamp(min=1e-6)
        mask = torch.where(mask < LEAST_SEEN, 0.0, mask)
        below = result[:3, y0:y1, x0:x1]
        colours = (seen[:3] / inside).clamp(0, 1)
        blended = torch.lerp(below.float(), colours, mask).to(result.dtype)
        result[:3, y0:y1, x0:x1] = torch.where(mask > 0, blended, below)
        changed[y0:y1, x0:x1] = torch.maximum(changed[y0:y1, x0:x1], mask)
    return result, changed
