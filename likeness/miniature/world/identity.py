"""Who a drawn person is: the traits that stay when clothes, pose, scene and style change."""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import asdict, astuple, dataclass

SKIN = ("#fbe0cf", "#f4c9a8", "#e6ac82", "#cf9062", "#a96c43", "#7d4a2c", "#54301d", "#ecc6b4")
HAIR_COLOURS = {
    "black": "#1d1a1f", "brown": "#5b3620", "blond": "#f0cb57", "ginger": "#d4622a", "grey": "#b6b6bd",
    "white": "#f3f1ea", "pink": "#ee6fa8", "blue": "#3b6fd8", "green": "#3fa45b", "purple": "#8447b5",
}
EYE_COLOURS = ("#3a2416", "#7a4a1c", "#2f6fc4", "#2f8f57", "#5d6670")
HAIR_WOMAN = ("bob", "long", "wavy", "afro", "bun", "ponytail", "pigtails", "short")
HAIR_MAN = ("bald", "buzz", "short", "spiky", "mohawk", "afro", "side", "long")
FACE_SHAPES = ("oval", "round", "square", "long", "heart")
BROWS = ("thin", "thick", "angled", "arched")
NOSES = ("button", "long", "wide", "pointed")
MOUTHS = ("small", "wide", "full", "thin")
FACIAL_HAIR = ("none", "moustache", "goatee", "beard")
MARKS = ("none", "freckles", "mole", "blush")

#: traits in words, for captions that tell a part of who someone is
SKIN_WORDS = ("pale", "light", "tan", "tan", "brown", "dark", "dark", "pale")
EYE_WORDS = ("black", "brown", "blue", "green", "grey")
HAIR_WORDS = {"long": "long", "wavy": "long", "ponytail": "long", "pigtails": "long", "afro": "curly"}


@dataclass(frozen=True)
class Identity:
    """One drawn person. Every field is visible in a portrait; glasses, hats and clothes are not part of it."""

    gender: str
    skin: int
    face: str
    hair: str
    hair_colour: str
    eye_colour: int
    eye_size: int
    eye_spacing: int
    brows: str
    nose: str
    mouth: str
    facial_hair: str
    marks: str

    @property
    def held_out(self) -> bool:
        """One identity in sixteen is never trained on; which one is fixed by a hash of its traits."""
        return _digest(astuple(self)) % 16 == 0

    def words(self, trait: str) -> str:
        """A trait as a caption tells it (``long green hair``); empty where the person lacks it.

        Args:
            trait: ``hair``, ``skin``, ``eyes`` or ``beard``; empty for none.
        """
        if trait == "hair" and self.hair != "bald":
            return f"{HAIR_WORDS.get(self.hair, '')} {self.hair_colour} hair".strip()
        if trait == "skin":
            return f"{SKIN_WORDS[self.skin]} skin"
        if trait == "eyes":
            return f"{EYE_WORDS[self.eye_colour]} eyes"
        if trait == "beard" and self.facial_hair != "none":
            return f"a {'moustache' if self.facial_hair == 'moustache' else 'beard'}"
        return ""

    def as_dict(self) -> dict:
        """Traits as a plain dictionary (for JSON and for the referees' labels)."""
        return asdict(self)


def _digest(value: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(value).encode()).digest()[:4], "little")


def _draw(rng: random.Random) -> Identity:
    gender = rng.choice(("woman", "man"))
    woman = gender == "woman"
    return Identity(
        gender=gender,
        skin=rng.randrange(len(SKIN)),
        face=rng.choice(FACE_SHAPES),
        hair=rng.choice(HAIR_WOMAN if woman else HAIR_MAN),
        hair_colour=rng.choice(tuple(HAIR_COLOURS)),
        eye_colour=rng.randrange(len(EYE_COLOURS)),
        eye_size=rng.randrange(3),
        eye_spacing=rng.randrange(3),
        brows=rng.choice(BROWS),
        nose=rng.choice(NOSES),
        mouth=rng.choice(MOUTHS),
        facial_hair="none" if woman or rng.random() < 0.45 else rng.choice(FACIAL_HAIR[1:]),
        marks="none" if rng.random() < 0.55 else rng.choice(MARKS[1:]),
    )


def sample_identity(rng: random.Random, held_out: bool = False) -> Identity:
    """Draw an identity from ``rng``: one of the trained ones, or one of those never trained on."""
    while True:
        identity = _draw(rng)
        if identity.held_out == held_out:
            return identity


def numbered_identity(number: int, held_out: bool = False) -> Identity:
    """The person of a number, as *Miniature Sample* counts them."""
    return sample_identity(random.Random(f"identity {number}"), held_out)


def identity_count() -> int:
    """How many different identities the world has."""
    shared = math.prod((len(SKIN), len(FACE_SHAPES), len(HAIR_COLOURS), len(EYE_COLOURS), 3, 3, len(BROWS), len(NOSES),
                        len(MOUTHS), len(MARKS)))
    return shared * (len(HAIR_WOMAN) + len(HAIR_MAN) * len(FACIAL_HAIR))
