"""What suits the miniature when it learns a persona: its words and its defaults."""

from __future__ import annotations

from dataclasses import replace

import torch

from likeness.hosts.diffusers.miniature import miniature
from likeness.hosts.diffusers.pipeline import Pipeline
from likeness.training.persona.request import PersonaTraining

#: Prompts in the words the miniature knows; the evaluation's own are captions of held-out combinations. Most name
#: clothes and a scene: the loss looks at the face alone, and the words learn to be heard among others.
WORLD_TEMPLATES = (
    "a picture of a {}",
    "a picture of a {}, portrait",
    "a picture of a {}, portrait, in a studio",
    "a picture of a {} wearing a blue shirt, portrait, in a studio",
    "a picture of a {} wearing a white hoodie, portrait, in the snow",
    "a picture of a {} wearing a green suit, portrait, in the city",
    "a picture of a {} wearing a yellow sweater, portrait, on the beach",
    "a picture of a {} wearing a red dress, portrait, in a room",
    "a picture of a {} wearing a black shirt, portrait, in a meadow",
    "a picture of a {} wearing a brown hoodie, portrait, at night",
    "a picture of a {} wearing a pink shirt, portrait, in the desert",
    "a picture of a {} wearing a purple suit, portrait, in the jungle",
)
WORLD_TANDEM = tuple(
    f"a picture of a {{}} wearing a {clothes}, portrait, {scene}"
    for clothes, scene in (
        ("red shirt", "in the snow"), ("blue suit and a hat", "in the city"), ("green dress", "on the beach"),
        ("yellow hoodie and a scarf", "at night"), ("pink sweater and a crown", "in the jungle"),
        ("black suit and a tie", "in a room"), ("white shirt and sunglasses", "in the desert"),
        ("orange dress and a flower", "in a meadow"), ("purple hoodie and headphones", "under water"),
        ("brown sweater and glasses", "in the city"),
    )
)  # fmt: skip


def persona_miniature() -> Pipeline:
    """The miniature as the tables of docs/persona.md were made with it: training repeats them to the digit."""
    return miniature(torch.contiguous_format)


def miniature_request(**changes: object) -> PersonaTraining:
    """Defaults that suit the miniature: its words, and fewer, larger steps than a full model takes.

    Chosen on held-out people that no table uses: the stage at much noise brings the person nearest; going back to the
    plain word below it (the paper's introduction; the released code holds the last words) keeps more of the prompt at
    equal identity; eight words bring the person nearer than four in a context this narrow, at the same cost.
    """
    base = PersonaTraining(
        supercategory="person",
        steps=150,
        batch=2,
        tokens=8,
        learning_rate=2e-3,
        low=500,
        high=900,
        late="supercategory",
        templates=WORLD_TEMPLATES,
        tandem_prompts=WORLD_TANDEM,
        residual_dropout=0.25,
    )
    return replace(base, **changes)
