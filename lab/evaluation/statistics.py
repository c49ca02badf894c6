"""Paired comparisons of methods over the same people, by scipy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from lab.evaluation.metrics import Summary, summarise


@dataclass(frozen=True)
class Comparison:
    """One metric of a method less that of the baseline, over the people that both have.

    Attributes:
        change: mean difference with its 95% bootstrap interval over people.
        p: of Wilcoxon's signed-rank test, two-sided; nan with fewer than five people, where no p below .05 exists.
        adjusted: p after Benjamini and Hochberg's control over all comparisons of the table.
    """

    method: str
    metric: str
    change: Summary
    p: float
    adjusted: float = float("nan")


LEAST = 5


def paired(ours: Mapping[str, Sequence[float]], theirs: Mapping[str, Sequence[float]]) -> list[float]:
    """Differences of the people's means, for people in both."""
    return [float(np.mean(ours[who]) - np.mean(theirs[who])) for who in ours if ours[who] and theirs.get(who)]


def compare(method: str, metric: str, differences: Sequence[float]) -> Comparison:
    """A comparison from paired differences, one a person."""
    few = len(differences) < LEAST
    p = float("nan") if few else 1.0 if not any(differences) else float(stats.wilcoxon(differences).pvalue)
    return Comparison(method, metric, summarise(list(differences)), p)


def adjust(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same with their p values adjusted for being many."""
    known = [c.p for c in comparisons if np.isfinite(c.p)]
    adjusted = iter(stats.false_discovery_control(known)) if known else iter(())
    return [
        Comparison(c.method, c.metric, c.change, c.p, float(next(adjusted))) if np.isfinite(c.p) else c
        for c in comparisons
    ]
