"""Finding the faces of pictures: all of them, small and tilted ones too, in a stable order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from . import geometry
from .interface import Face, FaceModels, Faces, LandmarkDetector
from .search import AUTO, search
from .select import Gates, select

#: Sides in pixels below which a picture holds nobody.
LEAST_SIDE = 8


def find_faces(
    images: Tensor,
    models: FaceModels,
    *,
    gates: Gates | None = None,
    order: str = "left to right",
    effort: str = AUTO,
    tick: Callable[[], None] | None = None,
) -> Faces:
    """The faces of pictures ``B 3 H W`` in [0, 1]; a picture without one gives none, and never an error.

    Args:
        gates: which faces are let through; None: all.
        order: one of :data:`.select.ORDERS`.
        effort: one of :data:`.search.EFFORTS`: how hard small and tilted faces are looked for.
        tick: called now and then; what it raises ends the search.
    """
    height, width = images.shape[-2:]
    empty = not len(images) or min(height, width) < LEAST_SIDE
    found = [[] for _ in images] if empty else search(clean(images), models.detector, effort, tick)
    gates = gates or Gates()
    pictures = tuple(select(faces, gates, order, i) for i, faces in enumerate(found))
    return Faces(pictures, height, width, models.name)


def clean(images: Tensor) -> Tensor:
    """The pictures on the CPU in fp32, within [0, 1]; pixels that are no numbers become black."""
    return torch.nan_to_num(images.detach().float().cpu(), 0.0, 1.0, 0.0).clamp(0, 1)


#: The crop in which dense landmarks are looked for, and what it holds beyond the box, as a share of its longer side.
CROP, MARGIN = 384, 0.5


def with_landmarks(images: Tensor, faces: Faces, models: FaceModels) -> Faces:
    """The faces of ``images`` ``B 3 H W`` with the landmarks that their models have beyond what the detector gave."""
    if models.make_landmarker is None:
        return faces
    lacking = [[face.dense is None for face in picture] for picture in faces.pictures]
    if not any(map(any, lacking)):
        return faces
    landmarker = models.make_landmarker()
    rows = zip(clean(images), faces.pictures, strict=True)
    return replace(faces, pictures=tuple(tuple(_marked(i, face, landmarker) for face in row) for i, row in rows))


def _marked(image: Tensor, face: Face, landmarker: LandmarkDetector) -> Face:
    """A face of ``3 H W`` with landmarks placed in a crop that has it upright; the same face where none are found."""
    if face.dense is not None:
        return face
    (x, y), half = face.centre, max(face.size) / 2
    box = torch.tensor([x - half, y - half, x + half, y + half])
    crop = geometry.crop_square(image[None], box[None], CROP, MARGIN, face.tilt)
    border = CROP * MARGIN / (1 + 2 * MARGIN)
    points = landmarker.landmarks(crop, torch.tensor([[border, border, CROP - border, CROP - border]]))[0]
    if not torch.isfinite(points).all():
        return face
    placed = geometry.from_crop_square(points / CROP, box, MARGIN, face.tilt)
    five = face.landmarks if face.landmarks is not None else geometry.five_points(placed)
    return replace(face, landmarks=five, dense=placed if len(placed) > 5 else None)
