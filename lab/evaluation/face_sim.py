"""Faces of picture files with their identity vectors, kept by file digest; the rules are in ``scores``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lab.evaluation.cache import Cache, open_picture
from likeness.core.errors import bad_input
from likeness.faces import providers
from likeness.faces.find import find_faces
from likeness.faces.interface import FaceEmbedder, FaceModels, embed_faces
from likeness.faces.search import QUICK
from likeness.miniature.faces import miniature_models

MINIATURE = "miniature"
#: Border of a face crop for the FID of faces, as a share of the box's larger side.
BORDER = 0.25


@dataclass(frozen=True, eq=False)
class Found:
    """The faces of one picture, most confident first.

    Attributes:
        boxes: ``F 4`` in pixels. vectors: ``F D``. size: width and height of the picture.
    """

    boxes: Tensor
    vectors: Tensor
    size: tuple[int, int]


def face_models(provider: str, weights: Path, pack: str = "") -> FaceModels:
    """A provider by name, with its files below ``weights``.

    Raises:
        LikenessError: no such provider, or its package or weights are not there.
    """
    if provider == MINIATURE:
        return miniature_models()
    if provider not in providers.PROVIDERS:
        raise bad_input("evaluation: faces", provider, ", ".join((MINIATURE, *providers.PROVIDERS)), "Choose one.")
    return providers.load(provider, providers.Folders.below(weights), pack)


@dataclass
class FaceFinder:
    """Finds and embeds the faces of files.

    Raises:
        LikenessError: the provider has no embedder.
    """

    models: FaceModels
    cache: Cache

    def __post_init__(self) -> None:
        self.embedder: FaceEmbedder = self.models.make_embedder()
        self.key = f"faces-{self.models.name}-{self.embedder.name}".replace("/", "_")

    def __call__(self, file: Path) -> Found:
        if not self.cache.path(self.key, file).is_file():
            self.cache.write(self.key, file, self._look(file))
        kept = self.cache.read(self.key, file)
        self.cache.tick(1)
        boxes, vectors = (torch.from_numpy(kept[name]) for name in ("boxes", "vectors"))
        return Found(boxes, vectors, tuple(kept["size"].tolist()))

    @torch.no_grad()
    def _look(self, file: Path) -> dict[str, np.ndarray]:
        image = _tensor(open_picture(file))  # one look, as the papers: what it misses counts as no face
        faces = find_faces(image[None], self.models, effort=QUICK).pictures[0]
        faces = sorted(faces, key=lambda face: -face.score)
        boxes = torch.tensor([face.box for face in faces], dtype=torch.float32).reshape(-1, 4)
        vectors = embed_faces(self.embedder, image, faces).float().cpu()
        return {"boxes": boxes.numpy(), "vectors": vectors.numpy(), "size": np.array(image.shape[:0:-1])}

    def of_person(self, files: Sequence[Path]) -> Tensor:
        """Vectors ``R D`` of the largest face of every reference picture that has one."""
        rows = []
        for found in map(self, files):
            if len(found.boxes):
                sizes = (found.boxes[:, 2:] - found.boxes[:, :2]).prod(dim=1)
                rows.append(found.vectors[int(sizes.argmax())])
        if not rows:
            raise bad_input("evaluation: references", f"no face in {', '.join(f.name for f in files)}",
                            "a picture that shows the person's face", "Put one into the person's folder.")
        return torch.stack(rows)


def _tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255).permute(2, 0, 1)


def face_crop_of(file: Path, found: Found) -> Image.Image:
    """The largest face of a picture that has one, with a border: what the FID of the face region sees."""
    sizes = (found.boxes[:, 2:] - found.boxes[:, :2]).prod(dim=1)
    x0, y0, x1, y1 = found.boxes[int(sizes.argmax())].tolist()
    border = BORDER * max(x1 - x0, y1 - y0)
    return open_picture(file).crop(tuple(map(round, (x0 - border, y0 - border, x1 + border, y1 + border))))
