"""Face models of the package insightface, with packs of weights that the user has, in the layout other packs use:
``models/insightface/models/<pack>/*.onnx``. They run on the CPU. Nothing is downloaded from here.

The packs' weights are for non-commercial research only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import LikenessError, bad_input
from .interface import Face
from .optional import bgr_bytes, box_tuple, installed, package, points_tensor

PACKAGE, RUNTIME = "insightface", "onnxruntime"
COMMAND = "pip install insightface onnxruntime (with onnxruntime-gpu already there, leave onnxruntime out)"
RELEASE = "https://github.com/deepinsight/insightface/releases/tag/v0.7"
#: In the order in which they are taken. FaceID adapters need buffalo_l, InstantID and PuLID need antelopev2.
PACKS = ("buffalo_l", "antelopev2", "buffalo_m", "buffalo_s", "buffalo_sc")
#: Sides at which a picture is looked at, one after another, until there is a face: the small ones find close-ups.
SIZES = (640, 320, 192)


def pack_folders(root: Path) -> list[Path]:
    """Folders of packs below ``root`` (``models/insightface``) that hold ONNX files, the preferred ones first."""
    known = [root / "models" / name for name in PACKS]
    others = sorted(p for p in (root / "models").glob("*") if p.is_dir() and p not in known)
    return [folder for folder in (*known, *others) if any(folder.glob("*.onnx"))]


def available(roots: Sequence[Path]) -> bool:
    """Whether the package and a pack are there."""
    return installed(PACKAGE, RUNTIME) and any(pack_folders(root) for root in roots)


def find_pack(roots: Sequence[Path], pack: str = "") -> Path:
    """The folder of a pack, or of the first one that is there.

    Raises:
        LikenessError: there is none, or it lies one folder too deep.
    """
    folders = [folder for root in roots for folder in pack_folders(root) if pack in ("", folder.name)]
    if folders:
        return folders[0]
    wanted = pack or PACKS[0]
    nested = next((p for root in roots for p in (root / "models" / wanted).glob("*/*.onnx")), None)
    came = "no ONNX files" if nested is None else f"ONNX files one folder too deep, in {wanted}/{nested.parent.name}"
    raise bad_input(
        "Face models: insightface", came, f"models/insightface/models/{wanted}/*.onnx",
        f"Unpack {wanted}.zip from {RELEASE} so that its .onnx files lie right there.",
    )  # fmt: skip


class InsightFace:
    """One pack: detector, embedder and 106 landmarks, each of them by the interface.

    Args:
        folder: of the pack.
        threshold: least confidence of a face, in [0, 1].

    Raises:
        LikenessError: no package, or a pack that it cannot read or that has no detector.
    """

    working_side = 640
    smallest = 16
    width = 512
    size = 112
    margin = 0.0
    aligned = True
    differentiable = False
    same_person = 0.3
    euclidean = False

    def __init__(self, folder: Path, threshold: float = 0.5) -> None:
        self.name = f"insightface {folder.name}"
        app = package("insightface", "insightface.app", COMMAND)
        wanted = ["detection", "recognition", "landmark_2d_106"]
        try:
            self.app = app.FaceAnalysis(
                name=folder.name, root=str(folder.parents[1]), allowed_modules=wanted,
                providers=["CPUExecutionProvider"],
            )  # fmt: skip
            self.app.prepare(ctx_id=-1, det_thresh=threshold, det_size=(SIZES[0], SIZES[0]))
        except Exception as cause:  # its errors range from a bare AssertionError to those of the runtime
            raise bad_input(
                "Face models: insightface",
                f"a pack that cannot be loaded, {folder.name} ({cause or 'a network is missing'})",
                "whole ONNX files, a detector among them", f"Unpack {folder.name}.zip from {RELEASE} once more.",
            ) from cause  # fmt: skip
        self.sizes = _sizes(self.app.det_model)

    @torch.no_grad()
    def detect(self, images: Tensor) -> list[list[Face]]:
        """``B 3 H W`` in [0, 1] -> per picture its faces, most confident first."""
        return [self._faces(picture) for picture in bgr_bytes(images)]

    def _faces(self, picture: np.ndarray) -> list[Face]:
        for side in self.sizes:
            boxes, points = self.app.det_model.detect(picture, input_size=side)
            if len(boxes):
                break
        marks: Sequence[Any] = [None] * len(boxes) if points is None else points
        faces = [
            Face(box_tuple(row[:4]), float(row[4]), None if five is None else points_tensor(five))
            for row, five in zip(boxes, marks, strict=True)
        ]
        return sorted(faces, key=lambda face: face.score, reverse=True)

    def embed(self, crops: Tensor) -> Tensor:
        """Aligned crops ``B 3 112 112`` in [0, 1] -> ``B 512`` of unit length."""
        return F.normalize(self.embed_raw(crops), dim=1)

    @torch.no_grad()
    def embed_raw(self, crops: Tensor) -> Tensor:
        """The same, of the length the network gives them: what InstantID, PuLID and some FaceID files were made for.

        Raises:
            LikenessError: the pack has no recogniser.
        """
        model = self._part("recognition", "a recogniser, such as w600k_r50.onnx or glintr100.onnx")
        return torch.from_numpy(np.asarray(model.get_feat(bgr_bytes(crops)), np.float32)).reshape(len(crops), -1)

    @torch.no_grad()
    def landmarks(self, images: Tensor, boxes: Tensor) -> Tensor:
        """The 106 landmarks ``B 106 2`` of one face a picture.

        Raises:
            LikenessError: the pack has none.
        """
        model = self._part("landmark_2d_106", "2d106det.onnx")
        face = package("insightface", "insightface.app.common", COMMAND).Face
        rows = zip(bgr_bytes(images), boxes.float().cpu().numpy(), strict=True)
        return torch.stack([points_tensor(model.get(picture, face(bbox=box))) for picture, box in rows]).to(images)

    def has(self, part: str) -> bool:
        """Whether the pack has a network for ``recognition`` or ``landmark_2d_106``."""
        return part in self.app.models

    def _part(self, part: str, file: str) -> Any:
        if part in self.app.models:
            return self.app.models[part]
        raise LikenessError(f"Face models: the pack {self.name} has no network for {part}; it lacks {file}.")


def _sizes(detector: Any) -> list[tuple[int, int]]:
    """Input sizes ``(width, height)`` to try: those of :data:`SIZES`, or the only one the file allows."""
    height, width = detector.session.get_inputs()[0].shape[2:4]
    if isinstance(height, int) and isinstance(width, int):
        return [(width, height)]
    return [(side, side) for side in SIZES]
