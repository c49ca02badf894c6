"""Who goes where in a picture, for eyes."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

#: how much of a region's colour lies over the picture
VEIL = 0.45
INK = (10, 10, 10)


def draw_regions(picture: Tensor, regions: Tensor, names: Sequence[str]) -> Tensor:
    """A picture ``3 H W`` with each region ``N H W`` in a colour of its own and a person's name in its middle."""
    for number, region in enumerate(regions):
        colour = torch.tensor(_colour(number, len(regions)))[:, None, None]
        picture = torch.lerp(picture, colour.expand_as(picture), VEIL * region)
    canvas = Image.fromarray((picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(max(9, min(picture.shape[-2:]) // 24))
    for number, (region, name) in enumerate(zip(regions, names, strict=True)):
        if bool(region.any()):
            _label(draw, _middle(region), f"{number + 1} {name}".strip(), _colour(number, len(regions)), font)
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1).float() / 255


def _colour(number: int, count: int) -> tuple[float, float, float]:
    return colorsys.hsv_to_rgb(number / max(count, 1), 0.75, 1.0)


def _middle(region: Tensor) -> tuple[float, float]:
    """The centre of mass, x and y."""
    weight = region.sum()
    y, x = (torch.arange(size, dtype=torch.float32) + 0.5 for size in region.shape)
    return float((region.sum(dim=0) * x).sum() / weight), float((region.sum(dim=1) * y).sum() / weight)


def _label(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, colour: tuple[float, float, float],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:  # fmt: skip
    left, top, right, bottom = draw.textbbox(at, text, font=font, anchor="mm")
    draw.rectangle([left - 3, top - 2, right + 3, bottom + 2], fill=tuple(round(255 * part) for part in colour))
    draw.text(at, text, fill=INK, font=font, anchor="mm")
