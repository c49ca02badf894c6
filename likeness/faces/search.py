"""Looking for faces with any detector: on the whole picture, on tiles for small faces, turned for tilted ones.

Detectors differ in what they see, which they say by optional attributes:
    working_side: longer side to which pictures are brought for it, so small faces vanish; absent: 640.
    smallest: side in pixels, at that size, of the least face it finds; absent: 20.
    tilt_range: it finds faces tilted by up to so many degrees; absent: 45.
    certain: least score on tiles and turned views, where there are many more chances to be wrong; absent: 0.6.
    turns: it takes turned faces for upright ones, so each is looked at again at so many angles; absent: 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from . import geometry
from .interface import Face, FaceDetector

QUICK, AUTO, THOROUGH = "quick", "auto", "thorough"
#: quick: one look at the whole picture. auto: tiles where nothing or only tiny faces are found, then turned views where
#: nothing certain is found. thorough: all of these, always.
EFFORTS = (QUICK, AUTO, THOROUGH)

ZOOMS = (2, 4)
#: tiles share a third with their neighbours, so that a face cut by one is whole in another
OVERLAP = 1 / 3
LEAST_TILE = 32
#: Faces at one place are one face: by overlap over union, or by the share of the smaller one inside the larger one.
SAME_IOU, SAME_INSIDE = 0.4, 0.7
#: A later look at a face replaces an earlier one only if it is more certain by this.
MORE_CERTAIN = 0.1
VIEWS_AT_ONCE = 16

#: Side of the crops in which a face is looked at again, at most.
CROP = 256
#: With so few angles that landmarks must tell the rest, a face counts as turned if it is more likely a face there than
#: upright, by so much in log odds.
COARSE, TURN_GAIN = 8, 0.5


@dataclass(frozen=True)
class Look:
    """One way to look at a picture: how much larger, in tiles or whole, and turned by how many degrees."""

    zoom: int = 1
    degrees: tuple[float, ...] = (0.0,)


def search(
    images: Tensor, detector: FaceDetector, effort: str = AUTO, tick: Callable[[], None] | None = None
) -> list[list[Face]]:
    """Per picture of ``B 3 H W`` its faces, in no order.

    Args:
        tick: called before every look; what it raises ends the search.
    """
    found = [Searcher(image, detector, tick).run(effort) for image in images]
    if not getattr(detector, "turns", 0) or effort == QUICK:
        return found
    return [[straighten(i, face, detector) for face in faces] for i, faces in zip(images, found, strict=True)]


class Searcher:
    """The search in one picture ``3 H W``; ``faces`` are those found so far."""

    def __init__(self, image: Tensor, detector: FaceDetector, tick: Callable[[], None] | None = None) -> None:
        self.image, self.detector, self.tick = image, detector, tick
        self.side, self.certain = getattr(detector, "working_side", 640), getattr(detector, "certain", 0.6)
        self.faces: list[Face] = []

    def run(self, effort: str) -> list[Face]:
        """Look again and again, as far as ``effort`` (of :data:`EFFORTS`) asks for it."""
        self.look(Look())
        if effort == QUICK:
            return self.faces
        always, turned = effort == THOROUGH, tuple(_turns(self.detector))
        for look in (Look(ZOOMS[0]), Look(ZOOMS[1])):
            if always or self._tiny(look.zoom):
                self.look(look)
        if always or not any(face.score >= self.certain for face in self.faces):
            self.look(Look(1, turned))
        if always or not self.faces:
            self.look(Look(ZOOMS[0], turned))
        return self.faces

    def _tiny(self, zoom: int) -> bool:
        """Whether nothing was found, or a face so small that others may have been missed at half this zoom."""
        least = 2 * getattr(self.detector, "smallest", 20) / self._scale(zoom // 2)
        return not self.faces or min(max(face.size) for face in self.faces) < least

    def _scale(self, zoom: int) -> float:
        """Detector's pixels a pixel of the picture: to its working side, enlarged no more than the zoom."""
        return min(zoom * self.side / max(self.image.shape[-2:]), float(zoom))

    def look(self, look: Look) -> None:
        """Add what one look finds."""
        if self.tick:
            self.tick()
        longest = max(self.image.shape[-2:])
        if look.zoom > 1 and longest / look.zoom < LEAST_TILE:
            return
        scale = self._scale(look.zoom)
        scaled = _scaled(self.image, scale)
        new = [face for degrees in look.degrees for face in self._found(scaled, scale, look.zoom, degrees)]
        if look != Look():
            new = [face for face in new if face.score >= self.certain]
        self.faces = merged(self.faces, new)

    def _found(self, scaled: Tensor, scale: float, zoom: int, degrees: float) -> Iterator[Face]:
        tiles = list(_tiles(scaled, zoom))
        views = torch.stack([view for view, _, _ in tiles])
        views, back = turned_views(views, degrees)
        found = [faces for part in views.split(VIEWS_AT_ONCE) for faces in self.detector.detect(part)]
        for faces, (_, corner, inner) in zip(found, tiles, strict=True):
            for face in (mapped(face, back, degrees) for face in faces):
                if not _cut(face, inner):
                    yield placed(face, corner, scale)


def _turns(detector: FaceDetector) -> Iterator[float]:
    step = 90 if getattr(detector, "tilt_range", 45) >= 45 else 45
    yield from (float(turn) for turn in range(step, 360, step))


def _scaled(image: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return image
    size = [max(1, round(side * scale)) for side in image.shape[-2:]]
    return F.interpolate(image[None], size=size, mode="bilinear", antialias=scale < 1, align_corners=False)[0]


Corner = tuple[int, int]
#: x and y beyond which a face is cut by a border that is not the picture's
Inner = tuple[float, float, float, float]


def _tiles(image: Tensor, zoom: int) -> Iterator[tuple[Tensor, Corner, Inner]]:
    """Overlapping windows of one size, the longer side divided by ``zoom``: pixels, corner, and inner bounds."""
    height, width = image.shape[-2:]
    side = math.ceil(max(height, width) / zoom)
    tall, wide = min(side, height), min(side, width)
    edge = 0.02 * side if zoom > 1 else 0.0
    for y in _starts(height, tall):
        for x in _starts(width, wide):
            low_x, low_y = (edge if at else -math.inf for at in (x, y))
            high_x = wide - edge if x + wide < width else math.inf
            high_y = tall - edge if y + tall < height else math.inf
            yield image[:, y : y + tall, x : x + wide], (x, y), (low_x, low_y, high_x, high_y)


def _starts(length: int, window: int) -> list[int]:
    count = 1 + math.ceil((length - window) / (window * (1 - OVERLAP)))
    return [round(i * (length - window) / max(1, count - 1)) for i in range(count)]


def _cut(face: Face, inner: Inner) -> bool:
    x0, y0, x1, y1 = face.box
    return x0 < inner[0] or y0 < inner[1] or x1 > inner[2] or y1 > inner[3]


def turned_views(views: Tensor, degrees: float) -> tuple[Tensor, Tensor]:
    """Pictures ``B 3 H W`` turned counter-clockwise, so that what was tilted by ``degrees`` stands upright.

    Returns:
        the turned pictures, large enough to hold everything, and ``2 3``, which maps their pixels back.
    """
    height, width = views.shape[-2:]
    turn = math.radians(degrees % 360)
    rotation = torch.tensor([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]], dtype=torch.float64)
    wide, tall = (rotation.abs() @ torch.tensor([width, height], dtype=torch.float64)).round().int().tolist()
    middle, new_middle = torch.tensor([[width], [height]]) / 2, torch.tensor([[wide], [tall]]) / 2
    forth = torch.cat([rotation, new_middle.double() - rotation @ middle.double()], dim=1)  # of continuous coordinates
    back = geometry.invert_transform(forth)
    if degrees % 90 == 0:
        return torch.rot90(views, round(degrees / 90) % 4, (-2, -1)), back
    half = torch.full((2, 1), 0.5, dtype=torch.float64)
    pixels = torch.cat([rotation, forth[:, 2:] + rotation @ half - half], dim=1)
    return geometry.warp(views, pixels.expand(len(views), -1, -1), tall, wide), back


def mapped(face: Face, back: Tensor, degrees: float) -> Face:
    """A face of a turned view in the coordinates of the view before it was turned."""
    if degrees % 360 == 0:
        return face
    middle = tuple(geometry.apply_transform(back, torch.tensor([face.centre]))[0].tolist())
    turned = (face.turned + degrees + 180) % 360 - 180
    return replace(
        face, box=geometry.turned_box(middle, face.size, turned), extent=face.size, turned=turned,
        **_points(face, lambda points: geometry.apply_transform(back, points)),
    )  # fmt: skip


def placed(face: Face, corner: Corner, scale: float) -> Face:
    """A face of a tile at ``corner`` of a scaled picture in the coordinates of the picture."""
    if corner == (0, 0) and scale == 1:
        return face
    shift = torch.tensor(corner, dtype=torch.float32)
    box = tuple((at + corner[i % 2]) / scale for i, at in enumerate(face.box))
    extent = face.extent and (face.extent[0] / scale, face.extent[1] / scale)
    return replace(face, box=box, extent=extent, **_points(face, lambda points: (points + shift) / scale))


def _points(face: Face, move) -> dict[str, Tensor]:
    points = {"landmarks": face.landmarks, "dense": face.dense}
    return {name: move(value) for name, value in points.items() if value is not None}


def merged(old: Sequence[Face], new: Sequence[Face]) -> list[Face]:
    """The faces of two looks, one at each place; of the second look only those that are new or clearly more certain."""
    kept = list(old)
    for face in sorted(new, key=lambda face: face.score, reverse=True):
        same = [other for other in kept if same_place(face, other)]
        if all(other in old and face.score > other.score + MORE_CERTAIN for other in same):
            kept = [other for other in kept if other not in same] + [face]
    return kept


def same_place(a: Face, b: Face) -> bool:
    """Whether two boxes hold the same face."""
    return (
        geometry.intersection_over_union(a.box, b.box) > SAME_IOU
        or geometry.intersection_over_smaller(a.box, b.box) > SAME_INSIDE
    )


def straighten(image: Tensor, face: Face, detector: FaceDetector) -> Face:
    """The face with its true tilt: turned by steps, detected again, the best score taken.

    Args:
        image: the picture, ``3 H W``.
    """
    count = detector.turns
    step = 360 / count
    start = face.tilt if count <= COARSE else face.turned
    scores = _turned_scores(image, face, detector, [start + i * step for i in range(count)])
    best = int(scores.argmax())
    if count <= COARSE:
        if best == 0 or scores[best] < scores[0] + TURN_GAIN:
            return face
        return _detected_upright(image, face, detector, start + best * step) or face
    around = torch.arange(-2, 3)
    weights = torch.softmax(2 * scores[(around + best) % count], dim=0)
    degrees = start + step * (best + float((weights * around).sum()))
    return _detected_upright(image, face, detector, degrees) or replace(face, turned=degrees)


#: What the crops of :func:`straighten` hold beyond the face, as a share of its longer side. Close to the face angles
#: are told apart finely; detectors that are asked for coarse ones see more with some room.
MARGIN, COARSE_MARGIN = 0.4, 0.8


def _margin(detector: FaceDetector) -> float:
    return MARGIN if getattr(detector, "turns", 0) > COARSE else COARSE_MARGIN


def _crop_side(detector: FaceDetector) -> int:
    return min(CROP, getattr(detector, "working_side", 640))


def _crops(image: Tensor, face: Face, detector: FaceDetector, degrees: Sequence[float]) -> Tensor:
    side, margin = _crop_side(detector), _margin(detector)
    (x, y), half = face.centre, max(face.size) / 2
    box = torch.tensor([[x - half, y - half, x + half, y + half]])
    return torch.cat([geometry.crop_square(image[None], box, side, margin, turn) for turn in degrees])


def _middle_face(faces: Sequence[Face], side: int) -> Face | None:
    """The most certain face in the middle of a square crop."""
    near = (f for f in faces if math.dist(f.centre, (side / 2, side / 2)) < 0.2 * side)
    return max(near, key=lambda face: face.score, default=None)


def _turned_scores(image: Tensor, face: Face, detector: FaceDetector, degrees: Sequence[float]) -> Tensor:
    """Log odds that the face is one when it is turned upright from each angle."""
    side = _crop_side(detector)
    found = [_middle_face(faces, side) for faces in detector.detect(_crops(image, face, detector, degrees))]
    scores = torch.tensor([0.0 if one is None else one.score for one in found], dtype=torch.float64)
    return torch.logit(scores, eps=1e-6).clamp(min=-3)


def look_inside(image: Tensor, face: Face, detector: FaceDetector) -> Face | None:
    """The face of ``3 H W`` as the detector finds it in the box of ``face``, with its landmarks; None: it does not."""
    return _detected_upright(image, face, detector, face.turned)


def _detected_upright(image: Tensor, face: Face, detector: FaceDetector, degrees: float) -> Face | None:
    """The face as it is found once more in the crop that has it upright, in the picture's coordinates."""
    side = _crop_side(detector)
    again = _middle_face(detector.detect(_crops(image, face, detector, [degrees]))[0], side)
    if again is None:
        return None
    zoom = max(face.size) * (1 + 2 * _margin(detector)) / side
    turn = math.radians(degrees)
    linear = zoom * torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    shift = torch.tensor(face.centre)[:, None] - linear @ torch.full((2, 1), side / 2)
    found = mapped(again, torch.cat([linear, shift], dim=1), degrees)
    size = (again.size[0] * zoom, again.size[1] * zoom)
    return replace(found, box=geometry.turned_box(found.centre, size, found.turned), extent=size)
