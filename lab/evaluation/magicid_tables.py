"""MagicID's tables from the records, and the bars."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lab.evaluation import clone_faces, magicid_repair
from lab.evaluation.diir_tables import Bar
from lab.evaluation.magicid import SECTIONS
from lab.evaluation.metrics import Summary, summarise
from lab.evaluation.store import Records, rows_of, whole_rows_of
from lab.magicid_people import SKELETON
from likeness.training.magicid.gauge import TIMESTEPS
from likeness.training.magicid.request import CONTROL, UNET

#: section of the paired gaps: ``gap/held out/<place>``
GAP = "gap"
PLACES = {UNET: "UNet", CONTROL: "ControlNet"}


def single_table(cases: Mapping[str, Records], rivals: int) -> str:
    """Case -> variant -> record, as a table."""
    lines = [f"| identity through | similarity (95% interval) | rank 1 of {rivals} | colour distance "
             "| prompt (95% interval) |", "|---|---|---|---|---|"]  # fmt: skip
    for name in variants_of(cases):
        similar, first, colour, prompt = (over(cases, name, p) for p in ("similarity", "first", "colour", "prompt"))
        lines.append(f"| {name} | {similar} | {first.mean:.2f} | {colour} | {prompt} |")
    return "\n".join(lines)


def variants_of(cases: Mapping[str, Records]) -> list[str]:
    """Names of the variants that were measured, in their order."""
    return list(dict.fromkeys(name for case in cases.values() for name in case))


def over(cases: Mapping[str, Records], variant: str, part: str) -> Summary:
    """Mean over cases with its interval."""
    return summarise({i: case[variant][part] for i, case in enumerate(cases.values()) if variant in case})


def group_table(cases: Mapping[str, Records]) -> str:
    """Case -> variant -> record, as a table; ``FaceSim`` counts a person whose place is empty as 0 (the paper's)."""
    lines = ["| variant | placed | own | other | wrong among placed | FaceSim | prompt |", "|---|" + "---|" * 6]
    for name in variants_of(cases):
        placed, own, other, wrong = (all_of(cases, name, part) for part in ("placed", "own", "other", "wrong"))
        means = [f"{np.mean(part):.2f}" if part else "-" for part in (own, other)]
        lines.append(f"| {name} | {np.mean(placed):.0%} of {len(placed)} | {means[0]} | {means[1]} "
                     f"| {sum(wrong):.0f} of {len(wrong)} | {sum(own) / len(placed):.2f} "
                     f"| {over(cases, name, 'prompt')} |")  # fmt: skip
    return "\n".join(lines)


def all_of(cases: Mapping[str, Records], variant: str, part: str) -> list[float]:
    """Values of all cases."""
    return [value for case in cases.values() if variant in case for value in case[variant][part]]


def report(records: Records, steps: int) -> str:
    """Every table that was measured, with ``steps`` of DDIM, and the bars."""
    parts = []
    for name, section in SECTIONS.items():
        cases = whole_rows_of(records, name)
        if cases:
            table = single_table(cases, len(cases)) if name == "single" else group_table(cases)
            pictures = max(len(record["prompt"]) for case in cases.values() for record in case.values())
            told = f"{len(cases)} held-out cases, {pictures} picture{'s' * (pictures > 1)} each, {steps} DDIM steps."
            parts.append(f"### {section.title}\n\n{told}\n\n{table}")
    repaired = magicid_repair.with_faces(whole_rows_of(records, magicid_repair.SECTION))
    if repaired:
        parts.append(f"### Small faces repaired by DIIR with an IDENTITY\n\n"
                     f"{len(repaired)} full-body drafts by the model alone, those of DIIR's own table; 30 steps.\n\n"
                     f"{magicid_repair.table(repaired)}")  # fmt: skip
    gaps = rows_of(records, GAP)
    if gaps:
        parts.append(f"### What another's identity costs\n\nIn the loss on held-out pictures, as a share of it; same "
                     f"noise; another's pose beside it.\n\n{gap_table(gaps)}")  # fmt: skip
    cloned = clone_faces.report(records, steps)
    if cloned:
        parts.append(cloned)
    bound = [str(bar) for bar in bars(records)]
    if bound:
        parts.append("\n".join(["### Bars and goals", "", "| | measured | bar | held |", "|---|---|---|---|", *bound]))
    return "\n\n".join(parts)


def gap_table(cases: Mapping[str, Records]) -> str:
    """Place of the identity -> paired gaps at three noise levels."""
    lines = [f"| identity through | mean | {' | '.join(f't = {t}' for t in TIMESTEPS)} | another's pose |",
             "|---|" + "---|" * (len(TIMESTEPS) + 2)]  # fmt: skip
    for place, gap in [pair for case in cases.values() for pair in case.items()]:
        shares = " | ".join(f"{gap[name]:.1%}" for name in ("gap", *(f"gap@{t}" for t in TIMESTEPS)))
        pose = f"{gap['pose gap']:.1%}" if "pose gap" in gap else "-"
        lines.append(f"| {PLACES[place]} | {shares} | {pose} |")
    return "\n".join(lines)


def bars(records: Records) -> list[Bar]:
    """The bars set in advance, and the goals to try for; those whose sections were measured."""
    single, off_centre, two, gap = (whole_rows_of(records, name) for name in ("single", "off centre", "two", GAP))
    found = []
    if single:
        similarity = over(single, "UNet", "similarity").mean
        loss = over(single, "vanilla", "prompt").mean - over(single, "UNet", "prompt").mean
        found += [Bar("similarity through the UNet, one person", similarity, 0.45),
                  Bar("prompt lost by it", loss, 0.03, False),
                  Bar("goal: similarity through the UNet, one person", similarity, 0.55)]  # fmt: skip
    if two:
        placed, own, other, wrong = (np.mean(all_of(two, "MGMICA", p)) for p in ("placed", "own", "other", "wrong"))
        found += [Bar("MGMICA, two side by side: own", float(own), 0.35),
                  Bar("MGMICA, two side by side: other", float(other), 0.10, False),
                  Bar("MGMICA, two side by side: wrong among placed", float(wrong), 0.10, False),
                  Bar("goal: MGMICA, two side by side: placed", float(placed), 0.95)]  # fmt: skip
    if off_centre:
        placed = float(np.mean(all_of(off_centre, SKELETON, "placed")))
        found.append(Bar("goal: heads off the centre placed by a skeleton", placed, 0.80))
    if gap:
        value = float(np.mean([case[CONTROL]["gap"] for case in gap.values()]))
        found.append(Bar("goal: paired gap of the ControlNet, share of its loss", value, 0.05))
    return found
