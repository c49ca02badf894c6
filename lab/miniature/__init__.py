"""The miniature's training and its report: ``python run.py miniature``."""

from __future__ import annotations

from collections.abc import Sequence

from lab.verbs import elsewhere, run_verb

VERBS = {
    "train": (elsewhere("lab.miniature.train"), "retrain a part from its seed, or go on where it stopped"),
    "report": (elsewhere("lab.miniature.report"), "samples, attribute accuracy, reconstruction, MagicFace's variants"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_verb("miniature", "The small drawn model: training and measures.", VERBS, argv)
