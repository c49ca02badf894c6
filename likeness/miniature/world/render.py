"""Pictures and their exact ground truth from a :class:`~.spec.Picture`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import skia

from .geometry import Face, dense_points, face_of, five_points, joints, place
from .items import ALONE, draw_item
from .person import draw_face, draw_figure_item, draw_person
from .scenes import draw_scene
from .spec import Figure, Item, Picture

#: coverage, of 255, from which a pixel belongs to what is drawn there; the tinted lenses of glasses have a little more
OPAQUE = 63


@dataclass(frozen=True)
class FigureTruth:
    """Ground truth of one figure, in pixels of the rendered picture.

    ``person``, ``face``, ``accessory``: bool masks ``H W`` of what is visible; ``box``: face box x0, y0, x1, y1;
    ``five``: 5 x 2 landmarks (eyes, nose, mouth corners, left as seen first); ``dense``: 68 x 2; ``joints``: by name.
    """

    person: np.ndarray
    face: np.ndarray
    accessory: np.ndarray
    box: tuple[float, float, float, float]
    five: np.ndarray
    dense: np.ndarray
    joints: dict[str, tuple[float, float]]


def render(picture: Picture, size: int = 256) -> np.ndarray:
    """Draw the picture: uint8 ``H W 3`` (RGB), ``size`` pixels a side."""
    surface = skia.Surface(size, size)
    with surface as canvas:
        canvas.save()
        canvas.scale(size, size)
        draw_scene(canvas, picture.scene, picture.seed)
        canvas.restore()
        for figure in picture.figures:
            _in_head_units(canvas, figure, size, draw_person)
        if picture.item is not None and not picture.figures:
            _alone(canvas, picture.item, size)
    return _style(_pixels(surface)[..., :3], picture)


def ground_truth(picture: Picture, size: int = 256) -> list[FigureTruth]:
    """Masks, boxes, landmarks and joints of every figure, front to back respected (later figures hide earlier ones)."""
    people = [_mask(f, size, draw_person) for f in picture.figures]
    truths = []
    for i, figure in enumerate(picture.figures):
        hidden = np.logical_or.reduce([np.zeros_like(people[0]), *people[i + 1 :]])
        face, names = face_of(figure.identity), joints(figure.action)
        dense = np.array(place(figure, size, dense_points(face)))
        item = _mask(figure, size, draw_figure_item) if figure.item else np.zeros_like(hidden)
        truths.append(FigureTruth(
            person=people[i] & ~hidden,
            face=_mask(figure, size, draw_face) & ~hidden,
            accessory=item & ~hidden,
            box=face_box(figure, size),
            five=np.array(place(figure, size, five_points(face))),
            dense=dense,
            joints=dict(zip(names, place(figure, size, list(names.values())), strict=True)),
        ))
    return truths


def details(picture: Picture, image: np.ndarray) -> np.ndarray:
    """Bool mask ``H W`` of what is small and named: accessories, eyes and mouths in ``image``, the picture as drawn."""
    plain = tuple(replace(f, item=None, expression="sleeping") for f in picture.figures)
    without = render(replace(picture, figures=plain), image.shape[0])
    return (np.abs(image.astype(np.int16) - without) > 24).any(-1)


def item_mask(picture: Picture, size: int = 256) -> np.ndarray:
    """Bool mask ``H W`` of an accessory drawn alone."""
    surface = skia.Surface(size, size)
    with surface as canvas:
        _alone(canvas, picture.item, size)
    return _pixels(surface)[..., 3] > OPAQUE


def face_box(figure: Figure, size: int = 256) -> tuple[float, float, float, float]:
    """Box of a figure's face, x0, y0, x1, y1 in pixels, whatever hides it."""
    half_width = face_of(figure.identity).half_width
    x, y, s = figure.centre[0] * size, figure.centre[1] * size, figure.head * size
    return x - half_width * s, y - 0.5 * s, x + half_width * s, y + 0.5 * s


def _in_head_units(
    canvas: skia.Canvas, figure: Figure, size: int, draw: Callable[[skia.Canvas, Figure], None]
) -> None:
    canvas.save()
    canvas.translate(figure.centre[0] * size, figure.centre[1] * size)
    canvas.scale(figure.head * size, figure.head * size)
    draw(canvas, figure)
    canvas.restore()


def _mask(figure: Figure, size: int, draw: Callable[[skia.Canvas, Figure], None]) -> np.ndarray:
    surface = skia.Surface(size, size)
    with surface as canvas:
        _in_head_units(canvas, figure, size, draw)
    return _pixels(surface)[..., 3] > OPAQUE


def _alone(canvas: skia.Canvas, item: Item, size: int) -> None:
    x, y, extent = ALONE[item.kind]
    scale = 0.34 * size / extent
    canvas.save()
    canvas.translate(size / 2 - x * scale, size / 2 - y * scale)
    canvas.scale(scale, scale)
    draw_item(canvas, item, Face(0.41, 0.28, 0.18, 0.12, 0.1, 0.13))
    canvas.restore()


def _pixels(surface: skia.Surface) -> np.ndarray:
    return surface.toarray(colorType=skia.kRGBA_8888_ColorType)


def _style(image: np.ndarray, picture: Picture) -> np.ndarray:
    if picture.style == "flat":
        return np.ascontiguousarray(image)
    x = image.astype(np.float32) / 255
    if picture.style == "dark":
        x = (x ** 1.25) * np.array([0.5, 0.5, 0.68], np.float32)
    elif picture.style == "watercolor":
        soft = _blur(x, max(1, image.shape[0] // 96))
        x = 0.30 + 0.66 * (0.45 * x + 0.55 * soft) + 0.04 * np.array([1.0, 0.96, 0.88], np.float32)
    else:
        grey = x @ np.array([0.3, 0.59, 0.11], np.float32)
        edges = np.abs(grey - _blur(grey[..., None], max(1, image.shape[0] // 64))[..., 0])
        x = np.repeat(np.clip(0.62 + 0.36 * grey - 3.2 * edges, 0, 1)[..., None], 3, axis=2)
    return (x.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _blur(x: np.ndarray, radius: int) -> np.ndarray:
    """Box blur of a ``H W C`` picture by running sums, edges repeated."""
    for axis in (0, 1):
        pad = [(0, 0)] * 3
        pad[axis] = (radius + 1, radius)
        total = np.cumsum(np.pad(x, pad, mode="edge"), axis=axis, dtype=np.float32)
        width = 2 * radius + 1
        n = x.shape[axis]
        x = (np.take(total, range(width, width + n), axis) - np.take(total, range(n), axis)) / width
    return x
