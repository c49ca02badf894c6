"""``python run.py evaluation``: the papers' metrics over folders of pictures."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from lab.evaluation import protocol as protocols
from lab.evaluation.cache import Cache
from lab.evaluation.face_sim import MINIATURE
from lab.evaluation.judge import Referees, evaluate
from lab.evaluation.networks import FILES
from lab.evaluation.protocol import METRICS, SHIPPED, Protocol
from lab.evaluation.tables import markdown, write
from likeness.core.errors import LikenessError, bad_input
from likeness.faces.providers import PROVIDERS
from likeness.miniature.models import STATE

log = logging.getLogger("likeness")
OUTPUT = Path(__file__).parents[2] / "output" / "evaluation"
ABOUT = """The papers' metrics over folders of pictures.

A folder of references holds one folder a person; a method's folder holds one folder a person (anna) or group
(anna+ben, left to right). A picture's name begins with the number of its prompt's line (3_1.png), or its prompt stands
beside it (any.txt). PROTOCOL is a YAML file or one of: {shipped}.

Weights, below --weights; what is absent is named and the rest is done:
{files}
  insightface/models/PACK/*.onnx, opencv/*.onnx, facenet/20180402-114759-vggface2.pt (faces, by --faces)
"""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    shipped = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.yaml")))
    about = ABOUT.format(shipped=shipped, files="\n".join(f"  {text}" for text in FILES.values()))
    out = argparse.ArgumentParser(prog="run.py evaluation", description=about,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("protocol", nargs="?", type=Path, help="a protocol; what follows here goes before what it says")
    out.add_argument("--references", type=Path, help="folder with one folder of pictures a person")
    out.add_argument("--pictures", nargs="+", metavar="NAME=FOLDER", help="a method's name and its pictures")
    out.add_argument("--prompts", type=Path, help="text file, one prompt a line")
    out.add_argument("--regions", type=Path, help="YAML file: group -> boxes of its people in shares of the picture")
    out.add_argument("--real", type=Path, help="real pictures for the FID (default: the references)")
    out.add_argument("--metrics", nargs="+", choices=tuple(METRICS), help="columns")
    out.add_argument("--baseline", help="the method that the others are compared with (default: the first)")
    out.add_argument("--faces", choices=(*PROVIDERS, MINIATURE),
                     help="who finds and embeds faces; miniature: its referees in every place, for drawn pictures")
    out.add_argument("--pack", help="insightface's pack, e.g. antelopev2")
    out.add_argument("--weights", type=Path, default=Path("models/evaluation"), help="folder of weights (%(default)s)")
    out.add_argument("--cache", type=Path, default=STATE / "evaluation", help="folder of features, by file digest")
    out.add_argument("--device", default="cpu", help="of CLIP, DINO and Inception, e.g. cuda (cpu)")
    out.add_argument("--batch", type=int, default=16, help="pictures at once (16)")
    out.add_argument("--out", type=Path, default=OUTPUT, help="folder for table.md, table.json, bars.png")
    out.add_argument("--no-bars", action="store_true", help="no bars.png (it needs matplotlib)")
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = parser().parse_args(list(sys.argv[1:] if argv is None else argv))
    try:
        run(options)
    except LikenessError as error:
        log.error("run.py evaluation: %s", error)
        return 2
    return 0


def run(options: argparse.Namespace) -> None:
    """Measure, print and write."""
    protocol = asked(options)
    with tqdm(desc="pictures looked at", unit="") as bar:
        cache = Cache(options.cache, options.batch, bar.update)
        referees = Referees(options.weights, protocol.provider, cache, protocol.pack, options.device)
        result = evaluate(protocol, referees)
    bars = not options.no_bars and importlib.util.find_spec("matplotlib") is not None
    written = write(result, options.out, bars)
    print(markdown(result))
    log.info("written: %s", ", ".join(map(str, written)))
    if not bars and not options.no_bars:
        log.info("no bars.png: pip install matplotlib (the extra 'evaluation')")


def asked(options: argparse.Namespace) -> Protocol:
    """The protocol with the command line's changes."""
    base = protocols.load_protocol(options.protocol) if options.protocol else Protocol()
    methods = dict(map(named_folder, options.pictures)) if options.pictures else None
    return protocols.with_changes(
        base, references=options.references, methods=methods, prompts=options.prompts, regions=options.regions,
        real=options.real, metrics=tuple(options.metrics) if options.metrics else None, baseline=options.baseline,
        provider=options.faces, pack=options.pack,
    )


def named_folder(text: str) -> tuple[str, Path]:
    """``NAME=FOLDER``; a folder alone is called by its name."""
    name, sign, folder = text.rpartition("=")
    if sign and not (name and folder):
        raise bad_input("evaluation: --pictures", text, "NAME=FOLDER", "Write for example: ours=out/ours")
    return (name or Path(folder).name), Path(folder)
