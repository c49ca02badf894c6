"""What a paper says of its method, beside what the miniature shows: which way a number moves, and whether it does here.

The drawn world cannot repeat a paper's numbers; it can show whether a part does what the paper says it does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lab.evaluation.metrics import summarise

FILE = "directions.json"
SEEN, NOT_SEEN, OPPOSITE = "seen", "not seen", "the opposite is seen"


@dataclass(frozen=True)
class Direction:
    """One statement of a paper.

    Attributes:
        source: table or figure.
        claim: what the paper finds, in a few words.
        measured: the same here; empty where it cannot be shown.
        verdict: :data:`SEEN`, :data:`NOT_SEEN`, :data:`OPPOSITE`, or ``cannot be shown here, because ...``.
    """

    source: str
    claim: str
    measured: str
    verdict: str


def direction(source: str, claim: str, what: str, differences: Sequence[float], at_least: float = 0.0) -> Direction:
    """A statement that a mean difference is above ``at_least``; seen where its whole 95% interval is.

    With ``at_least`` below 0: that it is no worse than that.

    Args:
        what: what was compared, e.g. ``identity, A less B``.
        differences: one a person, positive where the paper says so.
    """
    s = summarise(differences)
    verdict = SEEN if s.low > at_least else OPPOSITE if s.high < at_least else NOT_SEEN
    return Direction(source, claim, f"{what}: {s.mean:+.2f} ({s.low:+.2f} to {s.high:+.2f}), n = {s.count}", verdict)


def unshown(source: str, claim: str, because: str) -> Direction:
    """A statement that the miniature cannot judge."""
    return Direction(source, claim, "", f"cannot be shown here, because {because}")


def save(folder: Path, found: Sequence[Direction]) -> None:
    """Write them beside the tables."""
    (folder / FILE).write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n", encoding="utf-8")


def load(folder: Path) -> list[Direction]:
    """Those of a folder; none where no proof has run."""
    path = folder / FILE
    return [Direction(**row) for row in json.loads(path.read_text("utf-8"))] if path.is_file() else []


def markdown(found: Sequence[Direction]) -> str:
    """A table of statements."""
    lines = ["| in the paper | it says | here | |", "|---|---|---|---|"]
    lines += [f"| {one.source} | {one.claim} | {one.measured or '-'} | {one.verdict} |" for one in found]
    return "\n".join(lines)
