"""What a picture shows besides who: shot, clothes, accessory, expression, action, scene, style; and its caption."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, replace

from .identity import FACIAL_HAIR, HAIR_COLOURS, SKIN_WORDS, Identity, sample_identity

SHOTS = ("portrait", "half body", "full body")
ACCESSORIES = ("hat", "crown", "glasses", "sunglasses", "scarf", "tie", "headphones", "flower")
GARMENTS = ("shirt", "sweater", "suit", "dress", "hoodie")
COLOURS = {
    "red": "#d8342f", "orange": "#f08a2b", "yellow": "#f4cf3a", "green": "#3f9f52", "blue": "#2f62c9",
    "purple": "#7b3fb0", "pink": "#f08fb9", "black": "#26262b", "white": "#f4f4f0", "brown": "#7a5234",
}
PATTERNS = ("plain", "stripes", "dots")
#: which trait of a person a caption tells, and how often
TOLD = {"": 0.4, "hair": 0.25, "skin": 0.15, "eyes": 0.1, "beard": 0.1}
#: how many variants of a picture :func:`sample_variants` gives, what they differ in, and how often
VARIANTS = 4
VARIED = {"accessory": 0.5, "hair": 0.2, "skin": 0.05, "beard": 0.05, "expression": 0.1, "garment": 0.1}
#: accessories that show little, and how many times as often variants show them as others
FAINT = {"glasses": 3, "tie": 3, "headphones": 2, "flower": 2}
EXPRESSIONS = ("", "smiling", "sad", "surprised", "sleeping")
ACTIONS = ("standing", "waving", "arms raised", "hands on hips")
SCENES = {
    "studio": "in a studio", "snow": "in the snow", "jungle": "in the jungle", "beach": "on the beach",
    "city": "in the city", "night": "at night", "desert": "in the desert", "room": "in a room",
    "underwater": "under water", "meadow": "in a meadow",
}
STYLES = {
    "flat": "a picture of", "sketch": "a sketch of", "watercolor": "a watercolor of", "dark": "a dark picture of",
}


@dataclass(frozen=True)
class Item:
    """An accessory with its own look; the look is not told in the caption unless ``colour_told``."""

    kind: str
    colour: str
    pattern: str = "plain"


@dataclass(frozen=True)
class Figure:
    """One person.

    Attributes:
        centre: of the head, in fractions of the picture's side.
        head: its height, in the same unit.
        told: the trait the caption tells (a key of TOLD); empty for none.
    """

    identity: Identity
    garment: str
    colour: str
    item: Item | None = None
    expression: str = ""
    action: str = "standing"
    centre: tuple[float, float] = (0.5, 0.44)
    head: float = 0.58
    tilt: float = 0.0
    word: str = "person"
    told: str = ""


@dataclass(frozen=True)
class Picture:
    """Everything a picture shows. ``figures`` left to right; with none, ``item`` is shown alone, or the scene."""

    figures: tuple[Figure, ...]
    shot: str
    scene: str
    style: str
    item: Item | None = None
    seed: int = 0

    @property
    def caption(self) -> str:
        """The picture in words, as the text encoder sees it."""
        if not self.figures:
            return f"{STYLES[self.style]} {_article(self.item.kind)}, {SCENES[self.scene]}"
        people = " and ".join(_figure_words(f, self.shot) for f in self.figures)
        shot = f"{self.shot}, " if len(self.figures) == 1 else ""
        return f"{STYLES[self.style]} {people}, {shot}{SCENES[self.scene]}"


def _article(noun: str) -> str:
    if noun in ("glasses", "sunglasses", "headphones"):
        return noun
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def clothed(figure: Figure) -> str:
    """``woman wearing a red shirt``: a figure in the words that tell it from others in the caption."""
    return f"{figure.word} wearing {_article(figure.colour)} {figure.garment}"


def _figure_words(figure: Figure, shot: str) -> str:
    words = f"a {figure.word}"
    if trait := figure.identity.words(figure.told):
        words += f" with {trait}"
    words += f" wearing {_article(figure.colour)} {figure.garment}"
    if figure.item is not None:
        words += f" and {_article(figure.item.kind)}"
    if figure.expression:
        words += f", {figure.expression}"
    if figure.action != "standing" and shot != "portrait":
        words += f", {figure.action}"
    return words


def held_out_combination(accessory: str | None, scene: str) -> bool:
    """One accessory-and-scene pair in eight is never drawn for training."""
    if accessory is None:
        return False
    return hashlib.sha256(f"{accessory}|{scene}".encode()).digest()[0] % 8 == 0


def sample_item(rng: random.Random, kind: str | None = None) -> Item:
    """An accessory of ``kind`` (any if None) with a look of its own."""
    return Item(kind or rng.choice(ACCESSORIES), rng.choice(tuple(COLOURS)), rng.choice(PATTERNS))


def _place(rng: random.Random, shot: str, index: int, count: int) -> tuple[tuple[float, float], float]:
    """Head centre and head height, as fractions of the side, of person ``index`` of ``count``."""
    x = (index + 0.5) / count + rng.uniform(-0.04, 0.04) / count
    if shot == "portrait":
        return (x, rng.uniform(0.42, 0.48)), rng.uniform(0.52, 0.62) * (1.0 if count == 1 else 0.72)
    if shot == "half body":
        return (x, rng.uniform(0.27, 0.32)), rng.uniform(0.31, 0.36) * (1.0 if count < 3 else 0.8)
    head = rng.uniform(0.17, 0.23)
    return (x, 0.10 + head * 0.75), head


def sample_figure(rng: random.Random, shot: str, identity: Identity, index: int = 0, count: int = 1) -> Figure:
    """A person with clothes, expression and place drawn from ``rng``."""
    centre, head = _place(rng, shot, index, count)
    gender_told = rng.random() < 0.7
    return Figure(
        identity=identity,
        garment=rng.choice(GARMENTS),
        colour=rng.choice(tuple(COLOURS)),
        item=sample_item(rng) if rng.random() < 0.8 else None,
        expression=rng.choice(EXPRESSIONS),
        action=rng.choice(ACTIONS),
        centre=centre,
        head=head,
        tilt=rng.uniform(-6, 6),
        word=identity.gender if gender_told else "person",
        told=rng.choices(tuple(TOLD), tuple(TOLD.values()))[0],
    )


def sample_count(rng: random.Random, two: float = 0.13) -> int:
    """How many people a picture shows, 0 (an accessory alone) to 3; ``two``: share of pictures with two."""
    return rng.choices((0, 1, 2, 3), (0.05, 0.93 - two, two, 0.02))[0]


def sample_picture(
    rng: random.Random,
    identity: Identity | None = None,
    held_out: bool = False,
    shot: str | None = None,
    people: int | None = None,
) -> Picture:
    """A picture of one person (or ``people``), or now and then of an accessory alone.

    Args:
        rng: source of every choice, so that a seed fixes the picture.
        identity: who the first person is; drawn when None.
        held_out: draw identities and accessory-scene pairs that are never trained on.
        shot: one of SHOTS; drawn when None, portraits most often.
        people: 0 (accessory alone) to 4; drawn when None.
    """
    if people is None:
        people = sample_count(rng) if identity is None else 1
    shot = shot or rng.choices(SHOTS, (0.68, 0.20, 0.12))[0]
    style = rng.choices(tuple(STYLES), (0.82, 0.06, 0.06, 0.06))[0]
    seed = rng.randrange(2**31)
    if people == 0:
        scene = rng.choice(tuple(SCENES))
        return Picture((), "object", scene, style, item=sample_item(rng), seed=seed)
    if people > 1:
        shot = rng.choices(SHOTS, (0.7, 0.2, 0.1) if people == 2 else (0.0, 0.6, 0.4))[0]
    figures = tuple(
        sample_figure(rng, shot, identity if i == 0 and identity else sample_identity(rng, held_out), i, people)
        for i in range(people)
    )
    while True:
        scene = rng.choice(tuple(SCENES))
        combos = [held_out_combination(f.item.kind if f.item else None, scene) for f in figures]
        if held_out or not any(combos):
            return Picture(figures, shot, scene, style, seed=seed)


def sample_variants(rng: random.Random, varied: str | None = None) -> list[Picture]:
    """One picture of one person VARIANTS times, alike but for one thing that the captions tell.

    Args:
        rng: source of every choice.
        varied: a key of VARIED; drawn when None.
    """
    varied = varied or rng.choices(tuple(VARIED), tuple(VARIED.values()))[0]
    while True:
        picture = sample_picture(rng, people=1)
        figures = _varied(rng, picture.figures[0], picture.scene, varied)
        if len(figures) == VARIANTS and not any(figure.identity.held_out for figure in figures):
            return [replace(picture, figures=(figure,)) for figure in figures]


def _varied(rng: random.Random, figure: Figure, scene: str, what: str) -> list[Figure]:
    """VARIANTS figures that differ in ``what``; fewer where that cannot be had of this person in this scene."""
    who = figure.identity
    if what == "accessory":
        kinds = [kind for kind in ACCESSORIES if not held_out_combination(kind, scene)]
        item = sample_item(rng)
        kinds.sort(key=lambda kind: rng.random() ** (1 / FAINT.get(kind, 1)), reverse=True)
        items = [None, *(replace(item, kind=kind) for kind in kinds[: VARIANTS - 1])]
        return [replace(figure, item=shown) for shown in items]
    if what == "expression":
        return [replace(figure, expression=expression) for expression in rng.sample(EXPRESSIONS, VARIANTS)]
    if what == "garment":
        return [replace(figure, garment=garment) for garment in rng.sample(GARMENTS, VARIANTS)]
    if what == "hair":
        colours = [] if who.hair == "bald" else rng.sample(tuple(HAIR_COLOURS), VARIANTS)
        people = [replace(who, hair_colour=colour) for colour in colours]
    elif what == "skin":
        words = rng.sample(tuple(dict.fromkeys(SKIN_WORDS)), VARIANTS)
        people = [replace(who, skin=rng.choice([i for i, w in enumerate(SKIN_WORDS) if w == word])) for word in words]
    else:
        people = [replace(who, facial_hair=kind) for kind in FACIAL_HAIR if who.gender == "man"]
    return [replace(figure, identity=person, told=what) for person in people]


def sample_pair(rng: random.Random, held_out: bool = False, group: float = 0.0) -> tuple[Picture, Picture]:
    """The same person (or the same accessory) twice, in two pictures of their own: character sheet, mirror, diptych.

    Args:
        rng: source of every choice.
        held_out: as in :func:`sample_picture`.
        group: share of pairs whose second picture shows the person beside someone else, to the left or to the right.
    """
    identity = sample_identity(rng, held_out)
    left = sample_picture(rng, identity, held_out)
    word = left.figures[0].word
    if rng.random() < group:
        return left, _join(rng, sample_picture(rng, None, held_out, people=2), identity, word)
    right = sample_picture(rng, identity, held_out)
    right = replace(right, figures=(replace(right.figures[0], word=word),))
    if rng.random() < 0.4:
        right = replace(right, style=left.style)
    if left.figures[0].item and rng.random() < 0.3:
        if rng.random() < 0.5:
            right = Picture((), "object", left.scene, left.style, item=left.figures[0].item, seed=right.seed)
        elif not held_out_combination(left.figures[0].item.kind, right.scene):
            right = replace(right, figures=(replace(right.figures[0], item=left.figures[0].item),))
    return left, right


def _join(rng: random.Random, picture: Picture, identity: Identity, word: str) -> Picture:
    """``picture`` with one of its people made ``identity``; no traits told, so that two captions fit the window."""
    figures = [replace(figure, told="") for figure in picture.figures]
    index = rng.randrange(len(figures))
    figures[index] = replace(figures[index], identity=identity, word=word)
    return replace(picture, figures=tuple(figures))


def pair_caption(left: Picture, right: Picture) -> str:
    """Caption of two pictures side by side."""
    return f"{left.caption} next to {right.caption}"
