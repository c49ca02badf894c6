"""A headless run with the models on a GPU and everything given on the CPU: no device is mixed, nothing waits."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from lab.people import draw_person
from lab.virtual_gpu import DEVICE, move, virtual_gpu
from likeness.core.magicface.request import MagicFaceRequest, Reference
from likeness.core.persona.mapper import Mapper, MapperConfig
from likeness.core.persona.persona import Persona
from likeness.core.persona.stages import Stages
from likeness.core.persona.text import supercategory_embedding
from likeness.hosts.diffusers.miniature import miniature
from likeness.hosts.diffusers.persona import clip_text
from likeness.hosts.diffusers.pipeline import Pipeline

PROMPT, PLAIN = "a picture of a S*, portrait, in the snow", "a picture of a person, portrait, in the snow"
SIDE, STEPS = 64, 4


@pytest.fixture(scope="module")
def given() -> tuple[Persona, Reference]:
    """A persona and a reference, on the CPU."""
    pipeline = miniature()
    torch.manual_seed(3)
    word = supercategory_embedding(pipeline.text, pipeline.tokenizer.pieces("person"))
    mapper = Mapper(MapperConfig(pipeline.text.widths, tokens=4, image_width=16), word).eval().requires_grad_(False)
    person = draw_person(1, SIDE)
    reference = pipeline.reference(person.image, "person", PLAIN, person.mask, 1.0)
    return Persona(mapper, Stages(200, 700), "person", torch.randn(1, 16)), reference


def on_gpu(pipeline: Pipeline) -> Pipeline:
    """A copy with the models there."""
    text = clip_text(move(copy.deepcopy(pipeline.text.body)))
    return replace(pipeline, unet=move(copy.deepcopy(pipeline.unet)), text=text)


def test_persona_and_magicface_together(given: tuple[Persona, Reference]) -> None:
    persona, reference = given
    options = {"personas": {"S*": persona}, "request": MagicFaceRequest((reference,), alpha=0.5), "steps": STEPS}
    noise = miniature().noise([1], SIDE, SIDE)
    wanted = miniature().sample(noise, PROMPT, **options)
    with virtual_gpu() as log, torch.no_grad():
        pipeline = on_gpu(miniature())
        log.clear()
        made = pipeline.sample(noise.to(DEVICE), PROMPT, **options)
        assert made.device == DEVICE
        assert log.syncs <= 30, "what is given is brought there once; then a step waits for the host's time and our map"
        torch.testing.assert_close(made.cpu(), wanted, rtol=1e-3, atol=1e-3)
