"""The parts of a head by facexlib's BiSeNet or ParseNet, from weights that the user has. Nothing is downloaded."""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..core.errors import bad_input
from .interface import PARTS
from .optional import first_file, installed, missing_file, package

PACKAGE = "facexlib"
COMMAND = "pip install --no-deps facexlib==0.3.0"
RELEASE = "https://github.com/xinntao/facexlib/releases/tag/v0.2.0"
#: ParseNet's own order of the parts; BiSeNet's is that of :data:`.interface.PARTS`.
PARSENET_PARTS = (
    "background", "skin", "nose", "glasses", "left eye", "right eye", "left brow", "right brow", "left ear",
    "right ear", "mouth", "upper lip", "lower lip", "hair", "hat", "earring", "necklace", "neck", "cloth",
)  # fmt: skip


@dataclass(frozen=True)
class Network:
    """A parsing network: its file, its class in facexlib, and what it expects and gives."""

    file: str
    module: str
    make: str
    arguments: dict
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    parts: tuple[str, ...]


NETWORKS = (
    Network("parsing_bisenet.pth", "facexlib.parsing.bisenet", "BiSeNet", {"num_class": 19},
            (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), PARTS),
    Network("parsing_parsenet.pth", "facexlib.parsing.parsenet", "ParseNet",
            {"in_size": 512, "out_size": 512, "parsing_ch": 19}, (0.5,) * 3, (0.5,) * 3, PARSENET_PARTS),
)  # fmt: skip


def package_folder() -> list[Path]:
    """Where facexlib itself keeps weights, if it is installed; it is not imported."""
    spec = importlib.util.find_spec(PACKAGE) if installed(PACKAGE) else None
    return [Path(folder) / "weights" for folder in (spec.submodule_search_locations or [])] if spec else []


def find(folders: Sequence[Path]) -> tuple[Network, Path] | None:
    """The first network whose weights lie in one of the folders or in the package's own; None where none do."""
    places = [*folders, *package_folder()]
    found = ((network, first_file(places, network.file)) for network in NETWORKS)
    return next(((network, path) for network, path in found if path is not None), None)


def available(folders: Sequence[Path]) -> bool:
    """Whether the package and one network's weights are there."""
    return installed(PACKAGE, "torchvision") and find(folders) is not None


class Parser:
    """A parsing network on the CPU.

    Args:
        folders: where its weights may lie, besides the package's own folder.

    Raises:
        LikenessError: no package, no weights, or those of another network.
    """

    size = 512

    def __init__(self, folders: Sequence[Path]) -> None:
        found = find(folders)
        if found is None:
            raise missing_file("parsing", f"models/facexlib/{NETWORKS[0].file}", RELEASE)
        self.network, path = found
        self.name = self.network.make.lower()
        self.model = getattr(package("parsing", self.network.module, COMMAND), self.network.make)(
            **self.network.arguments
        )
        try:
            self.model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError) as cause:
            raise bad_input(
                "Face models: parsing", f"a file {path.name} that is broken or another network's", "its weights",
                f"Get that file from {RELEASE} once more.",
            ) from cause  # fmt: skip
        self.model.eval().requires_grad_(False)
        self.order = torch.tensor([PARTS.index(part) for part in self.network.parts])

    @torch.no_grad()
    def parse(self, crops: Tensor) -> Tensor:
        """``B 3 512 512`` in [0, 1] -> labels ``B 512 512``, indices into :data:`.interface.PARTS`."""
        mean, deviation = (
            torch.tensor(v).view(1, 3, 1, 1) for v in (self.network.mean, self.network.deviation)
        )
        labels = self.model((crops.float().cpu() - mean) / deviation)[0].argmax(dim=1)  # B 512 512
        return self.order[labels].to(crops.device)
