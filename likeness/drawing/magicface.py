"""What MagicFace saw, drawn: semantic maps, correspondences, attention of chosen points."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from ..core.magicface.record import Correspondence, PatchAttention, Recorder, StepRecord
from .sheets import Tile, fit_height, to_image

TILE = 256
CAPTION_HEIGHT = 18
PALETTE = ((0.12, 0.12, 0.14), (0.95, 0.35, 0.25), (0.20, 0.60, 0.95), (0.35, 0.80, 0.35), (0.95, 0.75, 0.20))
STAGE_NAMES = {"rsa": "RSA", "rba": "RBA"}


def _tile(pixels: torch.Tensor, mode: str = "bilinear") -> torch.Tensor:
    """``3 H W`` (or ``1 h w``) to a tile with its longer side at :data:`TILE`."""
    scale = TILE / max(pixels.shape[-2:])
    size = [max(1, round(edge * scale)) for edge in pixels.shape[-2:]]
    align = {} if mode == "nearest" else {"align_corners": False}
    return F.interpolate(pixels[None].float(), size=size, mode=mode, **align)[0]


def _blend(base: torch.Tensor | None, colour: torch.Tensor, strength: torch.Tensor | float) -> torch.Tensor:
    """``colour`` ``3 H W`` over a greyed ``base`` of any size; without a base, over black."""
    if base is None:
        return colour * strength
    grey = F.interpolate(base[None].float(), size=colour.shape[-2:], mode="bilinear", align_corners=False)[0]
    grey = grey.mean(dim=0, keepdim=True).expand(3, -1, -1)
    return grey * (1 - strength) + colour * strength


Words = Sequence[tuple[str, tuple[float, float, float]]]


PLAIN = (0.9, 0.9, 0.9)


def _captioned(pixels: torch.Tensor, words: str | Words) -> torch.Tensor:
    """``3 H W`` with a line of text above it, each word in its colour."""
    bar = Image.new("RGB", (pixels.shape[-1], CAPTION_HEIGHT), (24, 24, 28))
    pen, x = ImageDraw.Draw(bar), 4.0
    for word, colour in [(words, PLAIN)] if isinstance(words, str) else words:
        pen.text((x, 3), word, fill=tuple(round(255 * part) for part in colour))
        x += pen.textlength(word) + 8
    data = torch.frombuffer(bytearray(bar.tobytes()), dtype=torch.uint8)
    strip = data.view(CAPTION_HEIGHT, pixels.shape[-1], 3).movedim(-1, 0).float() / 255
    return torch.cat([strip, pixels.clamp(0, 1)], dim=-2)


def _row(tiles: Sequence[torch.Tensor]) -> torch.Tensor:
    """Tiles side by side, padded to the tallest."""
    height = max(tile.shape[-2] for tile in tiles)
    return torch.cat([F.pad(tile, (0, 4, 0, height - tile.shape[-2])) for tile in tiles], dim=-1)


def _batch(pictures: Sequence[torch.Tensor]) -> torch.Tensor:
    """Pictures of different sizes as one batch ``B 3 H W`` on the CPU, padded at the right and below."""
    height, width = (max(p.shape[axis] for p in pictures) for axis in (-2, -1))
    padded = [F.pad(p, (0, width - p.shape[-1], 0, height - p.shape[-2])) for p in pictures]
    return torch.stack(padded).clamp(0, 1).float().cpu()


def note(message: str) -> torch.Tensor:
    """A picture ``1 3 H W`` that says why there is nothing to see."""
    return _batch([_captioned(torch.zeros(3, 24, max(TILE, 7 * len(message))), message)])


def sheet(pictures: torch.Tensor, columns: int = 5) -> torch.Tensor:
    """A batch ``B 3 H W`` laid out as one picture, ``1 3 H W``."""
    columns = min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    blank = pictures.new_zeros(rows * columns - len(pictures), *pictures.shape[1:])
    grid = torch.cat([pictures, blank]).view(rows, columns, *pictures.shape[1:])  # r c 3 H W
    return grid.permute(2, 0, 3, 1, 4).reshape(1, 3, rows * pictures.shape[2], columns * pictures.shape[3])


def _label_colour(label: int) -> tuple[float, float, float]:
    return PALETTE[0] if label == 0 else PALETTE[1 + (label - 1) % (len(PALETTE) - 1)]


def label_colours(labels: torch.Tensor) -> torch.Tensor:
    """Semantic map ``h w`` (0 background, i the i-th concept) to colours ``3 h w``."""
    table = torch.tensor([_label_colour(label) for label in range(int(labels.max()) + 1)])
    return table[labels].movedim(-1, 0)


def draw_maps(steps: Sequence[StepRecord], generated: torch.Tensor | None, names: Sequence[str]) -> torch.Tensor:
    """The semantic map of each step, over the generated picture where there is one, ``B 3 H W``, one picture a step."""
    drawn = []
    for record in steps:
        if record.labels is None:
            continue
        tiles = []
        for i, labels in enumerate(record.labels):
            base = None if generated is None else generated[min(i, len(generated) - 1)]
            tiles.append(_blend(base, _tile(label_colours(labels), "nearest"), 0.55 if base is not None else 1.0))
        legend = [(name, _label_colour(i + 1)) for i, name in enumerate(names)]
        title = f"step {record.step + 1} {STAGE_NAMES.get(record.stage, record.stage)}"
        drawn.append(_captioned(_row(tiles), [(title, PLAIN), *legend]))
    return _batch(drawn) if drawn else note("No semantic maps were recorded in this run.")


def _place_colours(y: torch.Tensor, x: torch.Tensor, number: torch.Tensor | int) -> torch.Tensor:
    """A colour per place of a reference: two corners of the colour square, turned for each further reference."""
    channels = torch.stack([x, y, 1 - (x + y) / 2])  # 3 h w
    turned = torch.stack([channels.roll(i, dims=0) for i in range(3)])  # 3 3 h w
    turn = torch.as_tensor(number).clamp(min=1).sub(1).remainder(3).expand(y.shape)
    return turned.gather(0, turn[None, None].expand(1, 3, *y.shape))[0]


def _reference_tile(picture: torch.Tensor, number: int, caption: str) -> torch.Tensor:
    tile = _tile(picture)
    y, x = torch.meshgrid(*(torch.linspace(0, 1, edge) for edge in tile.shape[-2:]), indexing="ij")
    return _captioned(_blend(tile, _place_colours(y, x, number), 0.55), caption)


def draw_correspondence(
    found: Sequence[Correspondence],
    generated: torch.Tensor | None,
    pictures: Sequence[torch.Tensor],
    names: Sequence[str],
) -> torch.Tensor:
    """The paper's Fig. 5a: a generated pixel has the colour of the reference place it looked at most, ``B 3 H W``."""
    references = [_reference_tile(p[0], i + 1, name) for i, (p, name) in enumerate(zip(pictures, names, strict=True))]
    drawn = []
    for item in found:
        colours = _place_colours(item.y.float(), item.x.float(), item.reference)
        strength = _tile((item.mass / item.mass.max().clamp(min=1e-6)).float()[None], "nearest")
        seen = _tile((item.reference > 0).float()[None], "nearest")
        base = None if generated is None else generated[0]
        tile = _blend(base, _tile(colours, "nearest"), 0.75 * seen * strength.sqrt())
        drawn.append(_row([_captioned(tile, f"step {item.step + 1}"), *references]))
    return _batch(drawn) if drawn else note("No correspondences were recorded in this run.")


def _heat(values: torch.Tensor) -> torch.Tensor:
    """``h w`` in [0, 1] to ``3 h w``, black through red and yellow to white."""
    return torch.stack([(3 * values - i).clamp(0, 1) for i in range(3)])


def draw_patches(
    seen: Sequence[PatchAttention],
    generated: torch.Tensor | None,
    pictures: Sequence[torch.Tensor],
    names: Sequence[str],
) -> torch.Tensor:
    """The paper's Fig. 5b: where chosen patches of the generated picture look in each reference, ``B 3 H W``."""
    drawn = []
    for item in seen:
        base = torch.zeros(3, TILE, TILE) if generated is None else _tile(generated[0])
        tiles = [_captioned(_boxed(base, item.patch), f"step {item.step + 1}")]
        for values, picture, name in zip(item.maps, pictures, names, strict=True):
            heat = _tile(_heat((values / values.max().clamp(min=1e-9)).float()))
            tiles.append(
                _captioned(_blend(picture[0], heat, 0.65), f"{name}: {float(values.sum()):.0%} of the attention")
            )
        drawn.append(_row(tiles))
    return _batch(drawn) if drawn else note("No patches were followed: name some in MagicFace Options.")


def _boxed(pixels: torch.Tensor, patch: tuple[float, float]) -> torch.Tensor:
    """A copy with a box round ``patch`` (y, x in [0, 1])."""
    out, half = pixels.clone(), max(4, TILE // 32)
    y, x = (min(edge - 1, round(place * edge)) for place, edge in zip(patch, pixels.shape[-2:], strict=True))
    top, bottom, left, right = max(0, y - half), y + half, max(0, x - half), x + half
    colour = torch.tensor([1.0, 0.2, 0.2])[:, None, None]
    for area in ((slice(top, top + 2), slice(left, right)), (slice(bottom - 2, bottom), slice(left, right))):
        out[(slice(None), *area)] = colour
    for area in ((slice(top, bottom), slice(left, left + 2)), (slice(top, bottom), slice(right - 2, right))):
        out[(slice(None), *area)] = colour
    return out


#: of the background and of every concept in semantic maps
COLOURS = ((60, 60, 70), (240, 128, 48), (56, 140, 220), (110, 190, 90), (200, 90, 190))


def label_map(labels: Tensor, side: int = TILE) -> Image.Image:
    """A semantic map ``h w`` (0 background, i the i-th concept) in colours."""
    return fit_height(Image.fromarray(np.array(COLOURS, np.uint8)[labels.numpy() % len(COLOURS)]), side, smooth=False)


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
    return fit_height(Image.fromarray(array), side, smooth=False)


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
