"""Face models in ComfyUI: which there are, and where their files lie."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from ....core.errors import bad_input
from ....faces import facenet, insightface, opencv, providers
from ....faces.interface import FaceEmbedder, FaceModels
from ..copies import private_copy
from ..folders import model_folders

AUTO, FACENET, MINIATURE = "auto", "facenet", "miniature (drawn people)"
CHOICES = (AUTO, *providers.PROVIDERS, MINIATURE)
PACKS = (AUTO, *insightface.PACKS)


def load(choice: str, pack: str = AUTO) -> FaceModels:
    """The face models of that name, one of :data:`CHOICES`; ``auto``: the best for photographs that is there.

    Args:
        pack: insightface's, one of :data:`PACKS`.

    Raises:
        LikenessError: their package or weights are not there.
    """
    if choice == MINIATURE:
        from ....miniature.faces import miniature_models

        return miniature_models()
    where = folders()
    provider = providers.best(where) if choice == AUTO else choice
    return providers.load(provider, where, "" if pack == AUTO else pack)


def folders() -> providers.Folders:
    """Where weights may lie: the folders below ``models``, and those that other packs or the user have named."""
    return providers.Folders(
        insightface=model_folders("insightface"),
        opencv=model_folders(opencv.FOLDER),
        parsing=model_folders("facexlib") + model_folders("facedetection"),
        facenet=facenet_weights(),
    )


def facenet_weights() -> Path:
    """Where the embedder's weights are, or would be looked for: the models folder ``facenet``."""
    places = [folder / facenet.WEIGHTS for folder in model_folders("facenet")]
    return next((path for path in places if path.is_file()), places[-1])


def private_embedder(faces: FaceModels) -> FaceEmbedder:
    """An embedder of one training's own, on the CPU: outside inference mode, frozen, in fp32.

    Raises:
        LikenessError: one that has no gradient.
    """
    embedder = copy.copy(faces.make_embedder())
    if not embedder.differentiable:
        raise bad_input(
            "Face Models", f"{embedder.name}, through which no gradient flows", "facenet or miniature",
            "Choose one of these for the identity loss.",
        )  # fmt: skip
    embedder.model = private_copy(embedder.model, "Face Models", torch.float32, torch.device("cpu"))
    return embedder
