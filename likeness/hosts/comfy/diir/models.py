"""Which face models a run uses."""

from __future__ import annotations

from typing import Any

from ....faces.interface import FaceModels
from ..faces import models as faces
from ..miniature.models import MiniatureLatent
from .settings import AUTO


def face_models(model: Any, provider: str) -> FaceModels:
    """The face models of that name; ``auto`` is the miniature's own for its drawn people.

    Raises:
        LikenessError: their package or weights are not there.
    """
    drawn = provider == AUTO and isinstance(model.model.latent_format, MiniatureLatent)
    return faces.load(faces.MINIATURE if drawn else provider)
