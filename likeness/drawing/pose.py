"""Pictures of landmarks for ControlNets, on black, drawn as the preprocessors draw them whose pictures the networks
were trained on: MediaPipe's face, OpenPose with 70 face points, InstantID's five points.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..faces import geometry
from ..faces.interface import Face
from ..faces.keypoints import LEFT_EYE, NOSE, RIGHT_EYE, Person
from ..faces.landmarks import IBUG_LINES, MESH_LINES, MESH_PUPILS, ibug, openpose_face

MEDIAPIPE, OPENPOSE, OPENPOSE_THICK, INSTANTID = "MediaPipe face", "OpenPose", "OpenPose, thick (xinsir)", "InstantID"
STYLES = (MEDIAPIPE, OPENPOSE, OPENPOSE_THICK, INSTANTID)

Colour = tuple[int, int, int]
Point = tuple[float, float]

#: left is the subject's left
MESH_COLOURS: dict[str, Colour] = {
    "oval": (10, 200, 10), "lips": (10, 180, 10),
    "left eye": (10, 200, 180), "left brow": (10, 220, 180),
    "right eye": (180, 200, 10), "right brow": (180, 220, 10),
    "right pupil": (250, 200, 10), "left pupil": (10, 200, 250),
}  # fmt: skip

#: red to magenta round the colour wheel in steps of 20 degrees
RAINBOW: tuple[Colour, ...] = tuple(
    tuple(int(255 * part + 1e-6) for part in colorsys.hsv_to_rgb(step / 18, 1, 1)) for step in range(18)
)
LIMBS = ((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (1, 0),
         (0, 14), (14, 16), (0, 15), (15, 17))  # fmt: skip
FIVE_COLOURS: tuple[Colour, ...] = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255))
FIVE_STICKS = ((0, 2), (1, 2), (3, 2), (4, 2))
NOSE_OF_FIVE = 2
STICK = 4.0
#: how much darker sticks are than the dots on them
DIM = 0.6


def draw_faces(faces: Sequence[Face], height: int, width: int, style: str) -> Tensor:
    """The landmarks of faces on black, ``3 H W`` in [0, 1].

    MediaPipe's style draws what a set has of its lines: all with 478 points; without the upper oval with 68 or 106;
    nothing with five. OpenPose draws 70 points, or with five landmarks the eyes and the nose of its body.

    Args:
        style: one of :data:`STYLES`.
    """
    canvas, draw = _canvas(height, width)
    for face in faces:
        points = face.dense if face.dense is not None else face.landmarks
        if points is not None:
            _draw_face(draw, points, height, width, style)
    return _tensor(canvas)


def draw_people(people: Sequence[Person], height: int, width: int, style: str) -> Tensor:
    """The bodies and faces of people on black, ``3 H W`` in [0, 1]; styles other than OpenPose draw their faces."""
    canvas, draw = _canvas(height, width)
    if style in (OPENPOSE, OPENPOSE_THICK):
        for person in people:
            _draw_body(draw, person.body, _stick(style, height, width))
        for person in people:
            _draw_points(draw, person.face, 3.0, (255, 255, 255))
        return _tensor(canvas)
    for person in people:
        if torch.isfinite(person.face[:68]).all():
            whole = bool(torch.isfinite(person.face).all())
            _draw_face(draw, person.face if whole else person.face[:68], height, width, style)
    return _tensor(canvas)


def _canvas(height: int, width: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    canvas = Image.new("RGB", (width, height))
    return canvas, ImageDraw.Draw(canvas)


def _tensor(canvas: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1).float() / 255


def _draw_face(draw: ImageDraw.ImageDraw, points: Tensor, height: int, width: int, style: str) -> None:
    styles: dict[str, Callable[[], None]] = {
        MEDIAPIPE: lambda: _draw_mesh(draw, points),
        OPENPOSE: lambda: _draw_openpose_face(draw, points, _stick(style, height, width)),
        OPENPOSE_THICK: lambda: _draw_openpose_face(draw, points, _stick(style, height, width)),
        INSTANTID: lambda: _draw_five(draw, geometry.five_points(points)),
    }
    styles[style]()


def _draw_mesh(draw: ImageDraw.ImageDraw, points: Tensor) -> None:
    """Lines 2 pixels wide, pupils as squares of 4 pixels."""
    mesh = len(points) == 478
    base = points if mesh else ibug(points)
    if base is None:
        return
    for part, lines in (MESH_LINES if mesh else IBUG_LINES).items():
        for line in lines:
            draw.line([_at(base[i]) for i in line], fill=MESH_COLOURS[part], width=2)
    five = geometry.five_points(points)
    eyes = {name: points[i] for name, i in MESH_PUPILS.items()} if mesh else {
        "right pupil": five[0], "left pupil": five[1],
    }  # fmt: skip
    for name, point in eyes.items():
        x, y = (math.floor(value) for value in point.tolist())
        draw.rectangle([x - 2, y - 2, x + 1, y + 1], fill=MESH_COLOURS[name])


def _draw_openpose_face(draw: ImageDraw.ImageDraw, points: Tensor, stick: float) -> None:
    face = openpose_face(points)
    if face is not None:
        _draw_points(draw, face, 3.0, (255, 255, 255))
        return
    body = torch.full((18, 2), torch.nan)
    body[[RIGHT_EYE, LEFT_EYE, NOSE]] = points[[0, 1, NOSE_OF_FIVE]].float()
    _draw_body(draw, body, stick)


def _draw_points(draw: ImageDraw.ImageDraw, points: Tensor, radius: float, colour: Colour) -> None:
    for point in points[torch.isfinite(points).all(dim=1)]:
        _disc(draw, _at(point), radius, colour)


def _stick(style: str, height: int, width: int) -> float:
    """Half the width of a limb; the thick one grows with the picture."""
    longest = max(height, width)
    if style != OPENPOSE_THICK or longest < 500:
        return STICK
    return STICK * min(2 + longest // 1000, 7)


def _draw_body(draw: ImageDraw.ImageDraw, body: Tensor, stick: float) -> None:
    known = torch.isfinite(body).all(dim=1)
    for (a, b), colour in zip(LIMBS, RAINBOW, strict=False):
        if known[a] and known[b]:
            _limb(draw, _at(body[a]), _at(body[b]), stick, _dimmed(colour))
    for i, colour in enumerate(RAINBOW):
        if known[i]:
            _disc(draw, _at(body[i]), 4.0, colour)


def _draw_five(draw: ImageDraw.ImageDraw, five: Tensor) -> None:
    for a, b in FIVE_STICKS:
        _limb(draw, _at(five[a]), _at(five[b]), STICK, _dimmed(FIVE_COLOURS[a]))
    for point, colour in zip(five, FIVE_COLOURS, strict=True):
        _disc(draw, _at(point), 10.0, colour)


def _at(point: Tensor) -> Point:
    x, y = point.tolist()
    return x, y


def _dimmed(colour: Colour) -> Colour:
    red, green, blue = (int(DIM * part) for part in colour)
    return red, green, blue


def _disc(draw: ImageDraw.ImageDraw, middle: Point, radius: float, colour: Colour) -> None:
    x, y = middle
    draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)


def _limb(draw: ImageDraw.ImageDraw, a: Point, b: Point, half_width: float, colour: Colour) -> None:
    """A filled ellipse from one point to the other."""
    half_length = int(math.dist(a, b) / 2)
    angle = math.atan2(b[1] - a[1], b[0] - a[0])
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    steps = np.linspace(0, 2 * math.pi, 72, endpoint=False)
    outline = np.stack([half_length * np.cos(steps), half_width * np.sin(steps)], axis=1) @ turn
    middle = np.array([(a[0] + b[0]) / 2, (a[1] + b[1]) / 2])
    draw.polygon([tuple(point) for point in (outline + middle).tolist()], fill=colour)
