"""Where things are on a drawn person, in head units (head height 1, head centre at the origin, y down)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .identity import Identity
from .spec import Figure

FACE_HALF_WIDTH = {"oval": 0.40, "round": 0.45, "square": 0.43, "long": 0.36, "heart": 0.42}
JAW = {"oval": 0.26, "round": 0.34, "square": 0.38, "long": 0.24, "heart": 0.13}
EYE_Y = 0.04
NOSE_Y = 0.19
MOUTH_Y = 0.31


@dataclass(frozen=True)
class Face:
    """Measures of one face in head units."""

    half_width: float
    jaw: float
    eye_x: float
    eye_w: float
    eye_h: float
    mouth_w: float


def face_of(identity: Identity) -> Face:
    """Measures of the identity's face."""
    width = FACE_HALF_WIDTH[identity.face]
    size = 0.095 + 0.022 * identity.eye_size
    return Face(
        half_width=width,
        jaw=JAW[identity.face],
        eye_x=0.155 + 0.028 * identity.eye_spacing,
        eye_w=size,
        eye_h=size * 0.82,
        mouth_w={"small": 0.085, "wide": 0.17, "full": 0.125, "thin": 0.13}[identity.mouth],
    )


def contour(face: Face, points: int = 17) -> list[tuple[float, float]]:
    """Face contour from the left temple round the chin to the right temple."""
    out = []
    for i in range(points):
        angle = math.pi * i / (points - 1)
        x = -math.cos(angle)
        squareness = 0.55 + face.jaw
        y = math.sin(angle) ** (1.0 / (0.6 + squareness)) * 0.5
        out.append((x * face.half_width * (1 - (0.36 - face.jaw) * math.sin(angle) ** 2 * 0.5), y))
    return out


def five_points(face: Face) -> list[tuple[float, float]]:
    """Left eye, right eye, nose tip, left and right mouth corner (left and right as seen)."""
    return [(-face.eye_x, EYE_Y), (face.eye_x, EYE_Y), (0.0, NOSE_Y), (-face.mouth_w, MOUTH_Y), (face.mouth_w, MOUTH_Y)]


def dense_points(face: Face) -> list[tuple[float, float]]:
    """Sixty-eight-point layout: contour 17, brows 2x5, nose 9, eyes 2x6, mouth 20."""
    points = contour(face)
    for side in (-1, 1):
        points += [(side * face.eye_x + (i / 4 - 0.5) * 0.2, EYE_Y - 0.14) for i in range(5)]
    points += [(0.0, EYE_Y + (NOSE_Y - EYE_Y) * i / 3) for i in range(4)]
    points += [((i - 2) * 0.035, NOSE_Y + 0.02) for i in range(5)]
    for side in (-1, 1):
        points += [_ellipse(side * face.eye_x, EYE_Y, face.eye_w, face.eye_h, math.pi * (1 - i / 3)) for i in range(6)]
    points += [_ellipse(0, MOUTH_Y, face.mouth_w, 0.045, math.pi * (1 - i / 6)) for i in range(12)]
    points += [_ellipse(0, MOUTH_Y, face.mouth_w * 0.8, 0.02, math.pi * (1 - i / 4)) for i in range(8)]
    return points


def _ellipse(cx: float, cy: float, rx: float, ry: float, angle: float) -> tuple[float, float]:
    return cx + rx * math.cos(angle), cy - ry * math.sin(angle)


ARMS = {  # elbow and wrist of the left arm; the right one is mirrored unless given apart
    "standing": ((-0.86, 1.15), (-0.82, 1.62)),
    "arms raised": ((-1.08, 0.52), (-0.98, -0.05)),
    "hands on hips": ((-1.18, 1.22), (-0.62, 1.62)),
}


def joints(action: str) -> dict[str, tuple[float, float]]:
    """Body joints (COCO names) in head units for an action."""
    left = ARMS["standing" if action == "waving" else action]
    right = ARMS["arms raised" if action == "waving" else action]
    out = {"neck": (0.0, 0.6), "nose": (0.0, NOSE_Y)}
    for name, sign, arm in (("left", -1, left), ("right", 1, right)):
        out[f"{name}_shoulder"] = (sign * 0.62, 0.78)
        out[f"{name}_elbow"] = (-sign * arm[0][0], arm[0][1])
        out[f"{name}_wrist"] = (-sign * arm[1][0], arm[1][1])
        out[f"{name}_hip"] = (sign * 0.3, 1.75)
        out[f"{name}_knee"] = (sign * 0.32, 2.35)
        out[f"{name}_ankle"] = (sign * 0.33, 2.95)
    return out


def place(figure: Figure, size: int, points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Head units to pixels of a ``size`` x ``size`` picture (the head's tilt turns points about the head centre)."""
    scale = figure.head * size
    angle = math.radians(figure.tilt)
    cos, sin = math.cos(angle), math.sin(angle)
    cx, cy = figure.centre[0] * size, figure.centre[1] * size
    return [(cx + scale * (x * cos - y * sin), cy + scale * (x * sin + y * cos)) for x, y in points]
