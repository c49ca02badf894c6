"""The outline of a head in its crop: parsed, else from dense landmarks, else an ellipse round the face's box."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ....core.diir.geometry import Crop, cut
from ....core.diir.paste import ellipse_mask, feathered, hull_mask
from ....core.errors import LikenessError
from ....faces.interface import NOT_HEAD, PARTS, Face, FaceModels, FaceParser
from .settings import AUTO, ELLIPSE, HULL, PARSING

#: A parsed head smaller than this share of the ellipse, or larger than that multiple of it, was not understood.
PLAUSIBLE = (0.35, 2.2)


class Heads:
    """Makes masks; the parser is loaded when first needed.

    Args:
        models: may hold a parser. kind: one of :data:`.settings.MASKS`. frame, feather: of the request.
        size: side of the crops.
    """

    def __init__(self, models: FaceModels | None, kind: str, frame: float, feather: float, size: int) -> None:
        self.models, self.kind, self.frame, self.feather, self.size = models, kind, frame, feather, size
        self.note: str | None = None
        self._parser: FaceParser | None = None

    def mask(self, picture: Tensor, face: Face, crop: Crop) -> tuple[Tensor, str]:
        """The soft mask ``S S`` of a face of ``3 H W``, and how it was made."""
        width, height = face.size
        ellipse = ellipse_mask(self.size, self.frame, width / max(height, 1e-6))
        hard, source = self._parsed(picture, crop, ellipse), PARSING
        if hard is None:
            hard, source = self._hull(face, crop), HULL
        if hard is None:
            hard, source = ellipse, ELLIPSE
        return feathered(hard, self.feather), source

    def _hull(self, face: Face, crop: Crop) -> Tensor | None:
        if self.kind not in (AUTO, HULL) or face.dense is None or len(face.dense) < 8:
            return None
        return hull_mask(crop.from_picture(face.dense.float().cpu()), self.size)

    def _parsed(self, picture: Tensor, crop: Crop, ellipse: Tensor) -> Tensor | None:
        parser = self.parser
        if parser is None:
            return None
        labels = parser.parse(cut(picture, crop, parser.size)[None])[0]  # s s
        head = ~torch.isin(labels, torch.tensor([PARTS.index(part) for part in NOT_HEAD], device=labels.device))
        head = F.interpolate(head.float()[None, None].cpu(), (self.size, self.size), mode="bilinear")[0, 0]
        head = head * _near(ellipse)  # heads beside this one are not its own
        share = float(head.sum() / ellipse.sum())
        return head if PLAUSIBLE[0] <= share <= PLAUSIBLE[1] else None

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


def _near(ellipse: Tensor) -> Tensor:
    """The ellipse widened by an eighth of its crop, where the rest of one head's hair may be."""
    reach = max(1, ellipse.shape[-1] // 8)
    return F.max_pool2d(ellipse[None, None], 2 * reach + 1, stride=1, padding=reach)[0, 0]
