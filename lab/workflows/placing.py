"""Where the nodes of a graph go: stages from left to right, each with its columns, apart in both renderers.

A stage is what a newcomer thinks of as one step (choose the model, say who, draw, look). It comes with a titled group.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

#: kind -> ``canvas`` and ``vue``: height below the title that each renderer needs (``run.py dev sizes``)
SIZES: dict[str, dict[str, int]] = json.loads(Path(__file__).with_name("node_sizes.json").read_text("utf-8"))

TITLE, GAP, STAGE_GAP, PADDING, TALLEST = 30, 24, 100, 20, 1600
#: the Vue renderer's footer ("Show advanced inputs") and a line of text more than was measured
SPARE = 40

STAGES = ("Model", "References", "Learn", "Draw", "Repair", "Result")
MODEL, REFERENCES, LEARN, DRAW, REPAIR, RESULT = range(len(STAGES))
COLOURS = ("#3f789e", "#8a6d3b", "#88a", "#5b8a5b", "#a1587a", "#444")

#: kind -> first stage it can stand in; every other node stands where its sources do
STARTS = {
    **dict.fromkeys(("LoadImage", "LikenessMiniatureSample", "LikenessPersonaLoad", "SolidMask"), REFERENCES),
    "LikenessMagicFaceReference": REFERENCES,
    **dict.fromkeys(("LikenessPersonaTrain", "LikenessPersonaTrainOptions"), LEARN),
    **dict.fromkeys(("PrimitiveStringMultiline", "CLIPTextEncode", "EmptyLatentImage", "KSampler"), DRAW),
    **dict.fromkeys(("LikenessPersonaApply", "LikenessMagicFaceApply", "LikenessMagicIdApply"), DRAW),
    "LikenessDiirFaceRepair": REPAIR,
    "LikenessMagicFacePreview": RESULT,
}
SHOWS = ("SaveImage", "PreviewImage")
#: what stands in one column with what reads it, and with what it reads; as do nodes of one kind in a chain
ABOVE = ("PrimitiveStringMultiline", "SolidMask")
BELOW = ("VAEDecode", "LikenessDetectFaces", "LikenessMagicIdRegions", "InvertMask")

Prompt = Mapping[str, Mapping[str, Any]]
Box = tuple[float, float, float, float]
Placed = tuple[dict[str, list[float]], list[dict[str, Any]]]


def is_link(value: Any) -> bool:
    """Whether an input's value names another node's output."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)


def room(kind: str, size: Sequence[float]) -> tuple[float, float]:
    """Width and height that a node of this saved size takes in the renderer that makes it higher."""
    needed = max(SIZES[kind].values()) + SPARE if kind in SIZES else 0
    return size[0], max(size[1], needed)


def stages(prompt: Prompt) -> dict[str, int]:
    """Stage of each node: not before its sources', and what shows a drawn picture in the last."""

    @cache
    def stage(key: str) -> int:
        kind = prompt[key]["class_type"]
        latest = max([STARTS.get(kind, MODEL), *map(stage, _sources(prompt, key))])
        return RESULT if kind in SHOWS and latest >= DRAW else latest

    return {key: stage(key) for key in prompt}


def columns(prompt: Prompt, *, aligned: bool = True) -> list[list[str]]:
    """Nodes of one stage by column; no link goes to the left.

    Args:
        aligned: whether what nothing in the stage reads stands in the last column, else as far left as it can.
    """
    readers = {key: [other for other in prompt if key in _sources(prompt, other)] for key in prompt}

    @cache
    def depth(key: str) -> int:
        return max([depth(source) + _step(prompt, source, key) for source in _sources(prompt, key)], default=0)

    last = max(map(depth, prompt))

    @cache
    def column(key: str) -> int:
        # as far right as its readers allow, so that a value stands beside what reads it
        right = last if aligned else depth(key)
        return min([column(reader) - _step(prompt, key, reader) for reader in readers[key]], default=right)

    found = ([key for key in prompt if column(key) == i] for i in range(last + 1))
    return [_stacked(keys, prompt) for keys in found if keys]


def _step(prompt: Prompt, source: str, reader: str) -> int:
    kind, reading = prompt[source]["class_type"], prompt[reader]["class_type"]
    return int(kind not in ABOVE and reading not in BELOW and kind != reading)


def _stacked(keys: list[str], prompt: Prompt) -> list[str]:
    """A column from top to bottom: the prompt's order, but each decoder behind what it decodes."""
    stack: list[str] = []
    for key in keys:
        above = [stack.index(source) for source in _sources(prompt, key) if source in stack]
        below = prompt[key]["class_type"] in BELOW and above
        stack.insert(max(above) + 1 if below else len(stack), key)
    return stack


def place(prompt: Prompt, sizes: Mapping[str, tuple[float, float]], head: tuple[float, float]) -> Placed:
    """Positions of the nodes and the groups round them.

    Args:
        sizes: :func:`room` of each node.
        head: width and height of the note above the first stage, with the gap below it.
    """
    stage_of = stages(prompt)
    positions: dict[str, list[float]] = {}
    groups: list[dict[str, Any]] = []
    left = 0.0
    for stage in sorted(set(stage_of.values())):
        top = 0.0 if groups else head[1]
        keys = {key: prompt[key] for key in prompt if stage_of[key] == stage}
        inside = _fill(columns(keys, aligned=stage != RESULT), sizes, left, top)
        positions |= inside
        groups.append(_group(len(groups) + 1, stage, [(*inside[key], *sizes[key]) for key in inside]))
        right = max(inside[key][0] + sizes[key][0] for key in inside)
        left = (right if positions.keys() != inside.keys() else max(right, head[0])) + STAGE_GAP
    return positions, groups


def _fill(found: list[list[str]], sizes: Mapping[str, tuple[float, float]], left: float, top: float) -> dict:
    positions = {}
    for column in (part for keys in found for part in _parts(keys, sizes)):
        y = top
        for key in column:
            positions[key] = [left, y]
            y += sizes[key][1] + TITLE + GAP
        left += max(sizes[key][0] for key in column) + GAP + GAP
    return positions


def _parts(keys: list[str], sizes: Mapping[str, tuple[float, float]]) -> list[list[str]]:
    """A column cut where it would be taller than a screen can show."""
    parts, used = [[]], 0.0
    for key in keys:
        used += sizes[key][1] + TITLE + GAP
        if used > TALLEST and parts[-1]:
            parts, used = [*parts, []], sizes[key][1] + TITLE + GAP
        parts[-1].append(key)
    return parts


def _group(number: int, stage: int, boxes: list[Box]) -> dict[str, Any]:
    left, top = min(b[0] for b in boxes) - PADDING, min(b[1] for b in boxes) - TITLE - PADDING - TITLE
    right, bottom = max(b[0] + b[2] for b in boxes) + PADDING, max(b[1] + b[3] for b in boxes) + PADDING
    return {
        "id": number,
        "title": f"{number} {STAGES[stage]}",
        "bounding": [left, top, right - left, bottom - top],
        "color": COLOURS[stage],
        "font_size": 24,
        "flags": {},
    }


def _sources(prompt: Prompt, key: str) -> list[str]:
    return [value[0] for value in prompt[key]["inputs"].values() if is_link(value) and value[0] in prompt]
