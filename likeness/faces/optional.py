"""Optional packages and weights of the providers: looked for without importing, and missed with one clear message."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from ..core.errors import LikenessError, bad_input


def installed(*packages: str) -> bool:
    """Whether all the packages are there; none is imported."""
    try:
        return all(importlib.util.find_spec(package) is not None for package in packages)
    except (ImportError, ValueError):  # a parent package that is broken, or a module without a spec
        return False


def package(provider: str, name: str, command: str) -> ModuleType:
    """Import an optional package.

    Args:
        command: what the user runs with ComfyUI's Python to have it.

    Raises:
        LikenessError: it cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except Exception as cause:  # a package built for another version raises anything on import
        raise bad_input(
            f"Face models: {provider}",
            f"the Python package '{name.partition('.')[0]}' cannot be imported ({cause})",
            "it installed in ComfyUI's Python",
            f"Run there: {command}",
        ) from cause


def first_file(folders: Iterable[Path], name: str) -> Path | None:
    """The first of the folders' files of that name; None where there is none."""
    return next((path for folder in folders if (path := Path(folder) / name).is_file()), None)


def missing_file(provider: str, path: str, source: str) -> LikenessError:
    """The error for weights that are not there; ``path`` is relative to ComfyUI's folder."""
    return bad_input(f"Face models: {provider}", "no file", path, f"Get it from {source} and put it there.")


def rgb_bytes(images: Tensor) -> list[np.ndarray]:
    """``B 3 H W`` in [0, 1] -> per picture ``H W 3`` of bytes, RGB."""
    pixels = (images.detach().float().clamp(0, 1) * 255).round().byte()
    # copied: sides of one pixel keep odd strides otherwise, which some packages refuse
    return [np.array(picture, order="C", copy=True) for picture in pixels.permute(0, 2, 3, 1).cpu().numpy()]


def bgr_bytes(images: Tensor) -> list[np.ndarray]:
    """The same in the order BGR."""
    return rgb_bytes(images.flip(1))


def box_tuple(values: Iterable[float]) -> tuple[float, float, float, float]:
    """Four numbers of any kind as a box."""
    x0, y0, x1, y1 = (float(value) for value in values)
    return x0, y0, x1, y1


def points_tensor(values: np.ndarray) -> Tensor:
    """Points ``N 2`` of any kind as fp32."""
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
