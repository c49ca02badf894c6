"""MagicID measured on the miniature: single people, poses in and off the centre, and several people by regions.

The face recogniser that feeds the identity encoder is the one that judges similarity (the miniature has one); the
colour of skin and hair beside it is measured on pixels.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from lab.evaluation.drawn import prompt_accuracy
from lab.evaluation.magicface import default_judge
from lab.evaluation.metrics import Summary, face_colours, summarise
from lab.evaluation.store import Records, whole_rows_of
from lab.magicid_people import LANDMARKS, SKELETON, pose_picture
from lab.people import Case, Person, pair_cases, reference_person, single_cases
from likeness.core.magicid.encoder import FaceFeatures
from likeness.core.magicid.run import PlacedIdentity
from likeness.faces.geometry import crop_square, intersection_over_union
from likeness.faces.interface import Face
from likeness.faces.masks import head_ellipse
from likeness.formats.magicid import MagicIdWeights
from likeness.hosts.diffusers.magicid import MagicIdRequest, generate
from likeness.hosts.diffusers.pipeline import Pipeline
from likeness.miniature.faces import MiniatureDetector, MiniatureEmbedder
from likeness.miniature.world.placed import sample_placed
from likeness.miniature.world.render import ground_truth

#: How far a face must lie on the place it was meant for (IoU), as in the paper's protocol.
PLACED = 0.5

Work = Callable[[], dict[str, list[float]]]

#: variant -> how the request differs; ``pose`` is drawn from the asked picture, ``who`` is whether people are told
SINGLE: dict[str, dict] = {
    "vanilla": {"who": False},
    "UNet": {"places": ("unet",)},
    "UNet, scale 1.5": {"places": ("unet",), "unet_scale": 1.5},
    "pose alone": {"who": False, "pose": SKELETON},
    "UNet, pose": {"places": ("unet",), "pose": SKELETON},
    "ControlNet": {"places": ("control",), "pose": SKELETON},
    "both": {"pose": SKELETON},
}
POSES: dict[str, dict] = {
    "vanilla": {"who": False}, LANDMARKS: {"who": False, "pose": LANDMARKS}, SKELETON: {"who": False, "pose": SKELETON},
}
GROUPS: dict[str, dict] = {
    "vanilla": {"who": False},
    "plain sum": {"places": ("unet",), "regions": False},
    "MGMICA": {"places": ("unet",)},
    "pose alone": {"who": False, "pose": SKELETON},
    "plain sum, pose": {"places": ("unet",), "pose": SKELETON, "regions": False},
    "MGMICA, pose": {"places": ("unet",), "pose": SKELETON},
    "MGMICA in the ControlNet": {"places": ("control",), "pose": SKELETON},
    "MGMICA in both": {"pose": SKELETON},
}


@dataclass(frozen=True, eq=False)
class Lab:
    """The model, the weights and the referees of a measurement."""

    pipeline: Pipeline
    weights: MagicIdWeights
    control: nn.Module | None = None
    steps: int = 20
    scale: float = 5.0

    def __post_init__(self) -> None:
        for name, value in (("judge", default_judge()), ("embedder", MiniatureEmbedder()),
                            ("detector", MiniatureDetector())):  # fmt: skip
            object.__setattr__(self, name, value)

    @torch.no_grad()
    def vector(self, person: Person) -> Tensor:
        """The recogniser's vector ``E`` of a person's reference picture."""
        crop = crop_square(person.image[None], torch.tensor([person.box]), self.embedder.size)
        return self.embedder.embed(crop)[0]

    @torch.no_grad()
    def placed(self, person: Person, region: Tensor | None) -> PlacedIdentity:
        """The person, encoded."""
        encoder = self.weights.encoder.float()
        tokens = encoder(FaceFeatures(vector=self.vector(person)[None]))[0]
        return PlacedIdentity(tokens, encoder.unconditional()[0], region)

    def draw(self, case: Case, seeds: Sequence[int], how: Mapping) -> Tensor:
        """Pictures ``B 3 H W`` of a case by a variant."""
        side, how = self.pipeline.side, dict(how)
        truths = ground_truth(case.picture, side)
        pose = how.pop("pose", None)
        regions = [head_ellipse(Face(t.box, 1.0), side, side) for t in truths]
        if not how.pop("regions", len(truths) > 1):
            regions = [None] * len(truths)
        who = how.pop("who", True)
        people = [self.placed(p, r) for p, r in zip(case.people, regions, strict=True)] if who else []
        drawn = None if pose is None else pose_picture(truths, side, pose)
        request = MagicIdRequest(people, pose=drawn, **how)
        return generate(
            self.pipeline, self.weights, case.prompt, seeds, request, self.control, self.steps, self.scale
        )


# --- one person -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Single:
    """What was seen of one case's pictures, a value a picture: similarity, whether of all cases' people
    the right one is nearest, distance of colours, share of the prompt that is seen."""

    similarity: list[float]
    first: list[float]
    colour: list[float]
    prompt: list[float]


def measure_single(lab: Lab, case: Case, seeds: Sequence[int], how: Mapping, rivals: Tensor, number: int) -> Single:
    """Draw and judge one case; ``rivals`` are the vectors ``P E`` of people, of whom this case's is ``number``."""
    images, person = lab.draw(case, seeds, how), case.people[0]
    first, similar = [], []
    for faces, vectors in lab.judge.vectors(images):
        largest = max(range(len(faces)), key=lambda i: faces[i].area, default=None)
        scores = None if largest is None else vectors[largest] @ rivals.T
        similar.append(-1.0 if scores is None else float(scores[number]))
        first.append(0.0 if scores is None else float(scores.argmax() == number))
    colour = lab.judge.colour_distances(images, face_colours(person.image, person.box))
    return Single(similar, first, colour, prompt_accuracy(images, [case.picture] * len(images)))


def rivals_of(lab: Lab, cases: Sequence[Case]) -> Tensor:
    """Vectors of the cases' people."""
    return torch.stack([lab.vector(case.people[0]) for case in cases])


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


# --- where people are -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """What was seen of one case's pictures, a value a person and picture.

    Attributes:
        placed: whether a face lies where this person belongs.
        own, other: similarity of that face with the person, and with the nearest of the others; of placed faces only.
        wrong: whether the other is nearer; of placed faces only.
        prompt: share of the prompt that is seen, a picture.
    """

    placed: list[float]
    own: list[float]
    other: list[float]
    wrong: list[float]
    prompt: list[float]


def measure_group(lab: Lab, case: Case, seeds: Sequence[int], how: Mapping) -> Group:
    """Draw and judge one case."""
    images = lab.draw(case, seeds, how)
    boxes = [truth.box for truth in ground_truth(case.picture, lab.pipeline.side)]
    known = torch.stack([lab.vector(person) for person in case.people])
    seen = Group([], [], [], [], prompt_accuracy(images, [case.picture] * len(images)))
    for faces, vectors in lab.judge.vectors(images):
        for i, box in enumerate(boxes):
            overlap = [intersection_over_union(face.box, box) for face in faces]
            best = max(range(len(faces)), key=overlap.__getitem__, default=None)
            there = best is not None and overlap[best] > PLACED
            seen.placed.append(float(there))
            if there:
                scores = known @ vectors[best]
                others = [float(s) for j, s in enumerate(scores) if j != i]
                seen.own.append(float(scores[i]))
                if others:
                    seen.other.append(max(others))
                    seen.wrong.append(float(max(others) > scores[i]))
    return seen


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


def placed_cases(count: int, side: int, people: int, seed: int = 3000) -> list[Case]:
    """Held-out people anywhere in the picture, left to right; eyes open and nothing before them."""
    cases = []
    for i in range(count):
        rng = random.Random(seed + i)
        picture = sample_placed(rng, people, held_out=True)
        figures = tuple(replace(f, item=None, expression="") for f in picture.figures)
        who = tuple(reference_person(figure.identity, rng, side) for figure in figures)
        cases.append(Case(who, replace(picture, figures=figures, style="flat")))
    return cases


#: section -> title of its table, its variants, and what makes so many cases
SECTIONS: dict[str, tuple[str, dict[str, dict], Callable[[int, int], list[Case]]]] = {
    "single": ("One person", SINGLE, single_cases),
    "centred": ("Pose, where the model draws people by itself", POSES, single_cases),
    "off centre": ("Pose, off the centre", POSES, lambda count, side: placed_cases(count, side, 1)),
    "two": ("Two people side by side", GROUPS, pair_cases),
    "two anywhere": ("Two people anywhere", GROUPS, lambda count, side: placed_cases(count, side, 2)),
    "three": ("Three people anywhere", GROUPS, lambda count, side: placed_cases(count, side, 3)),
}


def work(lab: Lab, people: int, seeds: Sequence[int], names: Sequence[str]) -> Iterator[tuple[str, Work]]:
    """Key and computation of every record; case by case, so that an early end leaves whole rows."""
    for name in names:
        _, variants, make = SECTIONS[name]
        cases = make(people, lab.pipeline.side)
        rivals = rivals_of(lab, cases) if name == "single" else None
        for number, case in enumerate(cases):
            for variant, how in variants.items():
                yield f"{name}/{number}/{variant}", partial(_measure, lab, case, seeds, how, rivals, number)


def _measure(
    lab: Lab, case: Case, seeds: Sequence[int], how: Mapping, rivals: Tensor | None, number: int
) -> dict[str, list[float]]:
    if rivals is not None:
        return asdict(measure_single(lab, case, seeds, how, rivals, number))
    return asdict(measure_group(lab, case, seeds, how))


def report(records: Records, steps: int) -> str:
    """Every table that was measured, with ``steps`` of DDIM."""
    parts = []
    for name, (title, _, _) in SECTIONS.items():
        cases = whole_rows_of(records, name)
        if cases:
            table = single_table(cases, len(cases)) if name == "single" else group_table(cases)
            pictures = max(len(record["prompt"]) for case in cases.values() for record in case.values())
            told = f"{len(cases)} held-out cases, {pictures} picture{'s' * (pictures > 1)} each, {steps} DDIM steps."
            parts.append(f"### {title}\n\n{told}\n\n{table}")
    return "\n\n".join(parts)
