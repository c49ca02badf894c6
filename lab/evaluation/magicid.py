"""MagicID measured on the miniature: single people, poses in and off the centre, and several people by regions.

The face recogniser that feeds the identity encoder is the one that judges similarity (the miniature has one); the
colour of skin and hair beside it is measured on pixels.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from lab.evaluation.drawn import prompt_accuracy
from lab.evaluation.magicface import default_judge
from lab.evaluation.magicid_rivals import inpaint, with_magicface
from lab.evaluation.metrics import face_colours
from lab.evaluation.store import Keep
from lab.magicid_people import LANDMARKS, SKELETON, pose_picture
from lab.people import Case, Person, pair_cases, reference_person, single_cases
from likeness.core.magicid.encoder import FaceFeatures
from likeness.core.magicid.run import PlacedIdentity
from likeness.faces.geometry import crop_square, intersection_over_union
from likeness.faces.interface import Face
from likeness.faces.masks import head_ellipse
from likeness.formats.magicid import MagicIdWeights
from likeness.hosts.diffusers.magicid import MagicIdRequest, denoiser, generate
from likeness.hosts.diffusers.pipeline import Pipeline
from likeness.miniature.faces import MiniatureDetector, MiniatureEmbedder
from likeness.miniature.world.placed import sample_placed
from likeness.miniature.world.render import ground_truth
from likeness.miniature.world.spec import clothed

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
    "one at a time, inpainted": {"places": ("unet",), "inpaint": True},
    "one at a time, inpainted, pose": {"places": ("unet",), "pose": SKELETON, "inpaint": True},
    "MagicFace, the same regions": {"magicface": True},
    "MagicFace, the same regions, pose": {"magicface": True, "pose": SKELETON},
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
    def placed(self, person: Person, region: Tensor | None = None) -> PlacedIdentity:
        """The person, encoded."""
        encoder = self.weights.encoder.float()
        tokens = encoder(FaceFeatures(vector=self.vector(person)[None]))[0]
        return PlacedIdentity(tokens, encoder.unconditional()[0], region)

    def draw(self, case: Case, seeds: Sequence[int], how: Mapping) -> Tensor:
        """Pictures ``B 3 H W`` of a case by a variant."""
        side, how = self.pipeline.side, dict(how)
        truths = ground_truth(case.picture, side)
        regions = [head_ellipse(Face(t.box, 1.0), side, side) for t in truths]
        pose, one_at_a_time = how.pop("pose", None), how.pop("inpaint", False)
        drawn = None if pose is None else pose_picture(truths, side, pose)
        if how.pop("magicface", False):
            return with_magicface(self.pipeline, case, regions, seeds, self.steps, self.scale, self.control, drawn)
        if not how.pop("regions", len(truths) > 1):
            regions = [None] * len(truths)
        people = []
        if how.pop("who", True):
            people = [self.placed(p, r) for p, r in zip(case.people, regions, strict=True)]
        request = MagicIdRequest(people, pose=drawn, **how)
        if one_at_a_time:
            return self.one_at_a_time(case, seeds, request)
        return generate(
            self.pipeline, self.weights, case.prompt, seeds, request, self.control, self.steps, self.scale
        )

    @torch.no_grad()
    def one_at_a_time(self, case: Case, seeds: Sequence[int], request: MagicIdRequest) -> Tensor:
        """Vanilla's pictures with each region drawn again, from noise, with the one identity that belongs there.

        In a trial on other pairs a region begun from noise came out as well as one begun a few steps later, and better
        than one that keeps more of the stranger.
        """
        images = generate(
            self.pipeline, self.weights, case.prompt, seeds, replace(request, people=()), self.control, self.steps,
            self.scale,
        )  # fmt: skip
        noise = self.pipeline.noise(seeds)
        for person in request.people:
            scheduler, alone = self.pipeline.scheduler(self.steps), replace(request, people=[person])
            with denoiser(
                self.pipeline, self.weights, case.prompt, alone, scheduler, self.control, self.scale
            ) as denoise:
                images = inpaint(self.pipeline, images, noise, person.region, denoise, scheduler)
        return images


# --- one person -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Single:
    """What was seen of one case's pictures, a value a picture: similarity, whether of all cases' people
    the right one is nearest, distance of colours, share of the prompt that is seen."""

    similarity: list[float]
    first: list[float]
    colour: list[float]
    prompt: list[float]


def measure_single(lab: Lab, case: Case, images: Tensor, rivals: Tensor) -> Single:
    """Judge one case's pictures; ``rivals`` are the vectors ``P E`` of people, one of whom is this case's."""
    person = case.people[0]
    number = int((rivals @ lab.vector(person)).argmax())
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


def measure_group(lab: Lab, case: Case, images: Tensor) -> Group:
    """Judge one case's pictures."""
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


def placed_cases(count: int, side: int, people: int, seed: int = 3000) -> list[Case]:
    """Held-out people anywhere in the picture, left to right; eyes open and nothing before them.

    Each is called by a phrase ("woman wearing a red shirt"), as in :func:`pair_cases`.
    """
    cases = []
    for i in range(count):
        rng = random.Random(seed + i)
        picture = sample_placed(rng, people, held_out=True)
        figures = tuple(replace(f, item=None, expression="") for f in picture.figures)
        who = tuple(replace(reference_person(f.identity, rng, side), word=clothed(f)) for f in figures)
        cases.append(Case(who, replace(picture, figures=figures, style="flat")))
    return cases


@dataclass(frozen=True)
class Section:
    """One table of the proof.

    Attributes:
        title: above the table. variants: name -> how. cases: makes so many for pictures of a side.
        pictures: of each case.
    """

    title: str
    variants: Mapping[str, Mapping]
    cases: Callable[[int, int], list[Case]]
    pictures: int = 2


SECTIONS: dict[str, Section] = {
    "single": Section("One person", SINGLE, single_cases),
    "centred": Section("Pose, where the model draws people by itself", POSES, single_cases),
    "off centre": Section("Pose, off the centre", POSES, lambda count, side: placed_cases(count, side, 1)),
    "two": Section("Two people side by side", GROUPS, pair_cases),
    "two anywhere": Section("Two people anywhere", GROUPS, lambda count, side: placed_cases(count, side, 2), 1),
    "three": Section("Three people anywhere", GROUPS, lambda count, side: placed_cases(count, side, 3), 1),
}


def work(
    lab: Lab, people: int, pictures: int | None, names: Sequence[str], keep: Callable[[str], Keep]
) -> Iterator[tuple[str, Work]]:
    """Key and computation of every record; case by case, so that an early end leaves whole rows.

    Args:
        people: cases of each section. pictures: of each case; None is as many as the section says.
        keep: of a case, keeps its reference pictures and each variant's first picture.
    """
    for name in names:
        section = SECTIONS[name]
        cases = section.cases(people, lab.pipeline.side)
        judge: Callable[..., Single | Group] = measure_group
        if name == "single":
            judge = partial(measure_single, rivals=rivals_of(lab, cases))
        seeds = range(1, (pictures or section.pictures) + 1)
        for number, case in enumerate(cases):
            kept = keep(f"{name} {number}")
            for variant, how in section.variants.items():
                yield f"{name}/{number}/{variant}", partial(_record, lab, case, seeds, variant, how, judge, kept)


def _record(
    lab: Lab, case: Case, seeds: Sequence[int], variant: str, how: Mapping, judge: Callable[..., Single | Group],
    keep: Keep,
) -> dict[str, list[float]]:  # fmt: skip
    images = lab.draw(case, seeds, how)
    for i, person in enumerate(case.people):
        keep(f"person {i + 1}", person.image)
    keep(variant, images[0])
    return asdict(judge(lab, case, images))
