"""Pictures of the drawn world for trials: files that say which picture of it they are, so that its truth is known."""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from .reading import WORLD
from .truth import drawn

#: Files of one folder.
FOLDER_SIZE = 1000


def drawn_png(seed: int, side: int) -> bytes:
    """Picture ``seed`` of the world as a PNG."""
    from likeness.miniature.world.render import render  # needs skia

    info = PngInfo()
    info.add_text(WORLD, json.dumps({"seed": seed, "side": side}))
    buffer = io.BytesIO()
    Image.fromarray(render(drawn(seed), side)).save(buffer, "PNG", pnginfo=info, compress_level=1)
    return buffer.getvalue()


def drawn_path(folder: Path, seed: int) -> Path:
    """Where picture ``seed`` of a folder is."""
    return folder / f"{seed // FOLDER_SIZE:04d}" / f"{seed:08d}.png"


def put(folder: Path, seed: int, side: int) -> None:
    """Picture ``seed`` of the world into its folder of a thousand; one that is there stays."""
    path = drawn_path(folder, seed)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(drawn_png(seed, side))


def draw(folder: Path, count: int, side: int = 256, progress: bool = False) -> None:
    """Pictures 0 to ``count`` of the world; those that are there stay."""
    for seed in tqdm(range(count), unit="picture", disable=not progress):
        put(folder, seed, side)


def main(argv: Sequence[str]) -> int:
    """``python run.py idzoom draw``."""
    parser = argparse.ArgumentParser(prog="run.py idzoom draw", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder that receives the pictures")
    parser.add_argument("--count", type=int, default=200, help="how many (default: %(default)s)")
    parser.add_argument("--side", type=int, default=256, help="pixels of a side (default: %(default)s)")
    options = parser.parse_args(argv)
    draw(options.out, options.count, options.side, progress=True)
    return 0
