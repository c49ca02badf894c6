"""Contact sheets and maps as pictures, drawn with Pillow."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

TILE = 224
GAP = 8
INK, PAPER, GREY = "#202024", "#ffffff", "#60606a"


@dataclass(frozen=True)
class Tile:
    """A picture of the sheet with a line of text below it."""

    image: Image.Image
    text: str = ""


def to_picture(pixels: Tensor) -> Image.Image:
    """``3 H W`` in [0, 1] as a picture."""
    return Image.fromarray((pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy())


def to_image(pixels: Tensor, side: int = TILE) -> Image.Image:
    """``3 H W`` in [0, 1] as a picture ``side`` pixels high."""
    return fit_height(to_picture(pixels), side)


def grid(rows: Sequence[Sequence[Tensor]]) -> Image.Image:
    """Rows of pictures ``3 H W`` in [0, 1], all of one size, edge to edge; rows may be shorter than the longest."""
    columns = max(map(len, rows))
    blank = torch.ones_like(rows[0][0]).cpu()
    full = [[*(pixels.cpu() for pixels in row), *[blank] * (columns - len(row))] for row in rows]
    return to_picture(torch.cat([torch.cat(row, dim=2) for row in full], dim=1))


def fit_height(image: Image.Image, side: int, smooth: bool = True) -> Image.Image:
    """The picture ``side`` pixels high, in its shape."""
    width = max(1, round(image.width * side / image.height))
    return image.resize((width, side), Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST)


def beside(images: Sequence[Image.Image]) -> Image.Image:
    """Several pictures stacked into the space of one tile, side by side, each half as high when there are more."""
    if len(images) == 1:
        return images[0]
    half = [fit_height(image, TILE // 2) for image in images]
    out = Image.new("RGB", (TILE, TILE), PAPER)
    for i, image in enumerate(half):
        out.paste(image, ((i % 2) * TILE // 2, (i // 2) * TILE // 2 + (TILE // 4 if len(half) == 2 else 0)))
    return out


def sheet(title: str, rows: Sequence[tuple[str, Sequence[Tile]]], headings: Sequence[str] = ()) -> Image.Image:
    """Rows of tiles, each with its caption above, under a title and column headings."""
    big, small = ImageFont.load_default(20), ImageFont.load_default(14)
    columns = max(len(tiles) for _, tiles in rows)
    width = GAP + columns * (TILE + GAP)
    wrap = max(20, width // 8)
    captions = [textwrap.wrap(text, wrap) for text, _ in rows]
    top = 36 + (24 if headings else 0)
    height = top + sum(len(lines) * 18 + TILE + 30 + GAP for lines in captions)
    out = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(out)
    draw.text((GAP, 8), title, fill=INK, font=big)
    for i, heading in enumerate(headings):
        draw.text((GAP + i * (TILE + GAP), 38), heading, fill=GREY, font=small)
    y = top
    for lines, (_, tiles) in zip(captions, rows, strict=True):
        for line in lines:
            draw.text((GAP, y), line, fill=INK, font=small)
            y += 18
        for i, tile in enumerate(tiles):
            _paste(out, draw, tile, GAP + i * (TILE + GAP), y, small)
        y += TILE + 30 + GAP
    return out


def _paste(out: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, x: int, y: int, font: ImageFont.ImageFont) -> None:
    image = tile.image if tile.image.width <= TILE else tile.image.resize(
        (TILE, max(1, tile.image.height * TILE // tile.image.width)))
    out.paste(image, (x, y))
    draw.text((x, y + TILE + 4), tile.text, fill=GREY, font=font)
