"""What networks made of pictures, kept by the file's content: a picture is looked at once by each network."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from lab.evaluation.networks import Network, file_digest
from likeness.core.errors import bad_input
from likeness.formats.files import write_whole

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass
class Cache:
    """A folder of small arrays, named by network and file digest.

    Attributes:
        folder: made where it is not there.
        batch: pictures a network sees at once.
        tick: called with the number of pictures that were looked at or found in the folder.
    """

    folder: Path
    batch: int = 16
    tick: Callable[[int], None] = lambda count: None
    digests: dict[Path, str] = field(default_factory=dict)

    def features(
        self, network: Network, files: Sequence[Path], view: str = "", load: Callable[[Path], Image.Image] | None = None
    ) -> Tensor:
        """Features ``N D`` of the files, in their order.

        Args:
            view, load: a name for a part of the pictures and what opens it; the whole picture where it is left out.
        """
        key, load = network.key + view, load or open_picture
        missing = [f for f in dict.fromkeys(files) if not self.path(key, f).is_file()]
        self.tick(len(files) - len(missing))
        for start in range(0, len(missing), self.batch):
            part = missing[start : start + self.batch]
            rows = network.features([load(file) for file in part])
            for file, row in zip(part, rows, strict=True):
                self.write(key, file, {"features": row.numpy()})
            self.tick(len(part))
        return torch.stack([torch.from_numpy(self.read(key, file)["features"]) for file in files])

    def path(self, key: str, file: Path) -> Path:
        """Where the arrays of a file are kept."""
        if file not in self.digests:
            self.digests[file] = file_digest(file)
        digest = self.digests[file]
        return self.folder / key / digest[:2] / f"{digest[2:]}.npz"

    def read(self, key: str, file: Path) -> dict[str, np.ndarray]:
        """The arrays of a file."""
        with np.load(self.path(key, file), allow_pickle=False) as arrays:
            return dict(arrays)

    def write(self, key: str, file: Path, arrays: dict[str, np.ndarray]) -> None:
        """Keep the arrays of a file, whole or not at all."""
        data = io.BytesIO()
        np.savez(data, **arrays)
        write_whole(self.path(key, file), data.getvalue())


def open_picture(file: Path) -> Image.Image:
    """A picture in RGB.

    Raises:
        LikenessError: it does not open as one.
    """
    try:
        with Image.open(file) as picture:
            return picture.convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as cause:
        raise bad_input("evaluation: picture", f"{file}, which does not open ({cause})", "a whole picture file",
                        "Make it again, or take it out of the folder.") from cause


def pictures_in(folder: Path) -> list[Path]:
    """Picture files right in a folder, by name."""
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES) if folder.is_dir() else []
