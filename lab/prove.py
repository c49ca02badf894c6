"""``python run.py prove``: what the miniature can show of the three papers, and ``docs/results.md`` of it.

Each system's proof runs in a folder of its own and goes on where it was ended; then the page is written: the parts of
the systems that were measured here, and those of the others as they stood.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.evaluation.directions import load, markdown

log = logging.getLogger("likeness")

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "output" / "prove"
PAGE = ROOT / "docs" / "results.md"

HEAD = """# What the miniature shows

Written by `python run.py prove`. Everything here is measured on the miniature: a small Stable Diffusion of a drawn
world that the pack carries, with people who were never drawn for its training, judged by networks that see nothing but
the picture. Means over people with 95% bootstrap intervals; *similarity* is the referee's cosine between faces (1: the
same face; strangers: about 0). The drawn world cannot repeat a paper's numbers. It can show which way they move, and
the tables say it wherever they do not move as a paper says. Nothing here is a measurement of Stable Diffusion.
"""


@dataclass(frozen=True)
class System:
    """One system's proof.

    Attributes:
        title: heading of its part.
        module: holds the command. arguments: of it, before ``--out``.
        picture: file below ``docs`` that shows it; empty: none.
    """

    title: str
    module: str
    arguments: tuple[str, ...] = ()
    picture: str = ""

    @property
    def main(self) -> Callable[[list[str]], int]:
        """The command."""
        return importlib.import_module(self.module).main


SYSTEMS = {
    "magicface": System("MagicFace", "lab.evaluation.magicface_proof", picture="demo.jpg"),
    "persona": System("PersonaMagic", "lab.evaluation.persona", ("--tables", "1,2,curve"), "persona.jpg"),
    "diir": System("DIIR face repair", "lab.diir", ("prove",), "diir.jpg"),
    "magicid": System("MagicID", "lab.magicid", ("prove",), "magicid.jpg"),
}


def main(argv: Sequence[str]) -> int:
    """The command."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(prog="run.py prove", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=tuple(SYSTEMS), help="of these only; other parts stay as they are")
    parser.add_argument("--write-only", action="store_true", help="measure nothing, write the page of what is there")
    parser.add_argument("--out", type=Path, default=OUTPUT, help="folder of all results (output/prove)")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page (docs/results.md)")
    args = parser.parse_args(list(argv))
    for name in () if args.write_only else args.only or SYSTEMS:
        log.info("== %s", SYSTEMS[name].title)
        status = SYSTEMS[name].main([*SYSTEMS[name].arguments, "--out", str(args.out / name)])
        if status:
            return status
    before = args.page.read_text("utf-8") if args.page.is_file() else ""
    args.page.write_text(page(args.out, args.page.parent, before), encoding="utf-8")
    log.info("written: %s", args.page)
    return 0


def page(out: Path, docs: Path, before: str = "") -> str:
    """The page: the proofs that are there, and where one is not, its part of the page ``before``."""
    known, parts, missing = parts_of(before), [], []
    for name, system in SYSTEMS.items():
        if (out / name / "tables.md").is_file():
            parts.append(part(out / name, system, docs))
        elif system.title in known:
            parts.append(known[system.title])
        else:
            missing.append(system.title)
    notes = [f"Not measured: {', '.join(missing)}.\n"] if missing else []
    return "\n".join([HEAD, *notes, *parts])


def parts_of(text: str) -> dict[str, str]:
    """Title -> part of a page, its heading included."""
    found = re.split(r"^(?=## )", text, flags=re.MULTILINE)[1:]
    return {one.splitlines()[0].removeprefix("## "): one.rstrip("\n") + "\n" for one in found}


def part(folder: Path, system: System, docs: Path) -> str:
    """One system: picture, statements of its paper, tables."""
    lines = [f"## {system.title}", ""]
    if system.picture and (docs / system.picture).is_file():
        lines += [f"![{system.title}]({system.picture})", ""]
    statements = load(folder)
    if statements:
        lines += ["### The paper's directions", "", markdown(statements), ""]
    return "\n".join([*lines, (folder / "tables.md").read_text("utf-8").strip(), ""])
