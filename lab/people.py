"""Drawn people for demonstrations, tables and tests: held-out persons, concepts and prompts."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from likeness.miniature.world import Identity, Picture, ground_truth, render, sample_identity, sample_picture
from likeness.miniature.world.spec import Figure, clothed, sample_figure


@dataclass(frozen=True)
class Person:
    """A held-out person of the drawn world with one portrait.

    ``image``: ``3 H W``; ``mask``: head with hair, ``1 H W``; ``box``: the face's, in pixels.
    """

    identity: Identity
    image: Tensor
    mask: Tensor
    box: tuple[float, float, float, float]


def draw_person(number: int, size: int) -> Person:
    """Held-out person ``number``: a plain portrait in a studio, neutral, without accessory."""
    rng = random.Random(f"persona {number}")
    identity = sample_identity(rng, True)
    figure = replace(
        sample_figure(rng, "portrait", identity), item=None, expression="", centre=(0.5, 0.46), head=0.58, tilt=0.0,
        word="person", told="",
    )  # fmt: skip
    picture = Picture((figure,), "portrait", "studio", "flat", seed=rng.randrange(2**31))
    truth = ground_truth(picture, size)[0]
    image = torch.from_numpy(render(picture, size)).permute(2, 0, 1).float() / 255
    return Person(identity, image, torch.from_numpy(truth.face)[None].float(), truth.box)


@dataclass(frozen=True)
class DrawnConcept:
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

    concepts: tuple[DrawnConcept, ...]
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


def make_concept(identity: Identity, rng: random.Random, side: int) -> DrawnConcept:
    """Draw a person's reference picture at ``side`` pixels."""
    picture = reference_picture(identity, rng)
    truth = ground_truth(picture, side)[0]
    rows = np.arange(side)[:, None]
    mask = truth.person & (rows <= truth.box[3])
    image = torch.from_numpy(render(picture, side)).permute(2, 0, 1).float() / 255
    return DrawnConcept(identity, image, torch.from_numpy(mask).float(), truth.box, identity.gender)


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
