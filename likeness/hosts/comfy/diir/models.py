"""Which face models a run uses."""

from __future__ import annotations

import logging
from typing import Any

from ....core.errors import LikenessError
from ....faces.interface import FaceModels
from ..faces import models as faces
from ..miniature.models import MiniatureLatent
from .settings import AUTO

log = logging.getLogger("likeness")


def face_models(model: Any, provider: str, *, needed: bool = True) -> FaceModels | None:
    """The face models of that name; ``auto`` is the miniature's own for its drawn people, else the best there is.

    Args:
        needed: False where faces are given: then they only compare and parse, and ``auto`` may find none.

    Raises:
        LikenessError: their package or weights are not there.
    """
    drawn = provider == AUTO and isinstance(model.model.latent_format, MiniatureLatent)
    try:
        return faces.load(faces.MINIATURE if drawn else provider)
    except LikenessError as error:
        if needed or provider != AUTO:
            raise
        log.info("DIIR Face Repair: faces are not compared: %s", error)
        return None
