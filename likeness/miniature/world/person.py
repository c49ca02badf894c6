"""Draws a person with skia, in head units (see geometry): back hair, body, head, front hair, accessory."""

from __future__ import annotations

import skia

from .geometry import EYE_Y, MOUTH_Y, NOSE_Y, Face, contour, face_of, joints
from .identity import EYE_COLOURS, HAIR_COLOURS, SKIN, Identity
from .items import draw_item
from .spec import COLOURS, Figure

INK = "#2a2024"


def colour(code: str, alpha: float = 1.0) -> int:
    """``#rrggbb`` to skia's packed colour."""
    r, g, b = (int(code[i : i + 2], 16) for i in (1, 3, 5))
    return skia.ColorSetARGB(round(alpha * 255), r, g, b)


def shade(code: str, factor: float) -> str:
    """A darker (< 1) or lighter (> 1) tone of a colour."""
    return "#" + "".join(f"{min(255, max(0, round(int(code[i : i + 2], 16) * factor))):02x}" for i in (1, 3, 5))


def fill(code: str, alpha: float = 1.0) -> skia.Paint:
    """A filling paint."""
    return skia.Paint(Color=colour(code, alpha), AntiAlias=True)


def line(code: str, width: float) -> skia.Paint:
    """A round-capped stroke, ``width`` in head units."""
    return skia.Paint(Color=colour(code), AntiAlias=True, Style=skia.Paint.kStroke_Style, StrokeWidth=width,
                      StrokeCap=skia.Paint.kRound_Cap, StrokeJoin=skia.Paint.kRound_Join)


def polygon(points: list[tuple[float, float]], closed: bool = True) -> skia.Path:
    """A path through the points."""
    path = skia.Path()
    path.moveTo(*points[0])
    for point in points[1:]:
        path.lineTo(*point)
    if closed:
        path.close()
    return path


def oval(canvas: skia.Canvas, x: float, y: float, rx: float, ry: float, paint: skia.Paint) -> None:
    """An ellipse by centre and radii."""
    canvas.drawOval(skia.Rect.MakeLTRB(x - rx, y - ry, x + rx, y + ry), paint)


def box(
    canvas: skia.Canvas, x0: float, y0: float, x1: float, y1: float, paint: skia.Paint, radius: float = 0.0
) -> None:
    """A rectangle, rounded by ``radius``."""
    canvas.drawRoundRect(skia.Rect.MakeLTRB(x0, y0, x1, y1), radius, radius, paint)


def head_path(face: Face) -> skia.Path:
    """Outline of the face and skull."""
    points = contour(face, 33)
    path = polygon(points, closed=False)
    w = face.half_width
    path.cubicTo(w * 1.02, -0.34, w * 0.62, -0.5, 0, -0.5)
    path.cubicTo(-w * 0.62, -0.5, -w * 1.02, -0.34, *points[0])
    path.close()
    return path


def draw_person(canvas: skia.Canvas, figure: Figure) -> None:
    """Draw the figure on a canvas already in head units (the body upright, the head tilted)."""
    identity, face = figure.identity, face_of(figure.identity)
    parts = ((_back_hair, identity, True), (_body, figure, False), (_head, figure, True), (_front_hair, identity, True))
    for part, what, tilted in parts:
        canvas.save()
        if tilted:
            canvas.rotate(figure.tilt)
        part(canvas, what, face)
        canvas.restore()
    if figure.item is not None:
        draw_figure_item(canvas, figure)


def draw_figure_item(canvas: skia.Canvas, figure: Figure) -> None:
    """Draw only what the figure wears as accessory, in place."""
    canvas.save()
    if figure.item.kind not in ("scarf", "tie"):
        canvas.rotate(figure.tilt)
    draw_item(canvas, figure.item, face_of(figure.identity))
    canvas.restore()


def draw_face(canvas: skia.Canvas, figure: Figure) -> None:
    """Draw only the face region (for its mask)."""
    canvas.save()
    canvas.rotate(figure.tilt)
    canvas.drawPath(head_path(face_of(figure.identity)), fill("#ffffff"))
    canvas.restore()


def _back_hair(canvas: skia.Canvas, who: Identity, face: Face) -> None:
    paint, w = fill(shade(HAIR_COLOURS[who.hair_colour], 0.8)), face.half_width
    style = who.hair
    if style == "bob":
        box(canvas, -w - 0.13, -0.5, w + 0.13, 0.5, paint, 0.28)
    elif style == "long":
        box(canvas, -w - 0.14, -0.52, w + 0.14, 1.05, paint, 0.3)
    elif style == "wavy":
        for y in (-0.25, 0.05, 0.35, 0.62, 0.88):
            for side in (-1, 1):
                oval(canvas, side * (w + 0.02), y, 0.2, 0.2, paint)
        box(canvas, -w, -0.45, w, 0.8, paint, 0.2)
    elif style == "afro":
        oval(canvas, 0, -0.2, w + 0.32, 0.62, paint)
    elif style == "bun":
        oval(canvas, 0, -0.62, 0.2, 0.19, paint)
    elif style == "ponytail":
        path = skia.Path()
        path.moveTo(w * 0.5, -0.4)
        path.cubicTo(w + 0.5, -0.45, w + 0.45, 0.4, w + 0.28, 0.8)
        path.cubicTo(w + 0.15, 0.5, w + 0.25, 0.0, w * 0.5, -0.1)
        canvas.drawPath(path, paint)
    elif style == "pigtails":
        for side in (-1, 1):
            oval(canvas, side * (w + 0.2), 0.12, 0.17, 0.3, paint)


def _front_hair(canvas: skia.Canvas, who: Identity, face: Face) -> None:
    if who.hair == "bald":
        return
    paint, w, path = fill(HAIR_COLOURS[who.hair_colour]), face.half_width, skia.Path()
    if who.hair == "spiky":
        points = [(-w - 0.02, -0.02)]
        for i in range(6):
            points += [(-w + i * w / 3, -0.72 if 0 < i < 6 else -0.5), (-w + (i + 0.5) * w / 3, -0.4)]
        path = polygon([*points, (w + 0.02, -0.02), (w * 0.8, -0.25), (-w * 0.8, -0.25)])
    elif who.hair == "mohawk":
        path = polygon([(-0.12, -0.28), (-0.16, -0.72), (-0.05, -0.64), (0.0, -0.8), (0.06, -0.64), (0.17, -0.72),
                        (0.12, -0.28)])
    elif who.hair == "buzz":
        path = _cap(w, -0.24, -0.53)
    elif who.hair == "side":
        path = _cap(w, -0.1, -0.62)
        path.addPath(polygon([(-w * 0.9, -0.42), (w, -0.3), (w * 0.2, -0.14), (-w * 0.6, -0.22)]))
    elif who.hair in ("bob", "short"):
        path = _cap(w, -0.02 if who.hair == "bob" else -0.12, -0.6)
        path.addRect(skia.Rect.MakeLTRB(-w * 0.82, -0.34, w * 0.82, -0.17))
    else:
        path = _cap(w, 0.0 if who.hair in ("long", "wavy") else -0.12, -0.58)
    canvas.drawPath(path, paint)


def _cap(w: float, side_y: float, top: float) -> skia.Path:
    """Hair round the top of the head, open over the forehead."""
    path = skia.Path()
    path.moveTo(-w - 0.04, side_y)
    path.cubicTo(-w - 0.1, top * 0.9, -w * 0.6, top, 0, top)
    path.cubicTo(w * 0.6, top, w + 0.1, top * 0.9, w + 0.04, side_y)
    path.cubicTo(w * 0.86, -0.2, w * 0.7, -0.28, 0, -0.29)
    path.cubicTo(-w * 0.7, -0.28, -w * 0.86, -0.2, -w - 0.04, side_y)
    path.close()
    return path


def _limb(canvas: skia.Canvas, points: list[tuple[float, float]], code: str, width: float) -> None:
    canvas.drawPath(polygon(points, closed=False), line(code, width))


def _body(canvas: skia.Canvas, figure: Figure, face: Face) -> None:
    at, skin = joints(figure.action), SKIN[figure.identity.skin]
    cloth, dark = COLOURS[figure.colour], shade(COLOURS[figure.colour], 0.78)
    trousers = "#39405a" if figure.garment != "suit" else dark
    dress = figure.garment == "dress"
    for side in ("left", "right"):
        leg = [at[f"{side}_hip"], at[f"{side}_knee"], at[f"{side}_ankle"]]
        _limb(canvas, leg, skin if dress else trousers, 0.24 if dress else 0.32)
        oval(canvas, leg[-1][0] * 1.2, 3.02, 0.2, 0.1, fill(INK))
    box(canvas, -0.15, 0.35, 0.15, 0.85, fill(shade(skin, 0.88)))
    for side in ("left", "right"):
        arm = [at[f"{side}_shoulder"], at[f"{side}_elbow"], at[f"{side}_wrist"]]
        bare = figure.garment in ("shirt", "dress")
        _limb(canvas, arm, skin if bare else dark, 0.22)
        if bare:
            _limb(canvas, [arm[0], tuple((a + b) / 2 for a, b in zip(arm[0], arm[1], strict=True))], dark, 0.27)
        oval(canvas, *arm[-1], 0.13, 0.13, fill(skin))
    torso = [(-0.3, 0.62), (0.3, 0.62), (0.68, 0.74), (0.52, 1.85), (-0.52, 1.85), (-0.68, 0.74)]
    if dress:
        torso[3:5] = [(0.8, 2.4), (0.42, 1.4), (-0.42, 1.4), (-0.8, 2.4)]
    canvas.drawPath(polygon(torso), fill(cloth))
    canvas.drawPath(polygon(torso), line(cloth, 0.1))
    _garment_details(canvas, figure, skin, dark)


def _garment_details(canvas: skia.Canvas, figure: Figure, skin: str, dark: str) -> None:
    if figure.garment == "suit":
        canvas.drawPath(polygon([(-0.2, 0.6), (0.2, 0.6), (0, 1.35)]), fill("#fafafa"))
        for side in (-1, 1):
            canvas.drawPath(polygon([(side * 0.2, 0.58), (side * 0.36, 0.95), (0, 1.4)]), fill(dark))
    elif figure.garment == "sweater":
        for y in (0.98, 1.28, 1.58):
            box(canvas, -0.62, y, 0.62, y + 0.13, fill(dark))
        box(canvas, -0.24, 0.5, 0.24, 0.68, fill(dark), 0.06)
    elif figure.garment == "hoodie":
        canvas.drawPath(polygon([(-0.42, 0.5), (0.42, 0.5), (0.3, 0.82), (0, 0.95), (-0.3, 0.82)]), fill(dark))
        box(canvas, -0.32, 1.35, 0.32, 1.68, fill(dark), 0.08)
        oval(canvas, 0, 0.58, 0.19, 0.13, fill(shade(skin, 0.88)))
    else:
        oval(canvas, 0, 0.6, 0.22, 0.15 if figure.garment == "shirt" else 0.24, fill(shade(skin, 0.88)))


def _head(canvas: skia.Canvas, figure: Figure, face: Face) -> None:
    who, skin = figure.identity, SKIN[figure.identity.skin]
    for side in (-1, 1):
        oval(canvas, side * face.half_width, 0.06, 0.07, 0.1, fill(shade(skin, 0.9)))
    canvas.drawPath(head_path(face), fill(skin))
    _marks(canvas, who, face, skin)
    _facial_hair(canvas, who, face)
    _eyes(canvas, figure, face)
    _brows(canvas, figure, face)
    _nose(canvas, who, skin)
    _mouth(canvas, figure, face)


def _marks(canvas: skia.Canvas, who: Identity, face: Face, skin: str) -> None:
    if who.marks == "freckles":
        for side in (-1, 1):
            for dx, dy in ((-0.07, 0.0), (0.0, 0.035), (0.07, 0.0), (-0.03, 0.07), (0.04, 0.075)):
                oval(canvas, side * face.half_width * 0.52 + dx, 0.17 + dy, 0.016, 0.016, fill(shade(skin, 0.6)))
    elif who.marks == "mole":
        oval(canvas, face.half_width * 0.5, 0.26, 0.03, 0.03, fill(INK))
    elif who.marks == "blush":
        for side in (-1, 1):
            oval(canvas, side * face.half_width * 0.6, 0.2, 0.1, 0.07, fill("#f0616a", 0.5))


def _facial_hair(canvas: skia.Canvas, who: Identity, face: Face) -> None:
    if who.facial_hair == "none":
        return
    paint = fill(shade(HAIR_COLOURS[who.hair_colour], 0.85))
    if who.facial_hair == "beard":
        points = [p for p in contour(face, 33) if p[1] > 0.12]
        inner = [(face.half_width * 0.62, 0.2), (0.2, 0.24), (0.0, 0.235), (-0.2, 0.24), (-face.half_width * 0.62, 0.2)]
        canvas.drawPath(polygon([(x * 1.02, y * 1.04) for x, y in points] + inner), paint)
    if who.facial_hair in ("moustache", "goatee"):
        box(canvas, -0.15, 0.225, 0.15, 0.285, paint, 0.03)
    if who.facial_hair == "goatee":
        box(canvas, -0.1, 0.37, 0.1, 0.52, paint, 0.06)


def _eyes(canvas: skia.Canvas, figure: Figure, face: Face) -> None:
    who = figure.identity
    for side in (-1, 1):
        x = side * face.eye_x
        if figure.expression == "sleeping":
            arc = skia.Rect.MakeLTRB(x - face.eye_w, EYE_Y - 0.05, x + face.eye_w, EYE_Y + 0.05)
            canvas.drawArc(arc, 0, 180, False, line(INK, 0.028))
            continue
        stretch = 1.25 if figure.expression == "surprised" else 1.0
        oval(canvas, x, EYE_Y, face.eye_w, face.eye_h * stretch, fill("#ffffff"))
        oval(canvas, x, EYE_Y + 0.01, face.eye_w * 0.64, face.eye_w * 0.64, fill(EYE_COLOURS[who.eye_colour]))
        oval(canvas, x, EYE_Y + 0.01, face.eye_w * 0.33, face.eye_w * 0.33, fill("#0c0a0c"))
        oval(canvas, x - 0.022, EYE_Y - 0.02, 0.018, 0.018, fill("#ffffff"))
        lid = skia.Rect.MakeLTRB(x - face.eye_w, EYE_Y - face.eye_h * stretch, x + face.eye_w,
                                 EYE_Y + face.eye_h * stretch)
        canvas.drawArc(lid, 190, 160, False, line(INK, 0.034 if who.gender == "woman" else 0.02))
        if who.gender == "woman":
            canvas.drawLine(x + side * face.eye_w, EYE_Y - 0.03, x + side * (face.eye_w + 0.05), EYE_Y - 0.07,
                            line(INK, 0.024))


def _brows(canvas: skia.Canvas, figure: Figure, face: Face) -> None:
    who = figure.identity
    code = shade(HAIR_COLOURS[who.hair_colour], 0.6) if who.hair != "bald" else "#4a3526"
    paint = line(code, 0.065 if who.brows == "thick" else 0.034)
    lift = {"surprised": -0.06, "sad": 0.0}.get(figure.expression, 0.0)
    y = EYE_Y - 0.155 + lift
    slope = {"angled": 0.06, "arched": -0.01}.get(who.brows, 0.0) - (0.08 if figure.expression == "sad" else 0.0)
    for side in (-1, 1):
        x = side * face.eye_x
        inner, outer = (x - side * 0.09, y + slope / 2), (x + side * 0.1, y - slope / 2)
        path = skia.Path()
        path.moveTo(*inner)
        path.quadTo(x, y - (0.09 if who.brows == "arched" else 0.015), *outer)
        canvas.drawPath(path, paint)


def _nose(canvas: skia.Canvas, who: Identity, skin: str) -> None:
    dark = shade(skin, 0.72)
    if who.nose == "button":
        oval(canvas, 0, NOSE_Y, 0.05, 0.04, fill(dark))
    elif who.nose == "long":
        canvas.drawPath(polygon([(0.02, 0.04), (0.05, NOSE_Y), (-0.03, NOSE_Y + 0.02)], closed=False), line(dark, 0.03))
    elif who.nose == "wide":
        oval(canvas, 0, NOSE_Y, 0.105, 0.045, fill(dark))
    else:
        canvas.drawPath(polygon([(0, 0.08), (0.065, NOSE_Y + 0.02), (-0.065, NOSE_Y + 0.02)]), fill(dark))


def _mouth(canvas: skia.Canvas, figure: Figure, face: Face) -> None:
    w, red = face.mouth_w, "#b8434c" if figure.identity.gender == "woman" else "#96443f"
    if figure.expression == "smiling":
        path = skia.Path()
        path.moveTo(-w - 0.03, MOUTH_Y - 0.03)
        path.quadTo(0, MOUTH_Y + 0.17, w + 0.03, MOUTH_Y - 0.03)
        path.close()
        canvas.drawPath(path, fill("#7a1f2a"))
        box(canvas, -w * 0.75, MOUTH_Y - 0.03, w * 0.75, MOUTH_Y + 0.01, fill("#ffffff"))
    elif figure.expression == "surprised":
        oval(canvas, 0, MOUTH_Y + 0.03, 0.065, 0.085, fill("#7a1f2a"))
    elif figure.expression == "sad":
        arc = skia.Rect.MakeLTRB(-w, MOUTH_Y, w, MOUTH_Y + 0.11)
        canvas.drawArc(arc, 190, 160, False, line(red, 0.036))
    elif figure.identity.mouth == "full":
        oval(canvas, 0, MOUTH_Y + 0.005, w, 0.058, fill(red))
        canvas.drawLine(-w, MOUTH_Y, w, MOUTH_Y, line(shade(red, 0.6), 0.018))
    else:
        canvas.drawLine(-w, MOUTH_Y, w, MOUTH_Y, line(red, 0.028 if figure.identity.mouth == "thin" else 0.048))
