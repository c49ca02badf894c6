"""Prompt sets of this pack. ``{}`` is the persona. None of them is an evaluation prompt (a test compares)."""

from __future__ import annotations

TEMPLATES: tuple[str, ...] = (
    "a photo of {}",
    "a portrait of {}",
    "a picture of {}",
    "a close-up of {}",
    "an image showing {}",
    "a sharp photo of {}",
    "a soft photo of {}",
    "a bright picture of {}",
    "a dim picture of {}",
    "a snapshot of {}",
    "a studio shot of {}",
    "a plain photo of {}",
    "a candid photo of {}",
    "a framed photo of {}",
    "a clean photo of {}",
    "a small photo of {}",
    "a large photo of {}",
    "a detailed image of {}",
    "a nice photo of {}",
    "a simple picture of {}",
    "a front view of {}",
    "a tight crop of {}",
    "a fresh photo of {}",
    "a colour photo of {}",
    "one photo of {}",
    "the photo of {}",
    "my photo of {}",
    "this is {}",
)
"""Training prompts for the denoising loss: nothing but the persona, in many wordings."""

STYLE_TEMPLATES: tuple[str, ...] = (
    "a picture in the manner of {}",
    "a drawing in the manner of {}",
    "an image that looks like {}",
    "something painted like {}",
    "a portrait in the look of {}",
    "a landscape in the look of {}",
    "an illustration made like {}",
    "a sheet drawn like {}",
    "a work in the taste of {}",
    "art that resembles {}",
)
"""Training prompts for a style."""

TANDEM_PROMPTS: tuple[str, ...] = (
    "{} feeding pigeons on a wet square",
    "{} under a striped umbrella",
    "{} carrying a basket of lemons",
    "{} beside an old tractor",
    "{} playing the cello on a balcony",
    "{} riding a tram at dawn",
    "{} with a crown of daisies",
    "{} in a green raincoat",
    "{} holding a lantern in a cave",
    "{} painting a wooden fence",
    "{} asleep in a hammock",
    "{} laughing at a market stall",
    "{} wearing round sunglasses",
    "{} on a windy pier",
    "{} in front of a red barn",
    "{} baking bread in a small bakery",
    "{} with a parrot on the shoulder",
    "{} waiting at a bus stop in the fog",
    "{} rowing a boat across a lake",
    "{} climbing a ladder in an orchard",
    "{} wearing a knitted scarf",
    "{} repairing a bicycle",
    "{} at a desk full of letters",
    "{} drinking tea on a train",
    "{} watching fireworks from a roof",
    "{} in a field of sunflowers",
    "{} dancing in the rain",
    "{} planting tomatoes",
    "{} carved from marble",
    "{} as a paper puppet",
    "{} drawn with coloured chalk",
    "{} on an old postage stamp",
    "{} embroidered on a cushion",
    "{} printed on a tin box",
    "{} as a stained glass window",
    "{} sculpted out of clay",
    "{} with a telescope on a hill",
    "{} behind a steamed window",
    "{} walking a small dog along the river",
    "{} blowing out candles on a cake",
)
"""Forty prompts for Tandem Equilibrium: the persona beside words that must keep their say."""


def fill(template: str, placeholder: str) -> str:
    """Put the placeholder into a template's ``{}``."""
    return template.replace("{}", placeholder)
