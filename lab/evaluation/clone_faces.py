"""Clone Face Tuning: two trainings held against each other that differ in nothing else, one of them without it.

Each of the paper's three statements has its measure, on people neither training has seen: Eq. 4 trains features alike
in both faces of a clone picture (Eq. 2); Fig. 5 shows one identity light up several faces in the ControlNet's first
layer; Table 3 has several people in their places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from lab.evaluation.directions import Direction, direction
from lab.evaluation.magicid import PLACED, Lab, measure_group, placed_cases
from lab.evaluation.metrics import summarise
from lab.evaluation.store import Records, whole_rows_of
from lab.magicid_people import MODES, SKELETON, pose_picture
from lab.people import Case, pair_cases
from likeness.core.masks import Grid
from likeness.faces.geometry import intersection_over_union
from likeness.hosts.diffusers.common import unet_layout
from likeness.hosts.diffusers.magicid import MagicIdRequest, generate, training_host
from likeness.miniature.world.render import ground_truth
from likeness.training.magicid.gauge import TIMESTEPS
from likeness.training.magicid.losses import clone_face_loss, face_window
from likeness.training.magicid.model import MagicIdModel
from likeness.training.magicid.request import CONTROL, MagicIdTraining, Phase
from likeness.training.magicid.samples import Batch, Sample, Sampler

WITH, WITHOUT = "with", "without"
TRAINING, ATTENTION, TWICE = "clone training", "clone attention", "clone twice"
TWO, ANYWHERE = "clone two", "clone two anywhere"
#: identity through the ControlNet alone, each person in their region, under the pose
CONTROLLED = {"places": (CONTROL,), "pose": SKELETON}

Work = Callable[[], dict]


def work(
    labs: Mapping[str, Lab], held_out: Sequence[Sample], people: int, seeds: Sequence[int]
) -> Iterator[tuple[str, Work]]:
    """Key and computation of every record, both trainings of a case in turn.

    Args:
        labs: :data:`WITH` and :data:`WITHOUT`, with the ControlNets of the trainings.
        held_out: of :mod:`lab.magicid_people`; those of one person are made clone pictures.
        people: cases of each table of drawn pictures. seeds: of each case.
    """
    for name, lab in labs.items():
        yield f"{TRAINING}/0/{name}", partial(training, lab)
    side = labs[WITH].pipeline.side
    alone = [sample for sample in held_out if len(sample.vectors) == 1]
    pairs, anywhere = pair_cases(people, side), placed_cases(people, side, 2)
    for number, sample in enumerate(alone):
        for name, lab in labs.items():
            yield f"{ATTENTION}/{number}/{name}", partial(attention, lab, sample, number)
    for number, case in enumerate(pairs):
        for name, lab in labs.items():
            yield f"{TWICE}/{number}/{name}", partial(twice, lab, case, number, seeds)
    for section, cases in ((TWO, pairs), (ANYWHERE, anywhere)):
        for number, case in enumerate(cases):
            for name, lab in labs.items():
                yield f"{section}/{number}/{name}", partial(group, lab, case, seeds)


def training(lab: Lab) -> dict[str, float]:
    """What the weights' file tells of how they came about: ``steps``, ``minutes``, clone pictures ``every`` so many."""
    notes = lab.weights.notes
    return {"steps": lab.weights.steps, "minutes": notes["minutes"], "every": max(p[-1] for p in notes["phases"])}


# --- attention (Eq. 2, Fig. 5) ----------------------------------------------------------------------------------------


@torch.no_grad()
def attention(lab: Lab, sample: Sample, number: int) -> dict[str, list[float]]:
    """A clone picture of one person's sample, a value a timestep: ``L_cfa`` over the features' power, how much these
    vary in a face, and the lights of :func:`lights`. Noise and pose are the number's."""
    phase = Phase("clone pictures", 1, (CONTROL,), MODES)
    plain = MagicIdTraining(phases=(phase,), batch=1, empty=0.0, nobody=0.0, everywhere=1.0)
    empty = torch.zeros_like(sample.text)  # never asked for
    batch = Sampler(plain, [sample], empty, len(lab.pipeline.alphas_cumprod)).batch(number, phase, clone=True)
    found: dict[str, list[float]] = {}
    layouts = {CONTROL: unet_layout(lab.control)}
    with training_host(lab.pipeline.unet, lab.pipeline.alphas_cumprod, lab.control) as host:
        attention = {CONTROL: lab.weights.attention[CONTROL].float()}
        model = MagicIdModel(host, lab.weights.encoder.float(), attention, layouts, lab.control).eval()
        for t in TIMESTEPS:
            at = replace(batch, timesteps=torch.full_like(batch.timesteps, t))
            features = model(at, (CONTROL,), keep=True)[1][CONTROL].features
            _, told = clone_face_loss(features, at.boxes)
            seen = {name: float(told[name]) for name in ("relative", "variation")} | lights(model, at, features)
            for name, value in seen.items():
                found.setdefault(name, []).append(value)
    return found


def lights(model: MagicIdModel, batch: Batch, features: Mapping) -> dict[str, float]:
    """How strong the identity's part of the ControlNet's first cross-attention is in each face (its norm, weighed by G
    of Eq. 2), as a multiple of its mean outside both: ``fainter`` and ``brighter`` face.

    What reaches that layer is the same without identities, so its part is the difference of two calls.
    """
    first = model.layouts[CONTROL].blocks[0]
    nobody = model(replace(batch, planes=torch.zeros_like(batch.planes)), (CONTROL,), keep=True)[1][CONTROL].features
    grid, features_with = features[first]
    part = (features_with - nobody[first][1]).norm(dim=-1)
    left, right, outside = in_faces(part, grid, batch.boxes)
    return {"fainter": min(left, right) / outside, "brighter": max(left, right) / outside}


def in_faces(part: Tensor, grid: Grid, boxes: Tensor) -> tuple[float, float, float]:
    """``1 T`` over a doubled picture's grid -> mean in the left face, in the right one, and outside both."""
    rows, columns = grid
    halves = part.unflatten(1, (rows, 2, columns // 2)).unbind(2)  # 1 h w each
    window = face_window(boxes, (rows, columns // 2))
    left, right = (float((half * window).sum() / window.sum()) for half in halves)
    beside = torch.stack([half[window == 0] for half in halves])
    return left, right, float(beside.mean())


# --- pictures ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def twice(lab: Lab, case: Case, number: int, seeds: Sequence[int]) -> dict[str, list[float]]:
    """One identity without a region, under the pose of two people who are both that person.

    Returns:
        ``placed``: of both places, a value a face. ``own``: similarity of the placed faces with the person. Where both
        are there, a value a picture: ``lesser`` of these, and similarity ``between`` both.
    """
    side, person = lab.pipeline.side, case.people[number % 2]
    who = {"identity": person.identity, "word": person.identity.gender}
    picture = replace(case.picture, figures=tuple(replace(figure, **who) for figure in case.picture.figures))
    truths = ground_truth(picture, side)
    pose = pose_picture(truths, side, SKELETON)
    request = MagicIdRequest([lab.placed(person, None)], places=(CONTROL,), pose=pose)
    images = generate(lab.pipeline, lab.weights, picture.caption, seeds, request, lab.control, lab.steps, lab.scale)
    known = lab.vector(person)
    found: dict[str, list[float]] = {"placed": [], "own": [], "lesser": [], "between": []}
    for faces, vectors in lab.judge.vectors(images):
        there = []
        for truth in truths:
            overlap = [intersection_over_union(face.box, truth.box) for face in faces]
            best = max(range(len(faces)), key=overlap.__getitem__, default=None)
            placed = best is not None and overlap[best] > PLACED
            found["placed"].append(float(placed))
            there += [vectors[best]] if placed else []
        own = [float(vector @ known) for vector in there]
        found["own"] += own
        if len(there) == 2:
            found["lesser"].append(min(own))
            found["between"].append(float(there[0] @ there[1]))
    return found


def group(lab: Lab, case: Case, seeds: Sequence[int]) -> dict[str, list[float]]:
    """Two people by MGMICA in the ControlNet."""
    return asdict(measure_group(lab, case, lab.draw(case, seeds, CONTROLLED)))


# --- what came out ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measure:
    """A number of a record, and how it reads.

    Attributes:
        section, part: where it stands; ``face_sim`` counts an empty place as 0, ``apart`` is ``L_cfa`` over what
            varies within a face. title: in the table.
    """

    section: str
    part: str
    title: str

    def of(self, record: Mapping[str, Sequence[float]]) -> float | None:
        """A case's mean; None where nothing was seen to measure."""
        if self.part == "face_sim":
            return sum(record["own"]) / len(record["placed"])
        if self.part == "apart":
            return sum(record["relative"]) / sum(record["variation"])
        return float(np.mean(record[self.part])) if record[self.part] else None

    def pairs(self, records: Records) -> list[tuple[float, float]]:
        """With and without, of every case that tells both."""
        cases = whole_rows_of(records, self.section).values()
        told = [(self.of(case[WITH]), self.of(case[WITHOUT])) for case in cases]
        return [(a, b) for a, b in told if a is not None and b is not None]


RELATIVE = Measure(ATTENTION, "relative", "`L_cfa` over the features' power (Eq. 2)")
FAINTER = Measure(ATTENTION, "fainter", "identity in the fainter face, against outside (Fig. 5)")
FACE_SIM = Measure(TWO, "face_sim", "two side by side: FaceSim")
MEASURES = (
    RELATIVE,
    Measure(ATTENTION, "variation", "share of the features' power that varies within a face"),
    Measure(ATTENTION, "apart", "the first over the second"),
    FAINTER,
    Measure(ATTENTION, "brighter", "identity in the brighter face, against outside"),
    Measure(TWICE, "placed", "one identity asked twice: placed"),
    Measure(TWICE, "own", "one identity asked twice: similarity of placed faces"),
    Measure(TWICE, "lesser", "one identity asked twice: the less similar face"),
    Measure(TWICE, "between", "one identity asked twice: similarity between both faces"),
    *(
        Measure(section, part, f"{told}: {name}")
        for section, told in ((TWO, "two side by side"), (ANYWHERE, "two anywhere"))
        for part, name in (("placed", "placed"), ("own", "own"), ("other", "other"), ("wrong", "wrong among placed"),
                           ("face_sim", "FaceSim"))
    ),
)  # fmt: skip


def report(records: Records, steps: int) -> str:
    """The part of the page, with ``steps`` of DDIM; empty without records."""
    found = whole_rows_of(records, TRAINING)
    if not found:
        return ""
    (case,) = found.values()
    told = (
        f"Two trainings of {case[WITH]['steps']} and {case[WITHOUT]['steps']} steps that differ in nothing else: every "
        f"{case[WITH]['every']}th step of the last phase on clone pictures ({case[WITH]['minutes']:.0f} minutes of one "
        f"core that others shared), or none ({case[WITHOUT]['minutes']:.0f}). Identity through the ControlNet alone, "
        f"held-out people, {steps} DDIM steps. The intervals are over people; one training each tells nothing of the "
        "spread between trainings."
    )
    return f"### Clone Face Tuning, with and without\n\n{told}\n\n{table(records)}"


def table(records: Records) -> str:
    """Every measure with, without, and the paired difference over the cases that tell both."""
    lines = []
    for measure in MEASURES:
        pairs = measure.pairs(records)
        if len(pairs) > 1:
            with_it, without = (summarise(side) for side in zip(*pairs, strict=True))
            change = summarise([a - b for a, b in pairs])
            less = f"{change.mean:+.3f} ({change.low:+.3f} to {change.high:+.3f})"
            lines.append(f"| {measure.title} | {with_it.mean:.3f} | {without.mean:.3f} | {less} | {change.count} |")
    return "\n".join(["| | with | without | with less without (95%) | cases |", "|---|---|---|---|---|", *lines])


def directions(records: Records) -> list[Direction]:
    """The paper's statements; none without records."""
    told = (
        ("Eq. 4", "Clone Face Tuning makes both faces of a clone picture alike in attention",
         "share by which L_cfa over the power is lower", RELATIVE, lambda a, b: 1 - a / b),
        ("Fig. 5", "with it one identity lights up several faces",
         "identity in the fainter face against outside, with less without", FAINTER, lambda a, b: a - b),
        ("Table 3", "it helps with several people", "FaceSim, MGMICA in the ControlNet, with less without", FACE_SIM,
         lambda a, b: a - b),
    )  # fmt: skip
    found = []
    for source, claim, what, measure, difference in told:
        pairs = measure.pairs(records)
        if len(pairs) > 1:
            found.append(direction(source, claim, what, [difference(a, b) for a, b in pairs]))
    return found
