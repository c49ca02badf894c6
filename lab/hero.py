"""``python run.py dev hero``: the pictures at the head of README.md and on the registry's page.

The miniature draws one held-out person in three scenes and two people in their places, with MagicFace and, by the same
seeds, without it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lab.evaluation.magicface import FULL, GROUP_VARIANTS, PLACED, WEIGHT, default_judge, make_request
from lab.people import Case, Person, pair_cases, single_cases
from likeness.core.magicface.request import MagicFaceRequest
from likeness.drawing.sheets import GREY, INK, PAPER, to_image
from likeness.hosts.diffusers.miniature import miniature
from likeness.hosts.diffusers.pipeline import Pipeline

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
#: Of ``lab.people``'s held-out ones, and of the seeds 1 to 3, chosen by eye: a head picture, not a measurement.
PERSON, PERSON_SEED = 2, 3
PAIR, PAIR_SEED = 1, 2
STEPS, SCALE = 25, 5.0


def main(argv: Sequence[str] = ()) -> int:
    """Write ``hero.jpg``, ``banner.jpg`` and ``icon.png`` into ``docs/`` and print the identity similarities."""
    if argv:
        sys.exit("run.py dev hero takes no arguments")
    pipeline, judge = miniature(), default_judge()
    person = single_cases(PERSON + 1, pipeline.side)[PERSON].people[0]
    pair = pair_cases(PAIR + 1, pipeline.side)[PAIR]
    alone = {ours: scenes(pipeline, person, ours) for ours in (True, False)}
    two = {ours: places(pipeline, pair, ours) for ours in (True, False)}
    both = torch.cat([judge.embed(one.image, [one.box]) for one in pair.people])
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
        request = MagicFaceRequest((reference,), **GROUP_VARIANTS[FULL]) if ours else None
        made.append(pipeline.generate(prompt, [PERSON_SEED], request, STEPS, SCALE))
    return torch.cat(made)


def places(pipeline: Pipeline, pair: Case, ours: bool) -> Tensor:
    """Two people, each given a half of the picture, ``1 3 H W``."""
    request = make_request(pipeline, pair, GROUP_VARIANTS[PLACED if ours else "vanilla"])
    return pipeline.generate(pair.prompt, [PAIR_SEED], request, STEPS, SCALE)


def compose(person: Person, pair: Case, alone: dict[bool, Tensor], two: dict[bool, Tensor]) -> Image.Image:
    """References and pictures, with MagicFace above and without it below."""
    out = Image.new("RGB", SIZE, PAPER)
    draw = ImageDraw.Draw(out)
    step, right = TILE + GAP, SIZE[0] - MARGIN - TILE
    for row, ours in enumerate((True, False)):
        y = TOP + row * step
        for i, picture in enumerate(alone[ours]):
            out.paste(to_image(picture, TILE), (MARGIN + (i + 1) * step, y))
        out.paste(to_image(two[ours][0], TILE), (right, y))
        out.paste(to_image(pair.people[row].image, TILE), (right - step, y))
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
