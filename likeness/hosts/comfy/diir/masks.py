"""The outline of a head in its crop: parsed, else from dense landmarks, else an ellipse round the face's box."""

from __future__ import annotations

import torch
from torch import Tensor

from ....core.diir.geometry import Crop, cut
from ....core.diir.paste import feathered, hull_mask
from ....core.errors import LikenessError
from ....faces.interface import Face, FaceModels, FaceParser
from ....faces.masks import head_ellipse, head_mask, in_crop
from .settings import AUTO, ELLIPSE, HULL, PARSING


class Heads:
    """Makes masks; the parser is loaded when first needed.

    Args:
        models: may hold a parser. kind: one of :data:`.settings.MASKS`. feather: of the request.
        size: side of the crops.
    """

    def __init__(self, models: FaceModels | None, kind: str, feather: float, size: int) -> None:
        self.models, self.kind, self.feather, self.size = models, kind, feather, size
        self.note: str | None = None
        self._parser: FaceParser | None = None

    def mask(self, picture: Tensor, face: Face, crop: Crop) -> tuple[Tensor, str]:
        """The soft mask ``S S`` of a face of ``3 H W``, and how it was made."""
        here = in_crop(face, crop, self.size)
        hard, source = head_ellipse(here, self.size, self.size), ELLIPSE
        if self.parser is not None:
            parsed = head_mask(cut(picture, crop, self.size), here, self.parser)
            hard, source = (hard, ELLIPSE) if torch.equal(parsed, hard) else (parsed, PARSING)
        if source == ELLIPSE and self.kind in (AUTO, HULL) and here.dense is not None:
            hard, source = hull_mask(here.dense / self.size, self.size), HULL
        return feathered(hard, self.feather), source

    @property
    def parser(self) -> FaceParser | None:
        """None where it is not wanted or not there; :attr:`note` then tells why, if it was wanted by name."""
        wanted = self.kind in (AUTO, PARSING) and self.models is not None and self.models.make_parser is not None
        if self._parser is None and wanted and self.note is None:
            try:
                self._parser = self.models.make_parser()
            except LikenessError as error:
                self.note = f"heads are not parsed: {error}"
        if self._parser is None and self.kind == PARSING and self.note is None:
            self.note = "heads are not parsed: there is no parser; landmarks or an ellipse take its place"
        return self._parser
