"""Training on a GPU: no device is mixed, the curve is the CPU's, and a step waits once, for its losses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from support.magicid_tiny import EMPTY, TINY, Told, tiny_model, tiny_samples
from support.persona_tiny import WordTokenizer, config, photo, tiny_host, tiny_text
from torch import nn

from lab.virtual_gpu import DEVICE, Log, move, virtual_gpu
from likeness.core.persona.clip import JointText
from likeness.hosts.diffusers.persona import clip_text
from likeness.hosts.diffusers.pipeline import SCHEDULE, Pipeline
from likeness.training.magicid.request import MagicIdTraining
from likeness.training.persona.identity import Identifier
from likeness.training.persona.trainer import PersonaTrainer, train

STEPS = 3
CLOSE = 0.01  # AdamW's first steps go by the gradients' signs, some of which rounding decides
UNET = {
    "block_out_channels": (32, 64), "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip

# --- PersonaMagic -----------------------------------------------------------------------------------------------------


class Means(nn.Module):
    """A face's vector is the mean of its colours."""

    size, margin = 16, 0.25

    def embed(self, faces: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(faces.mean(dim=(2, 3)), dim=1)


def sdxl_host() -> Pipeline:
    """Of SDXL's layout: two joined encoders, several blocks a transformer, a pooled text and sizes told."""
    encoders = tiny_text(0), tiny_text(1, width=64)
    text = JointText([clip_text(one, skip=1, normalised=False) for one in encoders], (1, 0), WordTokenizer.eos)
    unet = {
        "cross_attention_dim": 96, "transformer_layers_per_block": [1, 2], "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 64 + 6 * 8,
    }  # fmt: skip
    return replace(
        tiny_host(**UNET, **unet),
        text=text,
        pool=lambda ids: encoders[1](input_ids=text.padded(ids, 0)).pooler_output,
    )


def persona_curve(device: torch.device, log: Log, host: Pipeline, **changes: Any) -> tuple[list[float], list[int]]:
    """Losses and waits of every step, those of finding the stages too."""
    if device == DEVICE:
        for module in (host.unet, *host.text.modules):
            move(module)
    photos = [replace(photo(i), identity=torch.eye(3)[i], box=(8.0, 8.0, 40.0, 48.0)).to(device) for i in range(2)]
    trainer = PersonaTrainer(config(steps=STEPS, **changes), host, photos, Identifier(Means()))
    losses, waits = [], []

    def step(report: Any) -> None:
        losses.append(report.loss)
        waits.append(log.syncs)
        log.clear()

    log.clear()
    train(trainer, step)
    return losses, waits


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"checkpointing": True, "batch": 3},
        {"identity": 1.0, "identity_below": 700},
        {"precision": "bf16"},
        {"prediction_type": "v_prediction", "combination": "concat"},
    ],
    ids=lambda changes: ", ".join(changes) or "defaults",
)
def test_a_persona_s_step_waits_once(changes: dict[str, Any]) -> None:
    kind = {"prediction_type": changes.pop("prediction_type", "epsilon")}
    hosts = [replace(tiny_host(**UNET), schedule={**SCHEDULE, **kind}) for _ in range(2)]
    wanted, _ = persona_curve(torch.device("cpu"), Log(), hosts[0], **changes)
    with virtual_gpu() as log:
        made, waits = persona_curve(DEVICE, log, hosts[1], **changes)
    assert made == pytest.approx(wanted, rel=0.05 if changes.get("precision") else CLOSE)
    assert waits[1:] == [1] * (STEPS - 1), "opening the host belongs to the first"


def test_a_persona_on_sdxl_s_layout_waits_once_a_step() -> None:
    wanted, _ = persona_curve(torch.device("cpu"), Log(), sdxl_host())
    with virtual_gpu() as log:
        made, waits = persona_curve(DEVICE, log, sdxl_host())
    assert made == pytest.approx(wanted, rel=CLOSE)
    assert waits[1:] == [1] * (STEPS - 1)


def test_finding_a_persona_s_stages_mixes_no_devices() -> None:
    changes = {"stages": "iou", "warmup": 1}
    wanted, _ = persona_curve(torch.device("cpu"), Log(), tiny_host(**UNET), **changes)
    with virtual_gpu() as log:
        made, waits = persona_curve(DEVICE, log, tiny_host(**UNET), **changes)
    assert made == pytest.approx(wanted, rel=CLOSE)
    assert waits[2:] == [1] * (STEPS - 1)


# --- MagicID ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def accelerate_there(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Accelerate's state is the process's own; it gets the virtual device and is forgotten afterwards."""
    AcceleratorState._reset_state(True)
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", str(DEVICE))
    yield
    AcceleratorState._reset_state(True)


def identity_trainer(asked: MagicIdTraining) -> Told:
    return Told(asked, tiny_model(asked), tiny_samples(), EMPTY, held_out=tiny_samples(8, seed=9))


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2, "balanced": False}, {"precision": "bf16"}])
def test_identity_attention_s_step_waits_once(
    changes: dict[str, Any], accelerate_there: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both phases, of which the second has steps on clone pictures."""
    asked = replace(TINY, **changes)
    with monkeypatch.context() as patch:
        patch.setenv("ACCELERATE_TORCH_DEVICE", "cpu")
        wanted = identity_trainer(asked)
        while not wanted.done:
            wanted.advance()
    AcceleratorState._reset_state(True)
    with virtual_gpu() as log:
        made, waits = identity_trainer(asked), []
        base = made.model.host
        base.alphas_cumprod, base.into, base.out = (x.to(DEVICE) for x in (base.alphas_cumprod, base.into, base.out))
        while not made.done:
            log.clear()
            made.advance()
            waits.append(log.syncs)
        log.clear()
        gaps = made.measure()
        assert log.syncs == 1
    assert any(report.clone for report in made.history)
    loose = 0.01 if changes.get("precision") else 1e-3
    assert [r.loss for r in made.history] == pytest.approx([r.loss for r in wanted.history], rel=loose)
    assert gaps == pytest.approx(wanted.measure(), abs=1e-3)
    assert waits == [1] * len(waits)
