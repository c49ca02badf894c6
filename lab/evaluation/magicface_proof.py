"""MagicFace proved on the miniature: every variant with the same seeds, on held-out people and prompts."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lab.evaluation.directions import Direction, direction, save, unshown
from lab.evaluation.magicface import FULL, GROUP_VARIANTS, PLACED, VARIANTS, Outcome, default_judge, run_case
from lab.evaluation.metrics import summarise
from lab.evaluation.store import RecordFile, Records, paired, values, whole_rows_of
from lab.people import Case, pair_cases, single_cases
from likeness.hosts.diffusers.miniature import miniature

OUTPUT = Path(__file__).parents[2] / "output" / "prove" / "magicface"
PEOPLE, PAIRS = 24, 16
ONE, TWO = "one concept", "two concepts"


def main(argv: list[str]) -> int:
    """``run.py magicface prove``."""
    parser = argparse.ArgumentParser(prog="run.py magicface prove", description=__doc__)
    parser.add_argument("--people", type=int, default=PEOPLE, help=f"held-out people ({PEOPLE})")
    parser.add_argument("--pairs", type=int, default=PAIRS, help=f"pairs of them ({PAIRS})")
    parser.add_argument("--out", type=Path, default=OUTPUT, help="folder of records and tables; goes on in it")
    args = parser.parse_args(argv)
    if args.people < 2 or args.pairs < 2:
        parser.error("--people and --pairs must be at least 2: the intervals are over people")
    prove(args.out, args.people, args.pairs)
    return 0


def prove(folder: Path, people: int = PEOPLE, pairs: int = PAIRS) -> None:
    """Measure what is not measured yet, and write the tables."""
    store, pipeline, judge = RecordFile(folder), miniature(), default_judge()
    work = list(jobs(people, pairs, pipeline.side))
    for key, case, settings in tqdm(work, desc="pictures", unit="picture"):
        store.record(key, lambda c=case, s=settings: told(run_case(pipeline, c, s, [1], 30, judge)))
    text = report(store.records)
    (folder / "tables.md").write_text(text + "\n", encoding="utf-8")
    save(folder, directions(store.records))
    print(text)


def jobs(people: int, pairs: int, side: int) -> Iterator[tuple[str, Case, Mapping | None]]:
    """Key of the record, case and settings, person by person, so that an early end leaves whole rows."""
    groups = ((ONE, single_cases(people, side), VARIANTS), (TWO, pair_cases(pairs, side), GROUP_VARIANTS))
    for section, cases, variants in groups:
        for i, case in enumerate(cases):
            for name, settings in variants.items():
                yield f"{section}/{i}/{name}", case, settings


def told(outcome: Outcome) -> dict:
    """An outcome as a record."""
    return {
        "similarity": outcome.identity[0], "found": outcome.found, "prompt": outcome.prompt[0],
        "colour": outcome.colour[0] if outcome.colour else None,
    }  # fmt: skip


def report(records: Records) -> str:
    """The tables of one concept and of two."""
    return "\n\n".join(table(records, *which) for which in ((ONE, VARIANTS), (TWO, GROUP_VARIANTS)))


def table(records: Records, section: str, variants: Mapping) -> str:
    """Means over cases with 95% intervals."""
    cases = whole_rows_of(records, section)
    lines = [f"### {section.capitalize()}, {len(cases)} cases", "",
             "| variant | identity similarity | faces found | skin and hair colour distance | prompt accuracy |",
             "|---|---|---|---|---|"]  # fmt: skip
    for name in variants:
        similarity, found, colour, prompt = (
            values(cases, name, key) for key in ("similarity", "found", "colour", "prompt"))  # fmt: skip
        lines.append(f"| {name} | {summarise(similarity)} | {np.mean(found):.0%} "
                     f"| {summarise(colour) if colour else '-'} | {summarise(prompt)} |")  # fmt: skip
    return "\n".join(lines)


def directions(records: Records) -> list[Direction]:
    """What MagicFace's paper says, and what is seen here."""
    one, two = whole_rows_of(records, ONE), whole_rows_of(records, TWO)
    return [
        direction("Table 1", "the face of the reference, one concept", "similarity, MagicFace less vanilla",
                  paired(one, FULL, "vanilla")),
        direction("Table 1", "the prompt is kept, one concept (no worse than by 0.05)",
                  "prompt accuracy, MagicFace less vanilla", paired(one, FULL, "vanilla", "prompt"), -0.05),
        direction("Table 1", "the faces of the references, two concepts", "similarity, MagicFace less vanilla",
                  paired(two, FULL, "vanilla")),
        direction("Table 1", "the prompt is kept, two concepts (no worse than by 0.05)",
                  "prompt accuracy, MagicFace less vanilla", paired(two, FULL, "vanilla", "prompt"), -0.05),
        unshown("Table 1", "above FastComposer, PhotoMaker, InstantID, FlashFace, Perfusion, Custom Diffusion, "
                "FreeCustom and ClassDiffusion", "they are trained for Stable Diffusion"),
        direction("Fig. 6", "weighted masks bring the concept nearer", "similarity, weight 1 less no weight",
                  paired(one, FULL, "references, no weight")),
        direction("Fig. 6", "too high a weight costs coherence", "prompt accuracy, weight 1 less weight 3",
                  paired(one, FULL, "MagicFace (alpha 0.4), w 3", "prompt")),
        direction("Fig. 8", "without RSA (alpha 0) the concept is missed", "similarity, alpha 0.4 less alpha 0",
                  paired(one, FULL, "RBA only (alpha 0)")),
        direction("Fig. 8", "without RBA (alpha 1) identity is missed", "similarity, alpha 0.4 less alpha 1",
                  paired(one, FULL, "RSA only (alpha 1)")),
        direction("beyond the paper", "regions that the user gives keep two people apart",
                  "similarity, regions given less found", paired(two, PLACED, FULL)),
    ]  # fmt: skip
