"""Contact sheets and maps as pictures, drawn with Pillow."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..core.magicface.record import Correspondence, Recorder

TILE = 224
GAP = 8
INK, PAPER, GREY = "#202024", "#ffffff", "#60606a"
#: of the background and of every concept in semantic maps
COLOURS = ((60, 60, 70), (240, 128, 48), (56, 140, 220), (110, 190, 90), (200, 90, 190))


@dataclass(frozen=True)
class Tile:
    """A picture of the sheet with a line of text below it."""

    image: Image.Image
    text: str = ""


def to_image(picture: Tensor, side: int = TILE) -> Image.Image:
    """``3 H W`` in [0, 1] as a picture ``side`` pixels high."""
    array = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return _fit(Image.fromarray(array), side)


def _fit(image: Image.Image, side: int, smooth: bool = True) -> Image.Image:
    width = max(1, round(image.width * side / image.height))
    return image.resize((width, side), Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST)


def beside(images: Sequence[Image.Image]) -> Image.Image:
    """Several pictures stacked into the space of one tile, side by side, each half as high when there are more."""
    if len(images) == 1:
        return images[0]
    half = [_fit(image, TILE // 2) for image in images]
    out = Image.new("RGB", (TILE, TILE), PAPER)
    for i, image in enumerate(half):
        out.paste(image, ((i % 2) * TILE // 2, (i // 2) * TILE // 2 + (TILE // 4 if len(half) == 2 else 0)))
    return out


def label_map(labels: Tensor, side: int = TILE) -> Image.Image:
    """A semantic map ``h w`` (0 background, i the i-th concept) in colours."""
    return _fit(Image.fromarray(np.array(COLOURS, np.uint8)[labels.numpy() % len(COLOURS)]), side, smooth=False)


def position_colours(height: int, width: int) -> Tensor:
    """A colour for every place of a picture, ``3 h w`` in [0, 1]: red grows to the right, green downwards."""
    x = ((torch.arange(width) + 0.5) / width).expand(height, width)
    y = ((torch.arange(height) + 0.5) / height)[:, None].expand(height, width)
    return torch.stack([x, y, 1 - (x + y) / 2])


def correspondence_map(seen: Correspondence, side: int = TILE) -> Image.Image:
    """For every place of the picture the colour of the reference place it looked at; darker where it looked little."""
    colours = torch.stack([seen.x, seen.y, 1 - (seen.x + seen.y) / 2])
    strength = (seen.mass * (seen.reference > 0)).clamp(0, 1) ** 0.5
    array = (colours * strength * 255).round().byte().permute(1, 2, 0).numpy()
    return _fit(Image.fromarray(array), side, smooth=False)


def key_picture(reference: Tensor, mask: Tensor | None) -> Image.Image:
    """The reference mixed with the colours of its places: the key to :func:`correspondence_map`."""
    colours = position_colours(*reference.shape[-2:])
    strength = 0.65 if mask is None else 0.65 * torch.nn.functional.interpolate(
        mask[None, None], size=tuple(reference.shape[-2:]), mode="nearest")[0]
    return to_image(reference * (1 - strength) + colours * strength)


def recorded_tiles(recorder: Recorder, count: int = 5) -> list[Tile]:
    """Semantic maps over the steps (``count`` of them), then the correspondences, of the first picture."""
    steps = [record for record in recorder.steps if record.labels is not None]
    picks = sorted({round(i * (len(steps) - 1) / max(1, count - 1)) for i in range(count)}) if steps else []
    tiles = [Tile(label_map(steps[i].labels[0]), f"semantic map, step {steps[i].step + 1}, {steps[i].stage.upper()}")
             for i in picks]
    return tiles + [Tile(correspondence_map(c), f"looks at, step {c.step + 1}") for c in recorder.correspondence]


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
