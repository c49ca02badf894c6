"""Drawn people for demonstrations, tables and tests: held-out persons with a reference picture, and what is asked for.

Everything comes from the numbers and seeds given: who it is, how they are drawn, and the prompt.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from likeness.faces.keypoints import BODY, LEFT_EYE, NOSE, RIGHT_EYE
from likeness.miniature.world import Identity, Picture, sample_identity, sample_picture
from likeness.miniature.world.render import FigureTruth, ground_truth, render
from likeness.miniature.world.spec import Figure, clothed, sample_figure

#: world's joints -> OpenPose's numbers; the world's left is as seen, OpenPose's right is the subject's
JOINTS = {
    "nose": 0, "neck": 1, "left_shoulder": 2, "left_elbow": 3, "left_wrist": 4, "right_shoulder": 5, "right_elbow": 6,
    "right_wrist": 7, "left_hip": 8, "left_knee": 9, "left_ankle": 10, "right_hip": 11, "right_knee": 12,
    "right_ankle": 13,
}  # fmt: skip


@dataclass(frozen=True)
class Person:
    """A person of the drawn world with one reference picture.

    Attributes:
        identity: who it is.
        image: ``3 H W`` in [0, 1].
        mask: head with hair, ``H W`` of 0 and 1.
        box: the face's box in pixels.
        word: word or phrase that stands for them in a prompt.
    """

    identity: Identity
    image: Tensor
    mask: Tensor
    box: tuple[float, float, float, float]
    word: str


@dataclass(frozen=True)
class Case:
    """One prompt with its people, left to right."""

    people: tuple[Person, ...]
    picture: Picture

    @property
    def prompt(self) -> str:
        """The caption of what is asked for."""
        return self.picture.caption

    @property
    def strips(self) -> tuple[Tensor, ...]:
        """One region for each person: equal upright strips, left to right, ``1 n``."""
        return torch.eye(len(self.people)).split(1)


# --- reference pictures -----------------------------------------------------------------------------------------------


def draw_person(number: int, side: int) -> Person:
    """Held-out person ``number``, drawn at ``side`` pixels; called a person. The mask is the head, hair and ears."""
    rng = random.Random(f"persona {number}")
    identity = sample_identity(rng, held_out=True)
    picture = portrait(identity, rng, word="person")
    truth = ground_truth(picture, side)[0]
    return _drawn(picture, side, truth, truth.face)


def reference_person(identity: Identity, rng: random.Random, side: int) -> Person:
    """A person drawn at ``side`` pixels, called by their gender. The mask is all of them above the chin."""
    picture = portrait(identity, rng, word=identity.gender, action="standing")
    truth = ground_truth(picture, side)[0]
    above_chin = np.arange(side)[:, None] <= truth.box[3]
    return _drawn(picture, side, truth, truth.person & above_chin)


def portrait(identity: Identity, rng: random.Random, **changes: object) -> Picture:
    """A plain portrait in a studio: neutral, no accessory; ``changes`` to the figure besides."""
    plain = {"item": None, "expression": "", "centre": (0.5, 0.46), "head": 0.58, "tilt": 0.0, "told": ""}
    figure = replace(sample_figure(rng, "portrait", identity), **{**plain, **changes})
    return Picture((figure,), "portrait", "studio", "flat", seed=rng.randrange(2**31))


def _drawn(picture: Picture, side: int, truth: FigureTruth, mask: np.ndarray) -> Person:
    figure = picture.figures[0]
    image = torch.from_numpy(render(picture, side)).permute(2, 0, 1).float() / 255
    return Person(figure.identity, image, torch.from_numpy(mask).float(), truth.box, figure.word)


# --- what is asked for ------------------------------------------------------------------------------------------------


def single_cases(count: int, side: int, seed: int = 1000, shot: str | None = "portrait") -> list[Case]:
    """Held-out people, each with a prompt of its own (held-out accessory-scene pairs included)."""
    cases = []
    for i in range(count):
        rng = random.Random(seed + i)
        identity = sample_identity(rng, held_out=True)
        person = reference_person(identity, rng, side)
        picture = sample_picture(rng, identity, held_out=True, shot=shot)
        picture = replace(picture, style="flat" if i % 3 else picture.style,
                          figures=(_asked(picture.figures[0], person.word),))
        cases.append(Case((person,), picture))
    return cases


def pair_cases(count: int, side: int, seed: int = 2000) -> list[Case]:
    """Prompts with a woman and a man side by side, each a held-out person.

    They are called by phrases ("woman wearing a red shirt"): the bare words are alike, and the clothes' words hold the
    two apart in the semantic map. No expression is told, so that eyes are open and faces can be compared.
    """
    cases = []
    for i in range(count):
        rng = random.Random(seed + i)
        identities = [_of_gender(rng, gender) for gender in ("woman", "man")]
        pair = [reference_person(identity, rng, side) for identity in identities]
        drawn = [sample_figure(rng, "portrait", identity, j, 2) for j, identity in enumerate(identities)]
        plain = [replace(figure, action="standing", item=None, expression="") for figure in drawn]
        figures = tuple(_asked(figure, person.word) for figure, person in zip(plain, pair, strict=True))
        picture = sample_picture(rng, identities[0], held_out=True)
        people = tuple(replace(person, word=clothed(f)) for person, f in zip(pair, figures, strict=True))
        cases.append(Case(people, replace(picture, figures=figures, shot="portrait", style="flat")))
    return cases


def _asked(figure: Figure, word: str) -> Figure:
    return replace(figure, word=word, told="")


def _of_gender(rng: random.Random, gender: str) -> Identity:
    while True:
        identity = sample_identity(rng, held_out=True)
        if identity.gender == gender:
            return identity


# --- poses ------------------------------------------------------------------------------------------------------------


def body_of(truth: FigureTruth) -> Tensor:
    """A figure's body, ``18 2`` in OpenPose's order; ears are not known."""
    body = torch.full((BODY, 2), torch.nan)
    for name, number in JOINTS.items():
        body[number] = torch.tensor(truth.joints[name])
    body[[RIGHT_EYE, LEFT_EYE, NOSE]] = torch.from_numpy(truth.five[:3]).float()
    return body
