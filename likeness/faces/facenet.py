"""Face models for photographs, from the optional package facenet-pytorch. Nothing is ever downloaded from here.

MTCNN finds faces (its weights come inside the package), Inception-ResNet-v1 maps them to identity vectors (its weights
are a file of the user's). Version 2.5.3 is asked for, since 2.6.0 would put an old torch in place of ComfyUI's.
"""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import bad_input
from .interface import Face

PACKAGE = "facenet_pytorch"
REQUIREMENT = "facenet-pytorch==2.5.3"
WEIGHTS = "20180402-114759-vggface2.pt"
RELEASE = "https://github.com/timesler/facenet-pytorch/releases/tag/v2.2.9"


def installed() -> bool:
    """Whether the package is there; it is not imported."""
    return importlib.util.find_spec(PACKAGE) is not None


def _package() -> ModuleType:
    try:
        import facenet_pytorch
    except ImportError as cause:
        raise bad_input(
            "Face models: facenet",
            f"the Python package '{PACKAGE}' cannot be imported ({cause})",
            "it installed beside torchvision",
            f"Install the pack's extra 'faces' into ComfyUI's Python: pip install --no-deps {REQUIREMENT}",
        ) from cause
    return facenet_pytorch


class FacenetDetector:
    """MTCNN on the CPU.

    Args:
        threshold: least confidence of a face, in [0, 1].
        smallest: least side of a face in pixels.
    """

    name = "facenet"
    working_side = 1024
    tilt_range = 30.0
    certain = 0.97
    turns = 4

    def __init__(self, threshold: float = 0.9, smallest: int = 20) -> None:
        self.threshold, self.smallest = threshold, smallest
        self.model = _package().MTCNN(keep_all=True, min_face_size=smallest, device=torch.device("cpu")).eval()

    @torch.no_grad()
    def detect(self, images: Tensor) -> list[list[Face]]:
        """``B 3 H W`` in [0, 1] -> per picture its faces, most confident first."""
        pixels = (images.detach().float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu()  # B H W 3
        return [self._faces(picture.numpy()) for picture in pixels]

    def _faces(self, picture: np.ndarray) -> list[Face]:
        """One picture ``H W 3`` of bytes; the package cannot stack pictures that hold different numbers of faces."""
        if min(picture.shape[:2]) < self.smallest:
            return []
        try:
            boxes, scores, points = self.model.detect(picture, landmarks=True)
        except RuntimeError as error:
            if "non-empty list" in str(error):  # no candidate was left for the second or third network
                return []
            raise
        if boxes is None:
            return []
        rows = zip(np.asarray(boxes, np.float32), scores, np.asarray(points, np.float32), strict=True)
        faces = [Face(tuple(b.tolist()), float(s), torch.from_numpy(p)) for b, s, p in rows if s >= self.threshold]
        return sorted(faces, key=lambda face: face.score, reverse=True)


class FacenetEmbedder:
    """Inception-ResNet-v1 trained on VGGFace2; gradients flow to the pixels.

    Args:
        weights: the file :data:`WEIGHTS`.

    Raises:
        LikenessError: no package, no file, or a file of another network.
    """

    name = "facenet"
    size = 160
    width = 512
    margin = 0.08  # the network was trained on boxes with a narrow border
    aligned = False
    differentiable = True
    same_person = 0.5
    euclidean = False

    def __init__(self, weights: Path) -> None:
        package = _package()
        state = _read_weights(weights)
        self.model = package.InceptionResnetV1(pretrained=None, classify=False)
        kept = {name: value for name, value in state.items() if not name.startswith("logits.")}
        try:
            self.model.load_state_dict(kept)
        except RuntimeError as cause:
            raise _wrong_file(weights, "the weights of another network") from cause
        self.model.eval().requires_grad_(False)

    def embed(self, crops: Tensor) -> Tensor:
        """``B 3 160 160`` in [0, 1] -> ``B 512`` of unit length, in fp32 whatever surrounds the call."""
        with torch.autocast(crops.device.type, enabled=False):
            return F.normalize(self.model((crops.float() * 255 - 127.5) / 128), dim=1)


def _wrong_file(path: Path, came: str) -> Exception:
    return bad_input(
        "Face models: facenet weights", f"models/{path.parent.name}/{path.name} ({came})", WEIGHTS,
        f"Get that file from {RELEASE} once more.",
    )  # fmt: skip


def _read_weights(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise bad_input(
            "Face models: facenet weights",
            "no file",
            f"models/{path.parent.name}/{path.name}",
            f"Get {WEIGHTS} from {RELEASE} and put it there. Masks alone do not need it.",
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as cause:
        raise _wrong_file(path, "it cannot be read as weights") from cause
    if not isinstance(state, dict):
        raise _wrong_file(path, "no table of weights")
    return state
