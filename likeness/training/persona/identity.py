"""Face embeddings for the identity loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...core.errors import bad_input
from ...faces.geometry import crop_square
from ...faces.interface import Face, FaceEmbedder, largest_face
from .photos import Photo


@dataclass(frozen=True)
class Identifier:
    """Face embeddings of decoded estimates, cropped where the photo's own face is.

    Attributes:
        embedder: any whose vectors are differentiable.
    """

    embedder: FaceEmbedder

    def __call__(self, pixels: Tensor, photos: list[Photo]) -> Tensor:
        """``B 3 H W`` in [0, 1] -> ``B E``."""
        boxes = torch.tensor([photo.box for photo in photos])
        return self.embedder.embed(crop_square(pixels, boxes, self.embedder.size, self.embedder.margin))

    def reference(self, photo: Photo, picture: Tensor, faces: Sequence[Face]) -> Photo:
        """The photo with the box and vector of its largest face; ``picture`` is the prepared one.

        Raises:
            LikenessError: no face.
        """
        face = largest_face(faces)
        if face is None:
            raise bad_input(
                "Persona Train: identity", "a picture with no face found", "a face", "Set the identity weight to 0."
            )
        boxed = replace(photo, box=face.box)
        with torch.no_grad():
            return replace(boxed, identity=self(picture[None], [boxed])[0])
