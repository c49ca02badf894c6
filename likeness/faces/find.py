"""Finding the faces of pictures: all of them, small and tilted ones too, in a stable order."""

from __future__ import annotations

import torch
from torch import Tensor

from .interface import FaceModels, Faces
from .search import AUTO, search
from .select import Gates, select


def find_faces(
    images: Tensor,
    models: FaceModels,
    *,
    gates: Gates | None = None,
    order: str = "left to right",
    effort: str = AUTO,
) -> Faces:
    """The faces of pictures ``B 3 H W`` in [0, 1]; a picture without one gives none, and never an error.

    Args:
        gates: which faces are let through; None: all.
        order: one of :data:`.select.ORDERS`.
        effort: one of :data:`.search.EFFORTS`: how hard small and tilted faces are looked for.
    """
    height, width = images.shape[-2:]
    found = search(clean(images), models.detector, effort) if min(height, width, len(images)) else [[] for _ in images]
    gates = gates or Gates()
    pictures = tuple(select(faces, gates, order, i) for i, faces in enumerate(found))
    return Faces(pictures, height, width, models.name)


def clean(images: Tensor) -> Tensor:
    """The pictures on the CPU in fp32, within [0, 1]; pixels that are no numbers become black."""
    return torch.nan_to_num(images.detach().float().cpu(), 0.0, 1.0, 0.0).clamp(0, 1)
