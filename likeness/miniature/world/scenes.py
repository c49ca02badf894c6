"""Backgrounds, drawn in a unit square."""

from __future__ import annotations

import random
from collections.abc import Callable

import skia

from .person import box, colour, fill, line, oval, polygon

_WALLS = ("#b9c4cc", "#d8c7b0", "#9fb8a6", "#c9b2c6", "#e3dccb")


def draw_scene(canvas: skia.Canvas, scene: str, seed: int) -> None:
    """Draw a scene over the unit square; details vary with ``seed``."""
    _SCENES[scene](canvas, random.Random(seed))


def _sky(canvas: skia.Canvas, top: str, bottom: str, horizon: float = 1.0) -> None:
    shader = skia.GradientShader.MakeLinear([(0, 0), (0, horizon)], [colour(top), colour(bottom)])
    canvas.drawRect(skia.Rect.MakeWH(1, 1), skia.Paint(Shader=shader))


def _studio(canvas: skia.Canvas, rng: random.Random) -> None:
    _sky(canvas, *(("#dfe3e6", "#aab3ba") if rng.random() < 0.5 else ("#efe6da", "#c9b9a4")))


def _snow(canvas: skia.Canvas, rng: random.Random) -> None:
    _sky(canvas, "#9fc0dc", "#d8e6f0")
    y = rng.uniform(0.6, 0.7)
    canvas.drawPath(polygon([(0, y), (0.3, y - 0.08), (0.6, y + 0.02), (1, y - 0.05), (1, 1), (0, 1)]), fill("#f7fafd"))
    for x in (rng.uniform(0.02, 0.2), rng.uniform(0.8, 0.98)):
        for k in range(3):
            top = y - 0.32 + k * 0.1
            canvas.drawPath(polygon([(x, top), (x - 0.1, top + 0.15), (x + 0.1, top + 0.15)]), fill("#3d6b5c"))
    for _ in range(26):
        oval(canvas, rng.random(), rng.random(), 0.011, 0.011, fill("#ffffff"))


def _jungle(canvas: skia.Canvas, rng: random.Random) -> None:
    _sky(canvas, "#3c7a3f", "#1e4a2b")
    for _ in range(16):
        x, y, r = rng.random(), rng.random(), rng.uniform(0.12, 0.24)
        canvas.save()
        canvas.translate(x, y)
        canvas.rotate(rng.uniform(0, 360))
        oval(canvas, 0, 0, r, r * 0.32, fill(rng.choice(("#2f8a3d", "#4aa34c", "#226b37", "#7cbf4a"))))
        canvas.restore()


def _beach(canvas: skia.Canvas, rng: random.Random) -> None:
    _sky(canvas, "#6cc3ee", "#cfeefa", 0.5)
    y = rng.uniform(0.46, 0.54)
    box(canvas, 0, y, 1, y + 0.18, fill("#2b8fc0"))
    box(canvas, 0, y + 0.18, 1, 1, fill("#f1d999"))
    oval(canvas, rng.choice((0.12, 0.88)), 0.14, 0.08, 0.08, fill("#fff2a8"))


def _city(canvas: skia.Canvas, rng: random.Random) -> None:
    _sky(canvas, "#b7cfe2", "#e7eef2")
    x = -0.02
    while x < 1:
        width, top = rng.uniform(0.13, 0.2), rng.uniform(0.12, 0.42)
        box(canvas, x, top, x + width, 0.88, fill(rng.choice(("#8b93a3", "#a5756a", "#6f7c92", "#c0ab93"))))
        for i in range(2):
            for j in range(5):
                box(canvas, x + 0.025 + i * 0.06, top + 0.05 + j * 0.1, x + 0.06 + i * 0.06, top + 0.1 + j * 0.1,
                    fill("#f4e6a2"))
        x += width + 0.01
    box(canvas, 0, 0.86, 1, 1, fill("#5d6168"))


def _night(canvas: skia.Canvas, rng: random.Random) -> None:
    _sky(canvas, "#0b1030", "#27306a")
    for _ in range(30):
        oval(canvas, rng.random(), rng.random() * 0.8, 0.009, 0.009, fill("#fdf6cf"))
    x = rng.choice((0.15, 0.85))
    oval(canvas, x, 0.16, 0.09, 0.09, fill("#f6edc0"))
    oval(canvas, x + 0.04, 0.14, 0.075, 0.075, fill("#131a42"))
    box(canvas, 0, 0.85, 1, 1, fill("#0e1428"))


def _desert(canvas: skia.Canvas, rng: random.Random) -> None:
    _sky(canvas, "#f3b765", "#fbe3b0")
    y = rng.uniform(0.58, 0.66)
    path = skia.Path()
    path.moveTo(0, y)
    path.quadTo(0.3, y - 0.14, 0.55, y)
    path.quadTo(0.8, y - 0.1, 1, y)
    path.lineTo(1, 1)
    path.lineTo(0, 1)
    canvas.drawPath(path, fill("#d08d4a"))
    x = rng.choice((rng.uniform(0.06, 0.18), rng.uniform(0.82, 0.94)))
    canvas.drawLine(x, y + 0.12, x, y - 0.2, line("#4d8a4a", 0.055))
    for side in (-1, 1):
        canvas.drawPath(polygon([(x, y), (x + side * 0.075, y - 0.02), (x + side * 0.075, y - 0.12)], closed=False),
                        line("#4d8a4a", 0.035))


def _room(canvas: skia.Canvas, rng: random.Random) -> None:
    box(canvas, 0, 0, 1, 1, fill(rng.choice(_WALLS)))
    box(canvas, 0, 0.8, 1, 1, fill("#8a5a3a"))
    x = rng.choice((0.04, 0.72))
    box(canvas, x, 0.1, x + 0.24, 0.42, fill("#fdfdf6"))
    box(canvas, x + 0.02, 0.12, x + 0.22, 0.4, fill("#9fd3f0"))
    box(canvas, x + 0.11, 0.12, x + 0.13, 0.4, fill("#fdfdf6"))


def _underwater(canvas: skia.Canvas, rng: random.Random) -> None:
    _sky(canvas, "#2bb3c9", "#0c4a86")
    for _ in range(14):
        r = rng.uniform(0.012, 0.032)
        oval(canvas, rng.random(), rng.random(), r, r, line("#d6f6fb", 0.009))
    for _ in range(3):
        x, y, way = rng.random(), rng.uniform(0.1, 0.9), rng.choice((-1, 1))
        code = rng.choice(("#f58a3c", "#f4d13d"))
        oval(canvas, x, y, 0.06, 0.035, fill(code))
        tail = polygon([(x - way * 0.05, y), (x - way * 0.1, y - 0.04), (x - way * 0.1, y + 0.04)])
        canvas.drawPath(tail, fill(code))


def _meadow(canvas: skia.Canvas, rng: random.Random) -> None:
    _sky(canvas, "#8fd0f2", "#e2f4fb", 0.6)
    y = rng.uniform(0.55, 0.65)
    canvas.drawPath(polygon([(0, y), (0.4, y - 0.05), (1, y + 0.03), (1, 1), (0, 1)]), fill("#74bf52"))
    for _ in range(22):
        oval(canvas, rng.random(), rng.uniform(y + 0.05, 1), 0.016, 0.016,
             fill(rng.choice(("#f7f3f0", "#f2d23c", "#e8558f"))))


_SCENES: dict[str, Callable[[skia.Canvas, random.Random], None]] = {
    "studio": _studio, "snow": _snow, "jungle": _jungle, "beach": _beach, "city": _city, "night": _night,
    "desert": _desert, "room": _room, "underwater": _underwater, "meadow": _meadow,
}
