"""``python run.py dev hero``: the pictures at the head of README.md and on the registry's page.

The miniature draws one held-out person in three scenes and two people in their places, with MagicFace and, by the same
seeds, without it.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lab.evaluation.magicface import WEIGHT, default_judge
from lab.people import Person, reference_person, single_cases
from likeness.core.magicface.request import MagicFaceRequest
from likeness.drawing.sheets import GREY, INK, PAPER, to_image
from likeness.hosts.diffusers.miniature import miniature
from likeness.hosts.diffusers.pipeline import Pipeline
from likeness.miniature.world import numbered_identity

DOCS = Path(__file__).parents[1] / "docs"
SIZE = (1600, 600)
#: 21 : 9, the shape of the registry's banners
BANNER = (1680, 720)
ICON = 400
TILE, GAP, MARGIN, TOP = 246, 10, 26, 66
SCENES = (
    "a picture of a woman wearing a yellow suit, portrait, on the beach",
    "a picture of a woman wearing a red hoodie, portrait, in the snow",
    "a picture of a woman wearing a blue sweater, portrait, in a meadow",
)
TOGETHER = "a picture of a woman wearing a red sweater and a man wearing a green suit, on the beach"
#: word in the prompt -> number of a held-out identity; from left to right
TWO = {"woman wearing a red sweater": 20, "man wearing a green suit": 8}
#: ``lab.people``'s third single person; seeds of 1 to 3, chosen by eye: a head picture, not a measurement.
PERSON, PERSON_SEED, TWO_SEED = 2, 3, 1
ALPHA, STEPS, SCALE = 0.4, 25, 5.0


def main(argv: Sequence[str] = ()) -> int:
    """Write ``hero.jpg``, ``banner.jpg`` and ``icon.png`` into ``docs/`` and print the identity similarities."""
    if argv:
        sys.exit("run.py dev hero takes no arguments")
    pipeline, judge = miniature(), default_judge()
    person = single_cases(PERSON + 1, pipeline.side)[PERSON].people[0]
    pair = [numbered_person(number, word, pipeline.side) for word, number in TWO.items()]
    alone = {ours: scenes(pipeline, person, ours) for ours in (True, False)}
    two = {ours: places(pipeline, pair, ours) for ours in (True, False)}
    both = torch.cat([judge.embed(one.image, [one.box]) for one in pair])
    for ours, name in ((True, "with"), (False, "without")):
        mine = judge.similarity(alone[ours], judge.embed(person.image, [person.box])[0])
        theirs = judge.assignment(two[ours], both)[0]
        print(f"{name} MagicFace: identity {', '.join(f'{score:.2f}' for score in [*mine, *theirs])}")
    picture = compose(person, pair, alone, two)
    picture.save(DOCS / "hero.jpg", quality=88)
    framed(picture, BANNER).save(DOCS / "banner.jpg", quality=85)
    to_image(alone[True][0], ICON).save(DOCS / "icon.png")
    return 0


def scenes(pipeline: Pipeline, person: Person, ours: bool) -> Tensor:
    """The person in each scene, ``S 3 H W``."""
    made = []
    for prompt in SCENES:
        reference = pipeline.reference(person.image, person.word, prompt, person.mask, WEIGHT)
        request = MagicFaceRequest((reference,), alpha=ALPHA) if ours else None
        made.append(pipeline.generate(prompt, [PERSON_SEED], request, STEPS, SCALE))
    return torch.cat(made)


def places(pipeline: Pipeline, pair: Sequence[Person], ours: bool) -> Tensor:
    """Two people, each given a half of the picture, ``1 3 H W``."""
    references = tuple(
        pipeline.reference(one.image, one.word, TOGETHER, one.mask, WEIGHT, region=half)
        for one, half in zip(pair, torch.eye(2).split(1), strict=True)
    )
    request = MagicFaceRequest(references, alpha=ALPHA) if ours else None
    return pipeline.generate(TOGETHER, [TWO_SEED], request, STEPS, SCALE)


def numbered_person(number: int, word: str, side: int) -> Person:
    """A held-out person, as *Miniature Sample* numbers them."""
    who = numbered_identity(number, held_out=True)
    return replace(reference_person(who, random.Random(number), side), word=word)


def compose(person: Person, pair: Sequence[Person], alone: dict[bool, Tensor], two: dict[bool, Tensor]) -> Image.Image:
    """References and pictures, with MagicFace above and without it below."""
    out = Image.new("RGB", SIZE, PAPER)
    draw = ImageDraw.Draw(out)
    step, right = TILE + GAP, SIZE[0] - MARGIN - TILE
    for row, ours in enumerate((True, False)):
        y = TOP + row * step
        for i, picture in enumerate(alone[ours]):
            out.paste(to_image(picture, TILE), (MARGIN + (i + 1) * step, y))
        out.paste(to_image(two[ours][0], TILE), (right, y))
        out.paste(to_image(pair[row].image, TILE), (right - step, y))
    out.paste(to_image(person.image, TILE), (MARGIN, TOP))
    big, small = ImageFont.load_default(30), ImageFont.load_default(24)
    draw.text((MARGIN, 18), "one picture of her", fill=INK, font=big)
    draw.text((MARGIN + step, 18), "any scene your checkpoint can draw", fill=INK, font=big)
    draw.text((right - step, 18), "two people", fill=INK, font=big)
    draw.text((right, 18), "in their places", fill=INK, font=big)
    below = (MARGIN, TOP + step + TILE // 2)
    draw.multiline_text(below, "the same prompts\nand seeds without it", fill=GREY, font=small, anchor="lm", spacing=8)
    return out


def framed(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture in the middle of a white one of that size."""
    out = Image.new("RGB", size, PAPER)
    out.paste(picture, ((size[0] - picture.width) // 2, (size[1] - picture.height) // 2))
    return out
