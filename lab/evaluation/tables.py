"""A comparison as a table, as JSON and as bars with intervals."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from lab.evaluation.judge import Result
from lab.evaluation.metrics import Summary
from lab.evaluation.protocol import LOWER_IS_BETTER, METRICS, Protocol
from likeness.core.errors import bad_input
from likeness.formats.files import write_whole

BETTER = {True: "↓", False: "↑"}


def factor(protocol: Protocol, metric: str) -> float:
    """What a value is printed times."""
    return 100.0 if protocol.percent and metric not in LOWER_IS_BETTER else 1.0


def cell(summary: Summary, times: float) -> str:
    """Mean and interval; the mean alone where no interval is known."""
    places = 1 if times > 1 or abs(summary.mean) > 10 else 3
    mean, low, high = (f"{times * v:.{places}f}" for v in (summary.mean, summary.low, summary.high))
    return f"{mean} ({low} to {high})" if np.isfinite(summary.low) else mean


def markdown(result: Result) -> str:
    """Everything in words and numbers, in the paper's layout."""
    protocol = result.protocol
    metrics = [m for m in protocol.metrics if any(m in row for row in result.table.values())]
    heads = [f"{METRICS[m]} {BETTER[m in LOWER_IS_BETTER]}" for m in metrics]
    lines = [f"# {protocol.title}", "", f"Faces by {protocol.provider}. Means with 95% intervals over people.", ""]
    lines += [f"| method | {' | '.join([*heads, 'faces found', 'pictures'])} |", "|---" * (len(heads) + 3) + "|"]
    for method, row in result.table.items():
        cells = [cell(row[m], factor(protocol, m)) if m in row else "-" for m in metrics]
        found = f"{result.found[method]:.0%}" if method in result.found else "-"
        lines.append(f"| {method} | {' | '.join([*cells, found, str(result.counts[method])])} |")
    for method, row in protocol.published.items():
        cells = [f"{row[m]:g}" if m in row else "-" for m in metrics]
        lines.append(f"| *{method} (published)* | {' | '.join([*cells, '', ''])} |")
    return "\n".join([*lines, *_compared(result), *_absent(result)]) + "\n"


def _compared(result: Result) -> list[str]:
    if not result.comparisons:
        return []
    baseline = result.protocol.baseline or next(iter(result.protocol.methods))
    lines = ["", f"Change from {baseline}, paired by person (Wilcoxon's signed-rank test; p adjusted by Benjamini and "
             "Hochberg over this table):", "", "| method | metric | change (95%) | p | adjusted |",
             "|---|---|---|---|---|"]
    for c in result.comparisons:
        times = factor(result.protocol, c.metric)
        ps = [f"{p:.3g}" if np.isfinite(p) else "fewer than 5 people" for p in (c.p, c.adjusted)]
        lines.append(f"| {c.method} | {METRICS[c.metric]} | {cell(c.change, times)} | {' | '.join(ps)} |")
    return lines


def _absent(result: Result) -> list[str]:
    return ["", *(f"Not measured: {METRICS[m]}. {why}" for m, why in result.absent.items())] if result.absent else []


def as_json(result: Result) -> str:
    """The numbers, unscaled."""
    data = {
        "title": result.protocol.title, "provider": result.protocol.provider,
        "table": {method: {m: asdict(s) for m, s in row.items()} for method, row in result.table.items()},
        "comparisons": [asdict(c) for c in result.comparisons],
        "found": result.found, "pictures": result.counts, "absent": result.absent,
    }  # fmt: skip
    return json.dumps(_finite(data), indent=1) + "\n"


def _finite(value: object) -> object:
    """Numbers that JSON does not know (nan) as null."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def write(result: Result, folder: Path, bars: bool = True) -> list[Path]:
    """Write ``table.md``, ``table.json`` and, unless it is not wanted or nothing was measured, ``bars.png``."""
    bars = bars and any(result.table.values())
    files = {"table.md": markdown(result), "table.json": as_json(result)}
    for name, text in files.items():
        write_whole(folder / name, text.encode())
    if bars:
        draw_bars(result, folder / "bars.png")
    return [folder / name for name in (*files, *(("bars.png",) if bars else ()))]


def draw_bars(result: Result, path: Path) -> None:
    """One row of bars a metric, a bar a method, with its interval.

    Raises:
        LikenessError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as cause:
        raise bad_input("evaluation: bars", "no matplotlib", "the extra 'evaluation'",
                        "Install it: pip install matplotlib. Or leave the bars out: --no-bars.") from cause
    metrics = list(dict.fromkeys(m for row in result.table.values() for m in row))
    methods = list(result.table)
    figure = Figure(figsize=(2.6 * len(metrics) + 0.6, 3.2), layout="constrained")
    for axis, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        times = factor(result.protocol, metric)
        rows = [(i, result.table[m][metric]) for i, m in enumerate(methods) if metric in result.table[m]]
        means = np.array([s.mean for _, s in rows]) * times
        spread = np.nan_to_num([[s.mean - s.low, s.high - s.mean] for _, s in rows]).T * times
        axis.bar([i for i, _ in rows], means, yerr=spread, capsize=4, color=[f"C{i % 10}" for i, _ in rows])
        axis.set_title(f"{METRICS[metric]} {BETTER[metric in LOWER_IS_BETTER]}")
        axis.set_xticks(range(len(methods)), methods, rotation=30, ha="right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
