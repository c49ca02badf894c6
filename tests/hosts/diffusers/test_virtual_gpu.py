"""A headless run with the models on a GPU and everything given on the CPU: no device is mixed, nothing waits."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from lab.people import draw_person
from lab.virtual_gpu import DEVICE, move, virtual_gpu
from likeness.core.diir.request import DiirRequest
from likeness.core.magicface.cache import ReferenceCache
from likeness.core.magicface.request import MagicFaceRequest, Reference
from likeness.core.persona.mapper import Mapper, MapperConfig
from likeness.core.persona.persona import Persona
from likeness.core.persona.stages import Stages
from likeness.core.persona.text import supercategory_embedding
from likeness.faces.interface import Face
from likeness.hosts.diffusers.diir import Repair, repair_faces, target_of
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


@pytest.mark.parametrize("keep_style", ["off", "paper"])
def test_repairing_a_face_mixes_no_devices_and_waits_for_nothing_in_a_step(keep_style: str) -> None:
    person, picture = draw_person(1, SIDE), draw_person(2, 2 * SIDE).image
    face = Face((48.0, 40.0, 70.0, 68.0), 1.0)

    def repaired(pipeline: Pipeline, steps: int) -> torch.Tensor:
        target = target_of(pipeline, [person.image], person.word, [person.mask], weight=1.0)
        cache = ReferenceCache(host_mb=0)  # what goes to pinned memory after a run waits where there is none to pin
        target = replace(target, request=replace(target.request, cache=cache))
        request = DiirRequest(steps=steps, keep_style=keep_style)
        return repair_faces(pipeline, [picture], [Repair(0, face, target)], request).pictures[0]

    small = replace(miniature(), side=SIDE)
    wanted = repaired(small, 3)
    with virtual_gpu() as log, torch.no_grad():
        pipeline = replace(
            on_gpu(small), encode_image=lambda x: small.encode_image(x.cpu()).to(DEVICE),
            decode_image=lambda z: small.decode_image(z.cpu()).to(DEVICE),
        )  # fmt: skip
        waits = []
        for steps in (3, 6):
            log.clear()
            made = repaired(pipeline, steps)
            waits.append(log.syncs)
            if steps == 3:
                torch.testing.assert_close(made.cpu(), wanted, rtol=1e-3, atol=1e-3)
    calls = 1 + 1 + 1  # inversion, references, restoration: diffusers brings each call's timestep by a copy
    assert waits[1] - waits[0] <= 3 * (calls + 1)  # and the references' noise is drawn on the CPU, as every seed is
