"""Curves as pictures, drawn with Pillow alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw

from ..core.persona.persona import Persona


def draw_curve(
    xs: Sequence[float],
    curves: dict[str, Sequence[float]],
    title: str,
    size: tuple[int, int] = (560, 320),
    lines: Sequence[float] = (),
    bands: Sequence[tuple[float, float]] = (),
) -> torch.Tensor:
    """Curves as an IMAGE ``1 H W 3``: axes with their extremes, dashed levels, shaded ranges of x."""
    width, height = size
    left, top, right, bottom = 52, 30, width - 14, height - 30
    values = [v for curve in curves.values() for v in curve] + list(lines) or [0.0, 1.0]
    low, high = min(values), max(values)
    high = high if high > low else low + 1
    x0, x1 = (min(xs), max(xs)) if len(xs) > 1 else (0, 1)

    def at(x: float, y: float) -> tuple[float, float]:
        return left + (x - x0) / (x1 - x0) * (right - left), bottom - (y - low) / (high - low) * (bottom - top)

    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for first, last in bands:
        draw.rectangle([at(max(first, x0), low)[0], top, at(min(last, x1), low)[0], bottom], fill=(226, 238, 252))
    draw.rectangle([left, top, right, bottom], outline=(150, 150, 150))
    for level in lines:
        y = at(x0, level)[1]
        for x in range(left, right, 8):
            draw.line([x, y, x + 4, y], fill=(160, 160, 160))
        draw.text((4, y - 6), f"{level:.2f}", fill=(110, 110, 110))
    colours = ((31, 90, 180), (210, 90, 40), (50, 140, 70))
    for i, (name, curve) in enumerate(curves.items()):
        points = [at(x, y) for x, y in zip(xs, curve, strict=True)]
        if len(points) > 1:
            draw.line(points, fill=colours[i % 3], width=2)
        draw.text((left + 6 + 150 * i, top + 4), name, fill=colours[i % 3])
    draw.text((left, 8), title, fill=(30, 30, 30))
    for y, text in ((top, f"{high:.3g}"), (bottom - 8, f"{low:.3g}")):
        draw.text((4, y), text, fill=(60, 60, 60))
    for x, text in ((left, f"{x0:.0f}"), (right - 28, f"{x1:.0f}")):
        draw.text((x, bottom + 8), text, fill=(60, 60, 60))
    data = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return data.view(1, height, width, 3).float() / 255


def draw_loss(history: Sequence[float], window: int = 25) -> torch.Tensor:
    """Loss over steps, its running mean drawn over it."""
    means = [sum(part) / len(part) for i in range(len(history)) if (part := history[max(0, i - window + 1) : i + 1])]
    return draw_curve(range(1, len(history) + 1), {"loss": history, "mean": means}, f"loss, {len(history)} steps")


def draw_iou(persona: Persona) -> torch.Tensor:
    """IoU of attention and mask over timesteps with the dynamic stage shaded, or the fixed stage alone."""
    stage = (persona.stages.low, persona.stages.high)
    curve = persona.training.get("iou")
    if curve is None:
        return draw_curve([0, 1000], {}, f"fixed stage {stage[0]}-{stage[1]}", bands=[stage])
    lambdas = [persona.training["lambda1"], persona.training["lambda2"]]
    curves = {"IoU as measured": curve["iou"], "calibrated": curve["smooth"]}
    return draw_curve(curve["timesteps"], curves, f"dynamic stage {stage[0]}-{stage[1]}", lines=lambdas, bands=[stage])
