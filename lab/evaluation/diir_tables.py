"""The tables of DIIR's proof from its records, with paired intervals and the bars."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lab.evaluation.diir import ANGLES, DRAFTS, STYLED, VARIANTS
from lab.evaluation.directions import Direction, direction, unshown
from lab.evaluation.metrics import summarise
from lab.evaluation.store import Records, paired, rows_of, values

GROUPED = ("before", "all three")


@dataclass(frozen=True)
class Bar:
    """A bound that was set beforehand, and what came out."""

    name: str
    value: float
    bound: float
    at_least: bool = True

    @property
    def held(self) -> bool:
        """Whether it holds."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def __str__(self) -> str:
        sign = "at least" if self.at_least else "at most"
        return f"| {self.name} | {self.value:.2f} | {sign} {self.bound:g} | {'yes' if self.held else '**no**'} |"


def signed(numbers: Sequence[float]) -> str:
    """A mean difference with its interval."""
    s = summarise(numbers)
    return f"{s.mean:+.2f} ({s.low:+.2f} to {s.high:+.2f})"


def people_table(records: Records, kind: str) -> str:
    """Every variant on one kind of drafts."""
    cases = rows_of(records, kind)
    lines = [f"### {kind} drafts, {len(cases)} people", "",
             "| variant | similarity (95%) | change from before, paired (95%) | better | found | seam |",
             "|---|---|---|---|---|---|"]
    for variant in ("before", *VARIANTS):
        gains = paired(cases, variant, "before")
        seams = values(cases, variant, "seam")
        lines.append(
            f"| {variant} | {summarise(values(cases, variant, 'similarity'))} "
            f"| {'' if variant == 'before' else signed(gains)} "
            f"| {'' if variant == 'before' else f'{np.mean([g > 0 for g in gains]):.0%}'} "
            f"| {np.mean(values(cases, variant, 'found')):.0%} | {f'{np.median(seams):.2f}' if seams else ''} |"
        )
    differences = [("default", other) for other in ("no identity", "paper mode", "fast, strength .75")]
    lines += ["", *(f"- {a} over {b}, paired: {signed(paired(cases, a, b))}" for a, b in differences)]
    heights = values(cases, "before", "height")
    lines.append(f"- faces {min(heights):.0f} to {max(heights):.0f} pixels high")
    return "\n".join(lines)


def style_table(records: Records) -> str:
    """Styles told and untold."""
    cases = rows_of(records, "style")
    lines = [f"### Styles, {len(cases)} people", "", "| variant | style seen in the crop | similarity (95%) |",
             "|---|---|---|"]
    lines += [f"| {v} | {np.mean(values(cases, v, 'style')):.0%} | {summarise(values(cases, v, 'similarity'))} |"
              for v in ("before", *STYLED)]
    return "\n".join(lines)


def group_numbers(record: dict) -> tuple[list[float], list[float], list[bool]]:
    """Per face: similarity to its own person, the larger one to a neighbour's, and whether its own is the largest."""
    own, other, right = [], [], []
    for i, row in enumerate(record["similarities"]):
        rest = max(value for j, value in enumerate(row) if j != i)
        own.append(row[i])
        other.append(rest)
        right.append(row[i] > rest)
    return own, other, right


def group_table(records: Records) -> str:
    """Groups of three, and one chosen face."""
    cases = rows_of(records, "group")
    lines = [f"### Drawn groups of three strangers, {len(cases)} pictures", "",
             "| | similarity to its person (95%) | to the nearest neighbour's person | its person is the nearest |",
             "|---|---|---|---|"]
    for variant in GROUPED:
        told = [group_numbers(case[variant]) for case in cases.values()]
        own = {i: t[0] for i, t in enumerate(told)}
        lines.append(f"| {variant} | {summarise(own)} | {np.mean([x for t in told for x in t[1]]):.2f} "
                     f"| {np.mean([x for t in told for x in t[2]]):.0%} |")
    middle = [case["the middle one"]["similarities"] for case in cases.values()]
    start = [case["before"]["similarities"] for case in cases.values()]
    moved = [abs(m[i][i] - s[i][i]) for m, s in zip(middle, start, strict=True) for i in (0, 2)]
    gains = [m[1][1] - s[1][1] for m, s in zip(middle, start, strict=True)]
    lines += ["", f"- only the one in the middle chosen: it gains {signed(gains)}; the similarities of the other two "
                  f"move by at most {max(moved):.3f}"]
    return "\n".join(lines)


def tilt_table(records: Records) -> str:
    """Turned faces."""
    heads = ("degrees", "found sharp, blurred", "tilt error of the finder, degrees (median)", "similarity before",
             "upright crop: similarity, tilt error after", "crop as it lies: similarity, tilt error after")
    lines = ["### Drawn strangers turned by known angles", "", f"| {' | '.join(heads)} |", "|---|---|---|---|---|---|"]
    for degrees in ANGLES:
        cases = {k: c for k, c in rows_of(records, "tilt").items() if k.endswith(f" {degrees}")}
        found = [f"{len(values(cases, 'detector', k)) / len(cases):.0%}" for k in ("sharp", "blurred")]
        errors = [f"{np.median(values(cases, 'detector', k) or [np.nan]):.0f}" for k in ("sharp", "blurred")]
        told = [_tilted(cases, v) for v in ("upright crop", "crop as it lies")]
        before = summarise(values(cases, "before", "similarity"))
        lines.append(f"| {degrees} | {', '.join(found)} | {', '.join(errors)} | {before} | {told[0]} | {told[1]} |")
    return "\n".join(lines)


def _tilted(cases: dict[str, Records], variant: str) -> str:
    similar, errors = values(cases, variant, "similarity"), values(cases, variant, "angle error")
    if not similar:
        return ""
    error = f"{np.median(errors):.0f} ({len(errors)} of {len(similar)} found)" if errors else "none found"
    return f"{summarise(similar)}, {error}"


def bars(records: Records) -> list[Bar]:
    """The bars set in advance."""
    mean: Callable[[Sequence[float]], float] = lambda x: float(np.mean(x))  # noqa: E731
    own, plain, style = (rows_of(records, name) for name in (*DRAFTS, "style"))
    gains = paired(own, "default", "before")
    whole = [r["identical outside"] for r in records.values() if "identical outside" in r]
    return [
        Bar("gain, MagicFace drafts", mean(gains), 0.20),
        Bar("faces better, MagicFace drafts", mean([g > 0 for g in gains]), 0.85),
        Bar("faces found after, MagicFace drafts", mean(values(own, "default", "found")), 0.90),
        Bar("similarity, vanilla drafts", mean(values(plain, "default", "similarity")), 0.40),
        Bar("default over no identity, MagicFace drafts", mean(paired(own, "default", "no identity")), 0.15),
        Bar("default over paper mode, MagicFace drafts", mean(paired(own, "default", "paper mode")), 0.05),
        Bar("default over paper mode, vanilla drafts", mean(paired(plain, "default", "paper mode")), 0.20),
        Bar("style seen untold, paper mode", mean(values(style, "paper mode, style not told", "style")), 0.80),
        Bar("style seen untold, Eq. 6 alone", mean(values(style, "default, style not told", "style")), 0.60, False),
        Bar("seam ratio (median), MagicFace drafts", float(np.median(values(own, "default", "seam"))), 1.2, False),
        Bar("pictures bit-identical outside the mask", mean(whole), 1.0),
    ]


def report(records: Records) -> str:
    """All tables and the bars."""
    bound = [str(bar) for bar in bars(records)]
    return "\n\n".join([
        *(people_table(records, kind) for kind in DRAFTS), style_table(records), group_table(records),
        tilt_table(records),
        "\n".join(["### Bars", "", "| | measured | bar | held |", "|---|---|---|---|", *bound]),
        "The paper's Table 4 (with CodeFormer) has no analogue here: the drawn world has no face restorer.",
    ])  # fmt: skip


def directions(records: Records) -> list[Direction]:
    """What MagicID's paper says of DIIR, and what is seen here."""
    own, vanilla, styled, groups = (rows_of(records, name) for name in ("MagicFace", "vanilla", "style", "group"))
    seen = paired(styled, "paper mode, style not told", "default, style not told", "style")
    own_of = {variant: [np.mean(group_numbers(c[variant])[0]) for c in groups.values()] for variant in GROUPED}
    gains = np.subtract(own_of["all three"], own_of["before"]).tolist()
    return [
        direction("Table 2", "faces of full-body pictures gain identity, whatever made the picture",
                  "similarity after less before, MagicFace drafts", paired(own, "default", "before")),
        direction("Table 2", "the same for a generator that does not know the person",
                  "similarity after less before, vanilla drafts", paired(vanilla, "default", "before")),
        direction("Table 3", "the same in pictures of several people",
                  "similarity after less before, drawn groups of three", gains),
        direction("Fig. 6", "features fused with the draft's keep its style where plain restoring does not",
                  "share of pictures whose style is seen, paper mode less default", seen),
        unshown("Fig. 6", "landmarks keep the pose where inpainting loses it",
                "it takes a landmark ControlNet's weights"),
        unshown("Table 4", "a face restorer (CodeFormer) does not bring the identity back",
                "the drawn world has no face restorer"),
    ]  # fmt: skip
