"""MagicFace measured on the miniature: vanilla and every variant, same seeds, on held-out people and prompts."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..core.magicface.cache import ReferenceCache
from ..core.magicface.record import Recorder
from ..core.magicface.request import MagicFaceRequest, Reference
from ..faces.miniature import MiniatureDetector, MiniatureEmbedder
from ..miniature.pipeline import Pipeline
from ..miniature.world import Identity, Picture, ground_truth, render, sample_identity, sample_picture
from ..miniature.world.spec import Figure, clothed, sample_figure
from .metrics import (
    IdentityJudge,
    Summary,
    detection_rate,
    face_colours,
    prompt_accuracy,
    prompt_hits,
    summarise,
)

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


@dataclass(frozen=True)
class Concept:
    """A held-out person's reference picture.

    Attributes:
        identity: who it is.
        image: ``3 H W`` in [0, 1].
        mask: ``H W``, head with hair.
        box: the face's box in pixels.
        word: word or phrase that stands for them in the prompt.
    """

    identity: Identity
    image: Tensor
    mask: Tensor
    box: tuple[float, float, float, float]
    word: str


@dataclass(frozen=True)
class Case:
    """One prompt with its people, left to right."""

    concepts: tuple[Concept, ...]
    picture: Picture

    @property
    def prompt(self) -> str:
        """The caption of what is asked for."""
        return self.picture.caption

    @property
    def strips(self) -> tuple[Tensor, ...]:
        """One region for each person: equal upright strips, left to right, ``1 n``."""
        return torch.eye(len(self.concepts)).split(1)


def reference_picture(identity: Identity, rng: random.Random) -> Picture:
    """A plain portrait: studio, no accessory, neutral."""
    figure = replace(sample_figure(rng, "portrait", identity), item=None, expression="", action="standing",
                     centre=(0.5, 0.46), head=0.58, tilt=0.0, word=identity.gender, told="")
    return Picture((figure,), "portrait", "studio", "flat", seed=rng.randrange(2**31))


def make_concept(identity: Identity, rng: random.Random, side: int) -> Concept:
    """Draw a person's reference picture at ``side`` pixels."""
    picture = reference_picture(identity, rng)
    truth = ground_truth(picture, side)[0]
    rows = np.arange(side)[:, None]
    mask = truth.person & (rows <= truth.box[3])
    image = torch.from_numpy(render(picture, side)).permute(2, 0, 1).float() / 255
    return Concept(identity, image, torch.from_numpy(mask).float(), truth.box, identity.gender)


def _asked(figure: Figure, word: str) -> Figure:
    return replace(figure, word=word, told="")


def single_cases(count: int, side: int, seed: int = 1000, shot: str | None = "portrait") -> list[Case]:
    """Held-out people, each with a prompt of its own (held-out accessory-scene pairs included)."""
    cases = []
    for i in range(count):
        rng = random.Random(seed + i)
        identity = sample_identity(rng, held_out=True)
        concept = make_concept(identity, rng, side)
        picture = sample_picture(rng, identity, held_out=True, shot=shot)
        picture = replace(picture, style="flat" if i % 3 else picture.style,
                          figures=(_asked(picture.figures[0], concept.word),))
        cases.append(Case((concept,), picture))
    return cases


def pair_cases(count: int, side: int, seed: int = 2000) -> list[Case]:
    """Prompts with a woman and a man side by side, each a held-out person.

    Their concepts are phrases ("woman wearing a red shirt"): the bare words are alike, and the clothes' words hold the
    two apart in the semantic map. No expression is told, so that eyes are open and faces can be compared.
    """
    cases = []
    for i in range(count):
        rng = random.Random(seed + i)
        pair = [_of_gender(rng, gender) for gender in ("woman", "man")]
        concepts = tuple(make_concept(identity, rng, side) for identity in pair)
        drawn = [sample_figure(rng, "portrait", c.identity, j, 2) for j, c in enumerate(concepts)]
        plain = [replace(figure, action="standing", item=None, expression="") for figure in drawn]
        figures = tuple(_asked(figure, c.word) for figure, c in zip(plain, concepts, strict=True))
        picture = sample_picture(rng, pair[0], held_out=True)
        concepts = tuple(replace(c, word=clothed(f)) for c, f in zip(concepts, figures, strict=True))
        cases.append(Case(concepts, replace(picture, figures=figures, shot="portrait", style="flat")))
    return cases


def _of_gender(rng: random.Random, gender: str) -> Identity:
    while True:
        identity = sample_identity(rng, held_out=True)
        if identity.gender == gender:
            return identity


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
    regions = case.strips if settings.pop("placed", False) else [None] * len(case.concepts)
    references: list[Reference] = [
        pipeline.reference(c.image, c.word, case.prompt, c.mask, weight, region=region)
        for c, region in zip(case.concepts, regions, strict=True)
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
    references, colour = torch.cat([judge.embed(c.image, [c.box]) for c in case.concepts]), []
    if len(case.concepts) == 1:
        only = case.concepts[0]
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
