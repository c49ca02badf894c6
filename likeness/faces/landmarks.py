"""What the points of dense landmark sets are, and how one set reads as another."""

from __future__ import annotations

import torch
from torch import Tensor

from . import geometry

#: Lines of the 468-point mesh of MediaPipe that its face ControlNet was drawn with; left is the subject's left.
MESH_LINES: dict[str, tuple[tuple[int, ...], ...]] = {
    "oval": (
        (10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152, 148, 176, 149,
         150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109, 10),
    ),
    "lips": (
        (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291), (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291),
        (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308), (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308),
    ),
    "left eye": ((263, 249, 390, 373, 374, 380, 381, 382, 362), (263, 466, 388, 387, 386, 385, 384, 398, 362)),
    "left brow": ((276, 283, 282, 295, 285), (300, 293, 334, 296, 336)),
    "right eye": ((33, 7, 163, 144, 145, 153, 154, 155, 133), (33, 246, 161, 160, 159, 158, 157, 173, 133)),
    "right brow": ((46, 53, 52, 65, 55), (70, 63, 105, 66, 107)),
}  # fmt: skip
#: The middles of the irises, points 469 and 474 on: the subject's right and left.
MESH_PUPILS = {"right pupil": 468, "left pupil": 473}


def _run(first: int, last: int, closed: bool = False) -> tuple[int, ...]:
    return (*range(first, last + 1), *((first,) if closed else ()))


#: The same parts in the 68 points of iBUG; the oval is the jaw alone.
IBUG_LINES: dict[str, tuple[tuple[int, ...], ...]] = {
    "oval": (_run(0, 16),),
    "lips": (_run(48, 59, True), _run(60, 67, True)),
    "left eye": (_run(42, 47, True),),
    "left brow": (_run(22, 26),),
    "right eye": (_run(36, 41, True),),
    "right brow": (_run(17, 21),),
}

#: The 68 points of iBUG (jaw; brows; nose; eyes; lips) by the points of larger sets that lie nearest.
IBUG_OF = {
    106: (
        1, 10, 12, 14, 16, 3, 5, 7, 0, 23, 21, 19, 32, 30, 28, 26, 17,
        43, 48, 49, 51, 50, 102, 103, 104, 105, 101,
        72, 73, 74, 86, 78, 79, 80, 85, 84,
        35, 41, 42, 39, 37, 36, 89, 95, 96, 93, 91, 90,
        52, 64, 63, 71, 67, 68, 61, 58, 59, 53, 56, 55, 65, 66, 62, 70, 69, 57, 60, 54,
    ),
    478: (
        162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389,
        71, 63, 105, 66, 107, 336, 296, 334, 293, 301,
        168, 197, 5, 4, 75, 97, 2, 326, 305,
        33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,
        61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181, 78, 82, 13, 312, 308, 317, 14, 87,
    ),
}  # fmt: skip


def ibug(points: Tensor) -> Tensor | None:
    """The 68 points of iBUG of a set of 68, 70, 106 or 478; None for five landmarks."""
    if len(points) in (68, 70):
        return points[:68]
    indices = IBUG_OF.get(len(points))
    return None if indices is None else points[list(indices)]


def openpose_face(points: Tensor) -> Tensor | None:
    """The 70 face points of OpenPose, iBUG's and the pupils (the subject's right first); None for five landmarks."""
    if len(points) == 70:
        return points
    base = ibug(points)
    return None if base is None else torch.cat([base, geometry.five_points(points)[:2]])
