"""MagicFace measured on the miniature: vanilla and every variant, same seeds, on held-out people and prompts."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lab.evaluation.drawn import prompt_accuracy, prompt_hits
from lab.evaluation.metrics import IdentityJudge, Summary, detection_rate, face_colours, summarise
from lab.people import Case
from likeness.core.magicface.cache import ReferenceCache
from likeness.core.magicface.record import Recorder
from likeness.core.magicface.request import MagicFaceRequest, Reference
from likeness.hosts.diffusers.pipeline import Pipeline
from likeness.miniature.faces import MiniatureDetector, MiniatureEmbedder

log = logging.getLogger("likeness")
Progress = Callable[[int], None]

#: Weight of a reference on the miniature; Stable Diffusion's default of 3 (last variant) brings nobody nearer there.
WEIGHT = 1.0

#: variant -> settings of the request; None is vanilla. The rows of the paper's Fig. 8, then a checkpoint's weight.
VARIANTS: dict[str, dict | None] = {
    "vanilla": None,
    "references, no weight": {"alpha": 0.4, "weighting": "none"},
    "RSA only (alpha 1)": {"alpha": 1.0},
    "RBA only (alpha 0)": {"alpha": 0.0},
    "MagicFace (alpha 0.4)": {"alpha": 0.4},
    "MagicFace (alpha 0.4), w 3": {"alpha": 0.4, "weight": 3.0},
}
FULL, PLACED = "MagicFace (alpha 0.4)", "MagicFace, regions given"
#: The same for several people; ``placed`` gives each an equal upright strip of the picture as its region.
GROUP_VARIANTS: dict[str, dict | None] = {
    "vanilla": None, FULL: VARIANTS[FULL], PLACED: {**VARIANTS[FULL], "placed": True},
}


def make_request(
    pipeline: Pipeline, case: Case, settings: Mapping | None, weight: float = WEIGHT,
    cache: ReferenceCache | None = None, recorder: Recorder | None = None,
) -> MagicFaceRequest | None:
    """The request of a variant for a case; None for vanilla.

    A variant may bring a ``weight`` of its own, and ``placed``: whether each person is given a strip of the picture.
    """
    if settings is None:
        return None
    settings = dict(settings)
    weight = settings.pop("weight", weight)
    regions = case.strips if settings.pop("placed", False) else [None] * len(case.people)
    references: list[Reference] = [
        pipeline.reference(person.image, person.word, case.prompt, person.mask, weight, region=region)
        for person, region in zip(case.people, regions, strict=True)
    ]
    return MagicFaceRequest(tuple(references), cache=cache or ReferenceCache(), recorder=recorder, **settings)


@dataclass(frozen=True)
class Outcome:
    """Pictures of one case and variant, and what the referees say.

    Attributes:
        images: ``B 3 H W`` in [0, 1].
        identity: similarity per picture (mean over its people); -1 where no face was found.
        found: share of people whose face was found.
        colour: distance of skin and hair colour from the reference's, per picture; empty with several people.
        prompt: share of told attributes seen, per picture.
        hits: per picture and attribute.
        seconds: wall-clock time of sampling one picture.
    """

    images: Tensor
    identity: list[float]
    found: float
    colour: list[float]
    prompt: list[float]
    hits: list[dict[str, bool]]
    seconds: float


def default_judge() -> IdentityJudge:
    """The miniature's referees."""
    return IdentityJudge(MiniatureDetector(), MiniatureEmbedder())


def judge_case(judge: IdentityJudge, case: Case, images: Tensor, seconds: float) -> Outcome:
    """Score the pictures of one case."""
    references, colour = torch.cat([judge.embed(person.image, [person.box]) for person in case.people]), []
    if len(case.people) == 1:
        only = case.people[0]
        scores = [[score] for score in judge.similarity(images, references[0])]
        colour = judge.colour_distances(images, face_colours(only.image, only.box))
    else:
        scores = judge.assignment(images, references)
    asked = [case.picture] * len(images)
    return Outcome(
        images, [float(np.mean(row)) for row in scores], detection_rate([s for row in scores for s in row]),
        colour, prompt_accuracy(images, asked), prompt_hits(images, asked), seconds / len(images),
    )


def run_case(
    pipeline: Pipeline, case: Case, settings: Mapping | None, seeds: Sequence[int], steps: int, judge: IdentityJudge,
    weight: float = WEIGHT, scale: float = 5.0, progress: Progress | None = None, recorder: Recorder | None = None,
) -> Outcome:
    """Make and score the pictures of one case and variant."""
    started = time.perf_counter()
    request = make_request(pipeline, case, settings, weight, recorder=recorder)
    tick = (lambda done, total, latents: progress(1)) if progress else None
    images = pipeline.generate(case.prompt, seeds, request, steps, scale, callback=tick)
    return judge_case(judge, case, images, time.perf_counter() - started)


@dataclass(frozen=True)
class Row:
    """One variant over all cases."""

    variant: str
    identity: Summary
    found: float
    colour: Summary | None
    prompt: Summary
    seconds: float


def summarise_variant(variant: str, outcomes: Sequence[Outcome]) -> Row:
    """Means over cases; each case is one person (or pair) and is resampled as a whole."""
    return Row(
        variant,
        summarise(dict(enumerate(o.identity for o in outcomes))),
        float(np.mean([o.found for o in outcomes])),
        summarise(dict(enumerate(o.colour for o in outcomes))) if outcomes[0].colour else None,
        summarise(dict(enumerate(o.prompt for o in outcomes))),
        float(np.mean([o.seconds for o in outcomes])),
    )


def measure(
    pipeline: Pipeline, cases: Sequence[Case], seeds: Sequence[int], steps: int = 30,
    variants: Mapping[str, dict | None] | None = None, weight: float = WEIGHT, scale: float = 5.0,
    progress: Progress | None = None,
) -> tuple[list[Row], dict[str, list[Outcome]]]:
    """Every variant on every case with the same seeds: the table's rows, and all pictures."""
    judge, outcomes = default_judge(), {}
    for name, settings in (variants or VARIANTS).items():
        outcomes[name] = [
            run_case(pipeline, case, settings, seeds, steps, judge, weight, scale, progress) for case in cases
        ]
    return [summarise_variant(name, rows) for name, rows in outcomes.items()], outcomes


def change_table(outcomes: Mapping[str, Sequence[Outcome]]) -> str:
    """MagicFace less vanilla over cases, mean and standard deviation: where the end-to-end test's bounds come from."""
    lines = ["| change from vanilla | mean | standard deviation over cases |", "|---|---|---|"]
    before, after = outcomes["vanilla"], outcomes[FULL]
    measured = {name: (name, after) for name in ("identity", "colour", "prompt") if getattr(before[0], name)}
    if PLACED in outcomes:
        measured |= {f"{name}, regions given": (name, outcomes[PLACED]) for name in ("identity", "prompt")}
    for text, (name, changed) in measured.items():
        pairs = zip(before, changed, strict=True)
        change = [np.mean(getattr(b, name)) - np.mean(getattr(a, name)) for a, b in pairs]
        lines.append(f"| {text} | {np.mean(change):+.3f} | {np.std(change, ddof=1):.3f} |")
    if all("scene" in h for o in before for h in o.hits):
        right = (np.mean([h["scene"] for o in which for h in o.hits]) for which in (before, after))
        lines.append("| pictures with the right scene | {:.0%} to {:.0%} | |".format(*right))
    return "\n".join(lines)


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table."""
    lines = ["| variant | identity similarity (95% interval) | faces found | skin and hair colour distance "
             "| prompt accuracy (95% interval) | s a picture |", "|---|---|---|---|---|---|"]
    lines += [f"| {r.variant} | {r.identity} | {r.found:.0%} | {r.colour or 'not for several'} | {r.prompt} "
              f"| {r.seconds:.1f} |" for r in rows]
    return "\n".join(lines)
