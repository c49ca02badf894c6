"""The loop of MMF: what it leaves alone, resumes and shares among processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from support.magicid_tiny import EMPTY, TINY, Told, tiny_model, tiny_samples

from likeness.core.errors import LikenessError
from likeness.training.magicid.request import CONTROL, UNET, MagicIdTraining, Phase, stages
from likeness.training.magicid.samples import Sampler
from likeness.training.magicid.trainer import train

ROOT = Path(__file__).parents[3]


def trainer(config: MagicIdTraining = TINY) -> Told:
    return Told(config, tiny_model(config), tiny_samples(), EMPTY, held_out=tiny_samples(8, seed=9))


def curve(run: Told) -> list[float]:
    return [report.loss for report in run.history]


@pytest.fixture(scope="module")
def whole() -> Told:
    return train(trainer())


def test_phases_follow_each_other_and_clone_every_second_step(whole):
    assert [r.phase for r in whole.history] == ["identity"] * 4 + ["pose"] * 4
    assert [r.clone for r in whole.history] == [False] * 5 + [True, False, True]
    assert {"cfa", "power", "relative", "variation"} == set(whole.history[5].parts)


def test_each_phase_trains_its_own(whole):
    fresh, learnt = tiny_model().state_dict(), whole.weights("drawn").attention
    for place in (UNET, CONTROL):
        assert not torch.equal(learnt[place].state_dict()["down0_0_0.to_v.weight"],
                               fresh[f"attention.{place}.down0_0_0.to_v.weight"])  # fmt: skip
    first = trainer()
    while first.step < 4:
        first.advance()
    left = {name: p.clone() for name, p in first.average.values.items()}
    train(first)
    for name, value in whole.average.values.items():
        learns = name.startswith(("attention.control", "control"))
        assert torch.equal(value, left[name]) != learns, name


@pytest.mark.parametrize("at", [2, 6])
def test_an_interrupted_run_goes_on_with_the_same_curve(whole, tmp_path, at):
    cut = trainer()
    while cut.step < at:
        cut.advance()
    cut.save(tmp_path / "state")
    again = trainer()
    again.restore(tmp_path / "state")
    train(again)
    assert curve(again) == curve(whole)[at:]
    for name, value in whole.average.values.items():
        assert torch.equal(again.average.values[name], value), name


def test_ctrl_c_leaves_a_state(tmp_path):
    run = trainer()

    def stop(report):
        if report.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(run, stop, tmp_path / "state")
    again = trainer()
    again.restore(tmp_path / "state")
    assert again.step == 3


def test_other_settings_or_nothing_to_resume_are_told(tmp_path):
    with pytest.raises(LikenessError, match="saved state"):
        trainer().restore(tmp_path / "none")
    run = trainer()
    run.advance()
    run.save(tmp_path / "state")
    with pytest.raises(LikenessError, match="learning_rate"):
        trainer(replace(TINY, learning_rate=1.0)).restore(tmp_path / "state")


def test_two_processes_give_one_process_s_result(whole, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    shared = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "WORLD_SIZE": "2",
              "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
    command = [sys.executable, "-m", "support.magicid_two", str(tmp_path / "two.json")]
    ranks = [subprocess.Popen(command, cwd=ROOT, env={**shared, "RANK": r, "LOCAL_RANK": r}) for r in "01"]
    try:
        assert [rank.wait(timeout=300) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    told = json.loads((tmp_path / "two.json").read_text())
    assert told["processes"] == 2
    assert told["curve"] == pytest.approx(curve(whole), rel=1e-3)
    for name, value in whole.average.values.items():
        assert torch.allclose(torch.tensor(told["average"][name]), value, atol=1e-4), name


def test_accumulated_parts_give_the_whole_batch(whole):
    parts = train(trainer(replace(TINY, accumulate=2)))
    assert curve(parts) == pytest.approx(curve(whole), rel=1e-3)
    told, expected = parts.history[5].parts, whole.history[5].parts
    assert [told[name] for name in ("cfa", "power")] == pytest.approx([expected["cfa"], expected["power"]], rel=1e-3)


@pytest.fixture
def fresh_accelerate():
    """Accelerate keeps one precision a process; another one is for this test alone."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_half_precision_learns_float32_weights_along_the_same_curve(whole, fresh_accelerate):
    half = train(trainer(replace(TINY, precision="bf16")))
    assert half.accelerator.mixed_precision == "bf16"
    assert curve(half) != curve(whole) and curve(half) == pytest.approx(curve(whole), rel=0.05)
    assert all(value.dtype == torch.float32 for value in half.average.values.values())


def test_a_budget_of_minutes_ends_the_run():
    run = train(trainer(replace(TINY, minutes=0.02)))
    assert run.done and run.position == TINY.steps and 1 <= run.spent < 30


def test_the_gap_sees_an_identity_that_matters(whole):
    gaps = whole.measure()
    assert {"gap", "pose gap"} <= set(gaps)
    model = whole.model
    other = list(model.attention[CONTROL].parameters())
    kept = [p.detach().clone() for p in other]
    with torch.no_grad():
        for p in other:
            p.zero_()
        assert whole.measure()["gap"] == 0
        for p, was in zip(other, kept, strict=True):
            p.copy_(was)
    assert whole.measure() == gaps


# --- batches ----------------------------------------------------------------------------------------------------------


def test_batches_depend_on_seed_and_step_alone():
    phase = TINY.phases[1]
    a, b = (Sampler(TINY, tiny_samples(), EMPTY, 1000) for _ in range(2))
    for step in (0, 7):
        one, two = a.batch(step, phase), b.batch(step, phase)
        assert all(torch.equal(getattr(one, n), getattr(two, n)) for n in ("latents", "noise", "timesteps", "planes"))
    assert not torch.equal(a.batch(0, phase).noise, a.batch(1, phase).noise)


def test_rows_of_one_scene_share_noise_and_timestep():
    config = replace(TINY, alike=1.0)
    batch = Sampler(config, tiny_samples(), EMPTY, 1000).batch(0, TINY.phases[0])
    assert len(set(batch.timesteps.tolist())) == 1 and int(batch.timesteps[0]) >= config.alike_from
    assert all(torch.equal(batch.noise[0], row) for row in batch.noise)
    assert not torch.equal(batch.latents[0], batch.latents[1])


def test_clone_pictures_show_all_twice_but_the_noise():
    batch = Sampler(TINY, tiny_samples(), EMPTY, 1000).batch(0, TINY.phases[1], clone=True)
    for name in ("latents", "planes", "pose"):
        left, right = getattr(batch, name).chunk(2, dim=-1)
        assert torch.equal(left, right), name
    left, right = batch.noise.chunk(2, dim=-1)
    assert not torch.equal(left, right)
    assert batch.vectors.shape[1] == 1


def test_bad_requests_are_told():
    with pytest.raises(LikenessError, match="no pictures"):
        Sampler(TINY, [], EMPTY, 1000)
    with pytest.raises(LikenessError, match="skeleton"):
        phases = (Phase("pose", 1, modes=("skeleton",)),)
        Sampler(replace(TINY, phases=phases), tiny_samples(), EMPTY, 1000)
    with pytest.raises(LikenessError, match="modes"):
        MagicIdTraining(phases=(Phase("pose", 1),))
    with pytest.raises(LikenessError, match="multiple"):
        trainer(replace(TINY, batch=5, accumulate=2))


def test_the_paper_s_phases_are_one_stage():
    stage, = stages(MagicIdTraining().phases)
    assert stage.steps == 1_150_000
    assert [stage.phase(p).name for p in (0, 60_000, 200_000)] == ["landmarks", "skeletons", "everything"]
