"""How like a person a face is, before and after."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ....core.errors import LikenessError
from ....faces.interface import Face, FaceEmbedder, FaceModels, embed_faces, largest_face, similarities


class Judge:
    """Compares faces, as far as the face models can.

    Args:
        models: None where nothing can find or compare faces.

    Attributes:
        note: why faces are not compared, in words, or None.
    """

    def __init__(self, models: FaceModels | None) -> None:
        self.models = models
        self.note: str | None = "there are no face models to compare faces with" if models is None else None
        self._embedder: FaceEmbedder | None = None

    @property
    def embedder(self) -> FaceEmbedder | None:
        """Made when first asked for; None where its weights are missing, which :attr:`note` then tells."""
        if self._embedder is None and self.note is None:
            try:
                self._embedder = self.models.make_embedder()
            except LikenessError as error:
                self.note = f"faces are not compared: {error}"
        return self._embedder

    @property
    def good_enough(self) -> float:
        """The least similarity at which two faces pass for one person."""
        return 1.0 if self.embedder is None else self.embedder.same_person

    @torch.no_grad()
    def vector(self, image: Tensor, face: Face) -> Tensor | None:
        """Identity vector ``D`` of a face of ``3 H W``, or None where none can be made."""
        if self.embedder is None or (self.embedder.aligned and face.landmarks is None):
            return None
        return embed_faces(self.embedder, image.float(), [face])[0]

    def mean(self, vectors: list[Tensor]) -> Tensor:
        """One vector for several views."""
        mean = torch.stack(vectors).float().mean(dim=0)
        return mean if self.embedder.euclidean else F.normalize(mean, dim=0)

    def similarity(self, a: Tensor | None, b: Tensor | None) -> float | None:
        """Of two vectors ``D``; None where one is missing."""
        if a is None or b is None:
            return None
        return float(similarities(self.embedder, a[None], b[None]))

    def in_crop(self, crop: Tensor, person: Tensor | None) -> float | None:
        """Similarity of the face of a crop ``3 S S`` to a person; None where no face is seen in it."""
        if person is None:
            return None
        face = largest_face(self.models.detector.detect(crop[None].float())[0])
        return None if face is None else self.similarity(self.vector(crop, face), person)

    def table(self, image: Tensor, faces: tuple[Face, ...], people: list[Tensor | None]) -> Tensor | None:
        """Similarities ``F P`` of the faces of ``3 H W`` to people; NaN where one is unknown, None where all are."""
        if not faces or all(person is None for person in people):
            return None
        vectors = [self.vector(image, face) for face in faces]
        rows = [[self.similarity(vector, person) for person in people] for vector in vectors]
        return torch.tensor([[float("nan") if value is None else value for value in row] for row in rows])
