"""The pictures that the templates load before the user chooses others: put into ComfyUI's input folder."""

from __future__ import annotations

import logging
from pathlib import Path

from ...core.errors import LikenessError
from ...formats.files import write_whole

log = logging.getLogger("likeness")

#: drawn by ``python run.py dev samples``
FOLDER = Path(__file__).parents[3] / "workflows" / "samples"


def put_samples(folder: Path) -> None:
    """Copy the samples that ``folder`` lacks into it; what has their name stays.

    Where that fails, the log says so, and the templates ask for a picture.
    """
    for sample in sorted(FOLDER.glob("*.png")):
        copy = folder / sample.name
        if copy.exists():
            continue
        try:
            write_whole(copy, sample.read_bytes())
        except LikenessError as error:
            log.warning("Likeness: the pictures that its templates load are not in the input folder. %s", error)
            return
