"""Draws accessories, worn (in head units) or alone."""

from __future__ import annotations

import skia

from .geometry import EYE_Y, Face
from .spec import COLOURS, Item


def _paint(code: str, width: float | None = None) -> skia.Paint:
    r, g, b = (int(code[i : i + 2], 16) for i in (1, 3, 5))
    paint = skia.Paint(Color=skia.ColorSetRGB(r, g, b), AntiAlias=True)
    if width is not None:
        paint.setStyle(skia.Paint.kStroke_Style)
        paint.setStrokeWidth(width)
        paint.setStrokeCap(skia.Paint.kRound_Cap)
    return paint


def _patterned(canvas: skia.Canvas, path: skia.Path, item: Item, step: float = 0.16) -> None:
    """Fill ``path`` with the item's colour and pattern."""
    canvas.drawPath(path, _paint(COLOURS[item.colour]))
    if item.pattern == "plain":
        return
    accent = _paint("#f8f6ee" if item.colour not in ("white", "yellow", "pink") else "#33405e")
    canvas.save()
    canvas.clipPath(path, doAntiAlias=True)
    bounds = path.getBounds()
    x = bounds.left()
    row = 0
    while x < bounds.right():
        if item.pattern == "stripes":
            canvas.drawRect(skia.Rect.MakeXYWH(x, bounds.top(), step * 0.45, bounds.height()), accent)
        else:
            y = bounds.top() + step * (0.35 if row % 2 else 0.85)
            while y < bounds.bottom():
                canvas.drawCircle(x + step * 0.4, y, step * 0.24, accent)
                y += step
        x += step
        row += 1
    canvas.restore()


def _poly(*points: tuple[float, float]) -> skia.Path:
    path = skia.Path()
    path.moveTo(*points[0])
    for point in points[1:]:
        path.lineTo(*point)
    path.close()
    return path


def draw_item(canvas: skia.Canvas, item: Item, face: Face) -> None:
    """Draw the accessory where it is worn on a head of these measures."""
    _DRAW[item.kind](canvas, item, face.half_width, face)


def _hat(canvas: skia.Canvas, item: Item, w: float, face: Face) -> None:
    _patterned(canvas, _poly((-w * 0.82, -0.36), (-w * 0.74, -0.86), (w * 0.74, -0.86), (w * 0.82, -0.36)), item)
    brim = skia.Path()
    brim.addOval(skia.Rect.MakeLTRB(-w - 0.26, -0.46, w + 0.26, -0.28))
    canvas.drawPath(brim, _paint(COLOURS[item.colour]))
    canvas.drawRect(skia.Rect.MakeLTRB(-w * 0.82, -0.5, w * 0.82, -0.41), _paint("#26262b"))


def _crown(canvas: skia.Canvas, item: Item, w: float, face: Face) -> None:
    left = [(-w * 0.9, -0.34), (-w, -0.8), (-w * 0.45, -0.58)]
    path = _poly(*left, (0, -0.88), *((-x, y) for x, y in reversed(left)))
    canvas.drawPath(path, _paint("#f2c230"))
    for x in (-0.55, 0.0, 0.55):
        canvas.drawCircle(x * w, -0.46, 0.065, _paint(COLOURS[item.colour]))


def _glasses(canvas: skia.Canvas, item: Item, w: float, face: Face) -> None:
    paint = _paint(COLOURS[item.colour], 0.06)
    lens = _paint("#ffffff")
    lens.setAlpha(70)  # tinted: a thin frame alone is lost in the latents
    for side in (-1, 1):
        canvas.drawCircle(side * face.eye_x, EYE_Y, 0.16, lens)
        canvas.drawCircle(side * face.eye_x, EYE_Y, 0.16, paint)
        canvas.drawLine(side * (face.eye_x + 0.15), EYE_Y, side * w, EYE_Y - 0.03, paint)
    canvas.drawLine(-max(face.eye_x - 0.15, 0.0), EYE_Y, max(face.eye_x - 0.15, 0.0), EYE_Y, paint)


def _sunglasses(canvas: skia.Canvas, item: Item, w: float, face: Face) -> None:
    for side in (-1, 1):
        x = side * face.eye_x
        lens = skia.Rect.MakeLTRB(x - 0.15, EYE_Y - 0.1, x + 0.15, EYE_Y + 0.13)
        canvas.drawRoundRect(lens, 0.07, 0.07, _paint("#141419"))
        canvas.drawRoundRect(lens, 0.07, 0.07, _paint(COLOURS[item.colour], 0.034))
        canvas.drawLine(side * (face.eye_x + 0.15), EYE_Y - 0.05, side * w, EYE_Y - 0.05, _paint("#141419", 0.04))
    canvas.drawLine(-0.08, EYE_Y - 0.04, 0.08, EYE_Y - 0.04, _paint(COLOURS[item.colour], 0.045))


def _scarf(canvas: skia.Canvas, item: Item, w: float, face: Face) -> None:
    _patterned(canvas, _poly((0.08, 0.72), (0.36, 0.72), (0.4, 1.3), (0.14, 1.3)), item)
    path = skia.Path()
    path.addRoundRect(skia.Rect.MakeLTRB(-0.42, 0.46, 0.42, 0.8), 0.16, 0.16)
    _patterned(canvas, path, item)


def _tie(canvas: skia.Canvas, item: Item, w: float, face: Face) -> None:
    _patterned(canvas, _poly((-0.07, 0.78), (0.07, 0.78), (0.15, 1.4), (0.0, 1.58), (-0.15, 1.4)), item, 0.12)
    canvas.drawPath(_poly((-0.11, 0.62), (0.11, 0.62), (0.06, 0.79), (-0.06, 0.79)), _paint(COLOURS[item.colour]))


def _headphones(canvas: skia.Canvas, item: Item, w: float, face: Face) -> None:
    canvas.drawArc(skia.Rect.MakeLTRB(-w - 0.06, -0.66, w + 0.06, 0.66), 184, 172, False, _paint("#2b2b33", 0.08))
    for side in (-1, 1):
        cup = skia.Rect.MakeLTRB(side * (w + 0.04) - 0.11, -0.12, side * (w + 0.04) + 0.11, 0.26)
        canvas.drawRoundRect(cup, 0.09, 0.09, _paint(COLOURS[item.colour]))


def _flower(canvas: skia.Canvas, item: Item, w: float, face: Face) -> None:
    x, y = w * 0.8, -0.34
    for dx, dy in ((0.0, -0.13), (0.124, -0.04), (0.076, 0.105), (-0.076, 0.105), (-0.124, -0.04)):
        canvas.drawCircle(x + dx, y + dy, 0.092, _paint(COLOURS[item.colour]))
    canvas.drawCircle(x, y, 0.075, _paint("#f4cf3a" if item.colour != "yellow" else "#b3541e"))


_DRAW = {"hat": _hat, "crown": _crown, "glasses": _glasses, "sunglasses": _sunglasses, "scarf": _scarf, "tie": _tie,
         "headphones": _headphones, "flower": _flower}
ALONE = {  # where an accessory's middle is, and its extent, in head units
    "hat": (0.0, -0.58, 0.75), "crown": (0.0, -0.6, 0.5), "glasses": (0.0, 0.04, 0.45), "sunglasses": (0.0, 0.05, 0.45),
    "scarf": (0.0, 0.88, 0.5), "tie": (0.0, 1.1, 0.55), "headphones": (0.0, -0.2, 0.6), "flower": (0.33, -0.34, 0.3),
}
