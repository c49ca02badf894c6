"""``python run.py diir``: small faces repaired, without ComfyUI and without a download.

``demo`` shows it, ``prove`` measures it on held-out people, ``benchmark`` tells what it costs.
"""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from lab.evaluation import diir as measure
from lab.evaluation.diir import Draft, Lab
from lab.evaluation.diir_tables import bars, directions, report
from lab.evaluation.directions import save
from lab.evaluation.store import PictureFile
from lab.verbs import elsewhere, run_verb
from likeness.core.diir.request import DiirRequest
from likeness.drawing.sheets import Tile, sheet, to_image
from likeness.faces.interface import largest_face
from likeness.hosts.diffusers.diir import Repair, repair_faces
from likeness.hosts.diffusers.miniature import miniature
from likeness.hosts.diffusers.pipeline import Pipeline

OUTPUT = Path(__file__).parents[1] / "output" / "diir"
PEOPLE, STYLED_PEOPLE, GROUPS, TILTED = 24, 12, 8, 4
SHOWN = 8  # rows of a sheet
COLUMNS = ("reference", "draft", "crop", "fast, strength .75", "default", "paper mode", "no identity",
           "picture, default")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_verb("diir", "DIIR: small broken faces repaired, nothing else touched.", VERBS, argv)


# --- the proof --------------------------------------------------------------------------------------------------------


def prove(argv: Sequence[str]) -> int:
    """Measure every effect on held-out people and print the tables; goes on where it was interrupted."""
    parser = argparse.ArgumentParser(prog="run.py diir prove", description=inspect.getdoc(prove))
    parser.add_argument("--people", type=int, default=PEOPLE, help=f"held-out people of each kind of draft ({PEOPLE})")
    parser.add_argument("--out", type=Path, default=OUTPUT, help="folder for records, pictures and tables")
    args = parser.parse_args(argv)
    if args.people < 1:
        parser.error("--people must be at least 1")
    store = Store(args.out)
    lab = Lab(miniature())
    work = list(sections(lab, store, args.people))
    for section, case, make in tqdm(work, desc="cases", unit="case"):
        for variant, compute in make():
            store.record(f"{section}/{case}/{variant}", compute)
    write(store)
    return 0


class Store(PictureFile):
    """What was measured so far, with the pictures beside it."""

    def draft(self, lab: Lab, case: str, number: int, kind: str, style: str = "flat") -> Draft | None:
        """A draft, made once; None where no face is found in it."""
        key = f"drafts/{case}/draft"
        if key in self.records and self.records[key]["seed"] is None:
            return None
        path = self.path(case, "draft")
        if key in self.records and path.exists():
            person, picture = measure.full_body(number, lab.pipeline.side, style)
            image = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1).float() / 255
            face = largest_face(lab.models.detector.detect(image[None])[0])
            return Draft(image, face, person, picture, self.records[key]["seed"])
        made = measure.make_draft(lab, number, kind, style)
        if made is not None:
            self.keep(case)("draft", made.image)
        self.record(key, lambda: {"seed": made and made.seed})
        return made


Cases = Iterator[tuple[str, str, Callable[[], Iterator[tuple[str, measure.Work]]]]]


def sections(lab: Lab, store: Store, people: int) -> Cases:
    """Section, case, and what yields its variants."""
    for number in range(people):
        for kind in measure.DRAFTS:
            yield kind, f"{number}", lambda n=number, k=kind: _people(lab, store, n, k)
    for number in range(min(STYLED_PEOPLE, people)):
        style = measure.STYLE_NAMES[number % len(measure.STYLE_NAMES)]
        yield "style", f"{number} {style}", lambda n=number, s=style: _style(lab, store, n, s)
    for number in range(min(GROUPS, people)):
        yield "group", f"{number}", lambda n=number: measure.group_section(lab, n, store.keep(f"group {n}"))
    for number in range(min(TILTED, people)):
        for degrees in measure.ANGLES:
            keep = store.keep(f"tilt {number}")
            yield "tilt", f"{number} {degrees}", lambda n=number, d=degrees, k=keep: measure.tilt_section(lab, n, d, k)


def _people(lab: Lab, store: Store, number: int, kind: str) -> Iterator[tuple[str, measure.Work]]:
    case = f"{kind} {number}"
    draft = store.draft(lab, case, number, kind)
    return measure.people_section(lab, number, kind, draft, store.keep(case)) if draft else iter(())


def _style(lab: Lab, store: Store, number: int, style: str) -> Iterator[tuple[str, measure.Work]]:
    case = f"style {number}"
    draft = store.draft(lab, case, 1000 + number, "MagicFace", style)
    return measure.style_section(lab, draft, style, store.keep(case)) if draft else iter(())


def write(store: Store) -> None:
    """Tables, bars and sheets."""
    text = report(store.records)
    (store.folder / "tables.md").write_text(text + "\n", encoding="utf-8")
    kept = {"bars": [asdict(bar) | {"held": bar.held} for bar in bars(store.records)], "records": store.records}
    (store.folder / "results.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    save(store.folder, directions(store.records))
    for kind in measure.DRAFTS:
        rows = []
        for number in range(SHOWN):
            tiles = [_tile(store, f"{kind} {number}", name, f"{kind}/{number}") for name in COLUMNS]
            rows += [("", [t for t in tiles if t])] if tiles[0] else []
        sheet(f"DIIR on {kind} drafts", rows).save(store.folder / f"{kind.lower()}.png")
    print(f"\n{text}\n\nwritten to {store.folder}: tables.md, results.json, " + ", ".join(
        f"{kind.lower()}.png" for kind in measure.DRAFTS))


def _tile(store: Store, case: str, name: str, key: str) -> Tile | None:
    path = store.path(case, name)
    if not path.exists():
        return None
    record = store.records.get(f"{key}/{'before' if name == 'draft' else name}", {})
    score = f" {record['similarity']:.2f}" if "similarity" in record else ""
    return Tile(Image.open(path).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC), name + score)


# --- the demonstration ------------------------------------------------------------------------------------------------


def show(pipeline: Pipeline, out: Path, people: int = 3, steps: int = 30) -> str:
    """Drafts repaired with their person, before and after in ``diir.png``: returns the rows of the table.

    Args:
        pipeline: the miniature.
        out: folder for the picture.
        people: held-out people shown; those in whose draft a face is found.
        steps: of drafts and repairs.
    """
    lab, rows = Lab(pipeline), []
    lines = ["| small face of | similarity before | after | outside the mask |", "|---|---|---|---|"]
    drafts = (measure.make_draft(lab, number, "MagicFace", steps=steps) for number in range(people))
    for draft in filter(None, drafts):
        repair = Repair(0, draft.face, lab.target(draft.person))
        made = repair_faces(pipeline, [draft.image], [repair], DiirRequest(steps=steps))
        told = measure.outcome(lab, draft, made.pictures[0], made.changed[0])
        before = lab.similarity(draft.image, draft.face, draft.person)
        kept = "bit for bit the same" if told["identical outside"] else "CHANGED"
        lines.append(f"| {draft.picture.caption} | {before:.2f} | {told['similarity']:.2f} | {kept} |")
        pictures = (("reference", draft.person.image), (f"draft {before:.2f}", draft.image),
                    ("its face", made.before[0]), ("repaired", made.after[0]),
                    (f"picture {told['similarity']:.2f}", made.pictures[0]))
        rows.append((draft.picture.caption, [Tile(to_image(image), text) for text, image in pictures]))
    sheet("DIIR: small faces repaired", rows or [("no face was found", [])]).save(out / "diir.png")
    return "\n".join(lines)


def demo(argv: Sequence[str]) -> int:
    """Small faces of drawn people before and after the repair."""
    parser = argparse.ArgumentParser(prog="run.py diir demo", description=inspect.getdoc(demo))
    parser.add_argument("--people", type=int, default=3, help="held-out people (3)")
    parser.add_argument("--steps", type=int, default=30, help="of drafts and repairs (30)")
    parser.add_argument("--out", type=Path, default=OUTPUT, help="folder for the results")
    args = parser.parse_args(argv)
    if args.people < 1 or args.steps < 1:
        parser.error("--people and --steps must be at least 1")
    args.out.mkdir(parents=True, exist_ok=True)
    print(f"\n{show(miniature(), args.out, args.people, args.steps)}\n\nwritten to {args.out}: diir.png")
    return 0


VERBS = {
    "demo": (demo, "small faces before and after the repair"),
    "prove": (prove, "measure every effect on held-out people and print the tables; resumable"),
    "benchmark": (elsewhere("lab.benchmarks.diir"), "rows, time and memory of a face"),
}

if __name__ == "__main__":
    raise SystemExit(main())
