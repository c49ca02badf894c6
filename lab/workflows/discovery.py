"""Finds the ComfyUI installations and the Python that the host tests run on."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Host:
    """A ComfyUI checkout and the interpreter that runs it."""

    path: Path
    python: str

    @property
    def name(self) -> str:
        """The folder's name, for test ids and messages."""
        return self.path.name


def host_paths() -> list[Path]:
    """Folders of ``COMFYUI_PATH`` (several separated as ``PATH`` is), else the one this pack is installed in."""
    named = os.environ.get("COMFYUI_PATH", "")
    if named:
        return [_checked(Path(part)) for part in named.split(os.pathsep) if part]
    around = Path(os.path.abspath(__file__)).parents[2].parent.parent
    return [around] if (around / "comfy").is_dir() and (around / "main.py").is_file() else []


def _checked(path: Path) -> Path:
    if not (path / "main.py").is_file():
        raise FileNotFoundError(f"COMFYUI_PATH: {path} holds no main.py; name the folder of a ComfyUI installation")
    return path.resolve()


@cache
def missing_requirement(python: str) -> str | None:
    """The first thing that keeps ``python`` from running ComfyUI, or None."""
    probe = "import torch, torchvision, aiohttp, transformers, pytest"
    done = subprocess.run([python, "-c", probe], capture_output=True, text=True)
    return None if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


def hosts() -> list[Host]:
    """Every host the tests can run on; empty when there is none or its Python lacks ComfyUI's requirements."""
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    if missing_requirement(python):
        return []
    return [Host(path, python) for path in host_paths()]


def why_none() -> str:
    """Why :func:`hosts` is empty, in a sentence that says how to mend it."""
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    if not host_paths():
        return "no ComfyUI found: set COMFYUI_PATH to one or more ComfyUI folders"
    return f"{python} cannot run ComfyUI ({missing_requirement(python)}): set COMFYUI_PYTHON"
