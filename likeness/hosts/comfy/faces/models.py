"""Face models in ComfyUI: which there are, and where their files lie."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from ....faces import facenet
from ....faces.interface import FaceEmbedder, FaceModels
from ..copies import private_copy

FACENET, MINIATURE = "facenet", "miniature (drawn people)"
CHOICES = (FACENET, MINIATURE)


def load(choice: str) -> FaceModels:
    """The face models of that name, one of :data:`CHOICES`.

    Raises:
        LikenessError: their package or weights are not there.
    """
    if choice == MINIATURE:
        from ....miniature.faces import MiniatureDetector, MiniatureEmbedder

        return FaceModels("miniature", MiniatureDetector(), MiniatureEmbedder)
    return FaceModels("facenet", facenet.FacenetDetector(), lambda: facenet.FacenetEmbedder(facenet_weights()))


def facenet_weights() -> Path:
    """Where the embedder's weights are, or would be looked for: the models folder ``facenet``."""
    import folder_paths

    known = folder_paths.folder_names_and_paths.get("facenet", ([], set()))[0]
    own = Path(folder_paths.models_dir) / "facenet" / facenet.WEIGHTS
    return next((p for folder in known if (p := Path(folder) / facenet.WEIGHTS).is_file()), own)


def private_embedder(faces: FaceModels) -> FaceEmbedder:
    """An embedder of one training's own, on the CPU: outside inference mode, frozen, in fp32."""
    embedder = copy.copy(faces.make_embedder())
    embedder.model = private_copy(embedder.model, "Face Models", torch.float32, torch.device("cpu"))
    return embedder
