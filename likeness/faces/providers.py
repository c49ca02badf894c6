"""The providers for photographs by name, each imported only when it is used, and the best of those that are there."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import bad_input
from . import dlib, facenet, insightface, mediapipe, opencv, optional, parsing
from .interface import FaceEmbedder, FaceModels, FaceParser, LandmarkDetector


@dataclass(frozen=True)
class Folders:
    """Where the user's weights may lie.

    Attributes:
        insightface: folders that hold ``models/<pack>/*.onnx``.
        opencv, parsing: folders that hold the files themselves.
        facenet: where facenet's file is, or would be looked for.
    """

    insightface: tuple[Path, ...]
    opencv: tuple[Path, ...]
    parsing: tuple[Path, ...]
    facenet: Path

    @classmethod
    def below(cls, root: Path) -> Folders:
        """In a folder that is laid out as ComfyUI's ``models``."""
        return cls(
            (root / "insightface",), (root / opencv.FOLDER,), (root / "facexlib", root / "facedetection"),
            root / "facenet" / facenet.WEIGHTS,
        )  # fmt: skip


#: From the best to the last resort.
PROVIDERS = ("insightface", "opencv", "facenet", "mediapipe", "dlib")


def available(folders: Folders) -> list[str]:
    """The providers whose detector can be made here, the best first; no optional package is imported."""
    there = {
        "insightface": insightface.available(folders.insightface),
        "opencv": opencv.available(folders.opencv),
        "facenet": facenet.installed(),
        "mediapipe": mediapipe.available(),
        "dlib": dlib.available(),
    }
    return [name for name in PROVIDERS if there[name]]


def best(folders: Folders) -> str:
    """The best provider that is there.

    Raises:
        LikenessError: none is.
    """
    found = available(folders)
    if found:
        return found[0]
    raise bad_input(
        "Face models: auto", "no face models for photographs", "one of " + ", ".join(PROVIDERS),
        f"Simplest, in ComfyUI's Python: pip install --no-deps {facenet.REQUIREMENT}. For insightface: "
        f"{insightface.COMMAND}, and a pack in models/insightface/models. For drawn people of the miniature choose "
        "miniature.",
    )  # fmt: skip


def load(provider: str, folders: Folders, pack: str = "") -> FaceModels:
    """The face models of one of :data:`PROVIDERS`.

    Args:
        pack: insightface's pack; empty: the first one that is there.

    Raises:
        LikenessError: its package or weights are not there.
    """
    make: dict[str, Callable[[], FaceModels]] = {
        "insightface": lambda: _insightface(folders, pack),
        "opencv": lambda: _models("opencv", opencv.YuNetDetector(folders.opencv), folders),
        "facenet": lambda: _models("facenet", facenet.FacenetDetector(), folders),
        "mediapipe": lambda: _models("mediapipe", mediapipe.MediaPipeDetector(), folders),
        "dlib": lambda: _models("dlib", dlib.DlibDetector(), folders),
    }
    return make[provider]()


def _insightface(folders: Folders, pack: str) -> FaceModels:
    if not optional.installed(insightface.PACKAGE):  # before the weights: that comes first for the user as well
        optional.package("insightface", insightface.PACKAGE, insightface.COMMAND)
    models = insightface.InsightFace(insightface.find_pack(folders.insightface, pack))
    landmarker = (lambda: models) if models.has("landmark_2d_106") else None
    return FaceModels(models.name, models, lambda: models, landmarker, _parser(folders))


def _models(name: str, detector: Any, folders: Folders) -> FaceModels:
    own: LandmarkDetector | None = detector if isinstance(detector, LandmarkDetector) else None
    landmarker = (lambda: own) if own else _landmarker()
    embedder = functools.cache(lambda: _embedder(name, folders))
    return FaceModels(name, detector, embedder, landmarker, _parser(folders))


def _embedder(provider: str, folders: Folders) -> FaceEmbedder:
    """The provider's own embedder; for MediaPipe, which has none, the best that is there."""
    if provider == "opencv":
        return opencv.SFaceEmbedder(folders.opencv)
    if provider == "facenet":
        return facenet.FacenetEmbedder(folders.facenet)
    if provider == "dlib":
        return dlib.DlibEmbedder()
    ready = {
        "insightface": insightface.available(folders.insightface),
        "opencv": optional.first_file(folders.opencv, opencv.EMBEDDER) is not None,
        "facenet": facenet.installed() and folders.facenet.is_file(),
        "dlib": dlib.available(),
    }
    other = next((name for name, there in ready.items() if there), None)
    if other is None:
        raise bad_input(
            f"Face models: {provider}", "no embedder: it only finds faces", "one of " + ", ".join(ready),
            f"Install one of them as well, for example: {dlib.COMMAND}.",
        )  # fmt: skip
    if other == "insightface":
        return insightface.InsightFace(insightface.find_pack(folders.insightface))
    return _embedder(other, folders)


def _landmarker() -> Callable[[], LandmarkDetector] | None:
    """Dense landmarks for a detector that has none of its own."""
    if mediapipe.available():
        return functools.cache(mediapipe.MediaPipeDetector)
    return functools.cache(dlib.DlibDetector) if dlib.available() else None


def _parser(folders: Folders) -> Callable[[], FaceParser] | None:
    if not parsing.available(folders.parsing):
        return None
    return functools.cache(lambda: parsing.Parser(folders.parsing))
