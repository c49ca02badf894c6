"""Persona Train on a GPU with little memory: whose weights are where, no device mixed, one wait a step."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import comfy.model_management as management
import pytest
import torch
from support.comfy import tiny
from support.comfy.magicface import Parts
from support.comfy.virtual import card, for_card, on_card

from lab.virtual_gpu import DEVICE, Log
from likeness.faces.interface import Face, FaceModels
from likeness.hosts.comfy.persona import train as persona_train
from likeness.hosts.comfy.persona.train import Learned, TrainOptions, learn
from likeness.hosts.comfy.persona.training_host import step_memory, training_host
from likeness.training.persona.request import PersonaTraining

SIDE, STEPS = 64, 3
CLOSE = 0.01  # AdamW's first steps go by the gradients' signs, some of which rounding decides


@pytest.fixture(autouse=True)
def folder(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A models folder of the test's own."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))


class Means:
    """A face's vector is made of the mean of its colours."""

    name, size, margin = "means", 16, 0.25

    def __init__(self) -> None:
        self.model = torch.nn.Linear(3, 3, bias=False).requires_grad_(False)
        torch.nn.init.eye_(self.model.weight)

    def embed(self, faces: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(self.model(faces.mean(dim=(2, 3))), dim=1)


@pytest.fixture
def faces(monkeypatch: pytest.MonkeyPatch) -> FaceModels:
    """Face models that find one face."""
    monkeypatch.setattr("likeness.hosts.comfy.faces.models.private_embedder", lambda _: Means())
    found = [Face((8.0, 8.0, 40.0, 48.0), 0.9)]
    return FaceModels("drawn", SimpleNamespace(name="drawn", detect=lambda images: [found] * len(images)), None)


@pytest.fixture(scope="module")
def parts(parts: Parts) -> Parts:
    """With a small UNet."""
    return replace(parts, model=tiny.model(tiny.diffusers_unet(**tiny.TWO_LEVELS)))


@pytest.fixture
def parts_on_card() -> Iterator[Parts]:
    """The same checkpoint, its models not loaded yet."""
    model, clip, vae = tiny.model(tiny.diffusers_unet(**tiny.TWO_LEVELS)), tiny.clip(), tiny.vae()
    for patcher in (model, clip.patcher, vae.patcher):
        for_card(patcher)
    vae.device = DEVICE
    yield Parts(model, clip, vae, [])


def request(**changes: Any) -> PersonaTraining:
    return PersonaTraining(**{"steps": STEPS, "learning_rate": 1e-3, "supercategory": "man", **changes})


def curve(parts: Parts, log: Log, asked: PersonaTraining, **options: Any) -> tuple[Learned, list[float], list[int]]:
    """What is learnt, and the losses and waits of every step."""
    losses, waits = [], []
    tick = persona_train.Progress.__call__

    def step(self: Any, report: Any) -> None:
        losses.append(report.loss)
        waits.append(log.syncs)
        tick(self, report)
        log.clear()

    pictures = torch.rand(2, 3, 90, 80, generator=torch.Generator().manual_seed(0))
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():  # as the host runs nodes
        patch.setattr(persona_train.Progress, "__call__", step)
        log.clear()
        given = TrainOptions(asked, side=SIDE, resume=False, **options)
        made = learn(parts.model, parts.clip, parts.vae, pictures, torch.ones(1, 1, 8, 8), "man", given)
    return made, losses, waits


def tight(parts: Parts, asked: PersonaTraining) -> int:
    """Bytes of a card with no room for an original beside the copies and a step; the host asks for a tenth more."""
    networks = (parts.model.model, parts.clip.cond_stage_model)
    whole = sum(4 * p.numel() for network in networks for p in network.parameters())  # copies are in float32
    return int(1.1 * whole + step_memory(asked, SIDE)) - 2**10


@pytest.mark.parametrize(
    "changes",
    [{}, {"checkpointing": True}, {"precision": "bf16"}, {"stages": "iou", "warmup": 2}, {"identity": 1.0}],
    ids=lambda changes: ", ".join(changes) or "defaults",
)
def test_the_curve_is_the_cpus_and_a_step_waits_once(
    parts: Parts, parts_on_card: Parts, faces: FaceModels, changes: dict[str, Any]
) -> None:
    asked = request(**changes)
    _, wanted, _ = curve(parts, Log(), asked, faces=faces)
    with card(tight(parts_on_card, asked)) as log:
        made, losses, waits = curve(parts_on_card, log, asked, faces=faces)
    assert losses == pytest.approx(wanted, rel=0.05 if "precision" in changes else CLOSE)
    assert waits[-(STEPS - 1) :] == [1] * (STEPS - 1), "opening the host belongs to the first step"
    assert all(p.device.type == "cpu" for p in made.persona.mapper.parameters())


def test_previews_are_drawn_between_steps(parts_on_card: Parts) -> None:
    asked = request()
    with card(tight(parts_on_card, asked)) as log:
        made, _, waits = curve(parts_on_card, log, asked, preview_every=2)
    assert made.preview.shape == (1, SIDE, SIDE, 3) and torch.isfinite(made.preview).all()
    assert waits[1] == 1


def test_copies_are_made_aside_and_the_originals_make_room_for_a_step(
    parts_on_card: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request(image_width=0)
    model, clip = parts_on_card.model, parts_on_card.clip
    wanted: list[float] = []
    load = management.load_models_gpu

    def places(*modules: torch.nn.Module) -> set[str]:
        return {p.device.type for module in modules for p in module.parameters()}

    def watched(models: list, memory_required: float = 0, **more: Any) -> None:
        wanted.append(memory_required)
        load(models, memory_required=memory_required, **more)

    monkeypatch.setattr(management, "load_models_gpu", watched)
    with card(tight(parts_on_card, asked)):
        host = training_host(model, clip, asked, SIDE)
        assert places(host.patcher.model) == {"cpu"}, "made where the host keeps what is not in use"
        assert {one.model for one in on_card()} == {model, clip.patcher}
        with host.open():
            assert places(host.patcher.model) == {DEVICE.type}
            assert [one.model for one in on_card()] == [host.patcher], "the originals went first"
            assert places(model.model, clip.cond_stage_model) == {"cpu"}
            assert wanted[-1] == host.memory >= step_memory(asked, SIDE)
            assert management.get_free_memory(DEVICE) >= host.memory
        del host
        gc.collect()
        assert on_card() == [], "the copies are dropped"
