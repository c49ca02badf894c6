"""``python run.py idzoom``: the data engine's command line."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from likeness.core.errors import bad_input

from ..verbs import elsewhere, run_verb
from .settings import (
    CAPTION,
    CAPTION_PROVIDERS,
    FACE_PROVIDERS,
    MASK_PROVIDERS,
    POSE,
    POSE_PROVIDERS,
    Settings,
)

EXTRA = ("ray", "pyarrow", "webdataset", "imagehash")
INSTALL = 'pip install "ray[data]" webdataset imagehash'
EFFORTS = ("quick", "auto", "thorough")

EPILOG = """
INPUT is a folder with all its folders, a picture, or a WebDataset shard; patterns such as shard-{000..012}.tar and
*.tar are expanded. The same command goes on where a run was ended, by whatever, and adds what is new. It runs on this
machine with nothing to start; with RAY_ADDRESS set, on that cluster, whose machines must see the same files.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """``python run.py idzoom VERB``."""
    verbs = {
        "make": (make, "pictures in, WebDataset shards of six modalities out"),
        "draw": (elsewhere("lab.idzoom.draw"), "pictures of the drawn world, to try it with"),
        "prove": (prove, "what it takes and survives, measured on drawn pictures and hostile files"),
    }
    return run_verb("idzoom", "IDZoom, MagicID's data engine.", verbs, argv)


def make(argv: Sequence[str]) -> int:
    """``python run.py idzoom make``."""
    options = parser().parse_args(argv)
    check_extra()
    settings = settings_of(options)
    from . import make as work  # after the check: it needs what the extra brings

    (work.preview if options.dry_run else work.make)(options, settings)
    return 0


def prove(argv: Sequence[str]) -> int:
    """``python run.py idzoom prove``."""
    check_extra()
    return elsewhere("lab.idzoom.prove")(argv)


def check_extra() -> None:
    """Raise unless what the extra ``idzoom`` names is installed."""
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise bad_input("IDZoom", f"no {', '.join(missing)}", "the packages of the extra idzoom", f"Run: {INSTALL}")


def settings_of(options: argparse.Namespace) -> Settings:
    """The options that decide what becomes of a picture."""
    given = {field.name: getattr(options, field.name) for field in fields(Settings)}
    for folder in ("models", "captioner"):
        if given[folder] and not Path(given[folder]).is_dir():
            raise bad_input(f"IDZoom: --{folder}", f"{given[folder]} (no folder)", "a folder", "Check the path.")
        given[folder] = str(Path(given[folder]).resolve()) if given[folder] else ""
    return Settings(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})


def parser() -> argparse.ArgumentParser:
    """The options of ``make``; the defaults are those of :class:`Settings`."""
    made = argparse.ArgumentParser(
        prog="run.py idzoom make", description="Pictures in, WebDataset shards of six modalities out.", epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    made.add_argument("inputs", nargs="*", metavar="INPUT")
    made.add_argument("--list", dest="lists", action="append", default=[], metavar="FILE",
                      help="pictures by path, one a line (or ended by zero bytes, as by find -print0)")  # fmt: skip
    made.add_argument("--out", type=Path, required=True, help="folder of the shards, the manifest and the journal")
    made.add_argument("--dry-run", action="store_true", help="list, check, say what would happen; write nothing")
    _add_filters(made.add_argument_group("filters"))
    _add_providers(made.add_argument_group("annotators"))
    running = made.add_argument_group("running")
    running.add_argument("--workers", type=int, default=1, help="processes that look (default: %(default)s)")
    running.add_argument("--gpus", type=float, default=0.0, help="GPUs of each; may be a fraction (default: none)")
    running.add_argument("--shard-size", type=int, default=1000, help="samples of a shard (default: %(default)s)")
    running.add_argument("--store", type=int, default=512, help="MiB of Ray's object store (default: %(default)s)")
    return made


def _add_filters(group: argparse._ArgumentGroup) -> None:
    numbers = {
        "least-side": "pixels of the shorter side, at least", "longest-side": "larger pictures are brought down to it",
        "most-pixels": "pictures with more are not decoded", "most-bytes": "larger files are not read",
        "distance": "bits of 256 in which the hashes of duplicates differ at most; -1: keep duplicates",
        "most-faces": "faces in a picture, at most", "least-face": "pixels of a face's shorter side, at least",
    }  # fmt: skip
    for name, text in numbers.items():
        default = getattr(Settings(), name.replace("-", "_"))
        group.add_argument(f"--{name}", type=int, default=default, help=f"{text} (default: %(default)s)")
    group.add_argument("--sharpness", type=float, default=Settings.sharpness,
                       help="variance of the Laplacian, at least (default: %(default)s)")  # fmt: skip


def _add_providers(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--faces", choices=FACE_PROVIDERS, default=Settings.faces, help="default: %(default)s")
    group.add_argument("--effort", choices=EFFORTS, default=Settings.effort,
                       help="how hard small and tilted faces are looked for (default: %(default)s)")  # fmt: skip
    for name, choices in (("pose", POSE_PROVIDERS), ("caption", CAPTION_PROVIDERS)):
        default = list(getattr(Settings, name))
        group.add_argument(f"--{name}", nargs="+", choices=choices, default=default,
                           help=f"who is asked, in this order (default: {' '.join(default)})")  # fmt: skip
    group.add_argument("--mask", choices=MASK_PROVIDERS, default=Settings.mask, help="default: %(default)s")
    group.add_argument("--models", default="", help="folder of face models, laid out as ComfyUI's models")
    group.add_argument("--captioner", default="", help="folder of an image-to-text model for transformers")
    group.add_argument("--optional", nargs="+", choices=(CAPTION, POSE), default=[],
                       help="what a sample may lack (default: nothing)")  # fmt: skip
