"""Stages by sigma for any sampler, contexts of a whole schedule, and bounds from attention."""

from __future__ import annotations

import pytest
import torch
from support.persona_tiny import alphas, ddim_timesteps

from likeness.core.errors import LikenessError
from likeness.core.persona.stages import (
    DYNAMIC,
    EARLY,
    LATE,
    Stages,
    attention_iou,
    calibrate,
    dynamic_timesteps,
    iou_curve,
    precompute,
    stages_from_iou,
)
from likeness.core.persona.text import Contexts
from likeness.core.schedule import sigma_table, timesteps_of

TABLE = sigma_table(alphas())


def schedules() -> dict[str, torch.Tensor]:
    """Sigmas (VE) of real samplers' schedules, their final zero included where they have one."""
    import diffusers as d

    base = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    made = {}
    for name, scheduler in {
        "dpm++ karras": d.DPMSolverMultistepScheduler(**base, use_karras_sigmas=True),
        "dpm++": d.DPMSolverMultistepScheduler(**base, steps_offset=1),
        "euler a": d.EulerAncestralDiscreteScheduler(**base),
        "heun": d.HeunDiscreteScheduler(**base),
    }.items():
        scheduler.set_timesteps(50)
        made[name] = scheduler.sigmas
    made["ddim"] = TABLE[ddim_timesteps(50)]
    lcm = d.LCMScheduler(**base)
    lcm.set_timesteps(8)
    made["lcm"] = TABLE[lcm.timesteps]
    made["alien"] = torch.tensor([14.6, 5.0, 3.9, 2.2, 1.6, 1.0, 0.3, 0.0])
    return made


@pytest.mark.parametrize("name", ["ddim", "dpm++", "dpm++ karras", "euler a", "heun", "lcm", "alien"])
def test_stage_of_every_sigma(name):
    sigmas = schedules()[name]
    stages = Stages(400, 800)
    found = [stages.at(t) for t in timesteps_of(sigmas, TABLE)]
    low, high = TABLE[400], TABLE[800]
    for sigma, stage in zip(sigmas.tolist(), found, strict=True):
        if sigma > high * 1.01:
            assert stage == EARLY
        elif low * 1.01 < sigma < high * 0.99:
            assert stage == DYNAMIC
        elif sigma < low * 0.99:
            assert stage == LATE
    assert {EARLY, DYNAMIC, LATE} == set(found)


def test_paper_counts_with_ddim_50():
    steps = ddim_timesteps(50)
    found = [Stages().at(t) for t in steps]
    assert (found.count(EARLY), found.count(DYNAMIC), found.count(LATE)) == (10, 20, 20)
    assert dynamic_timesteps(steps, Stages())[-1] == 401


def test_sigma_zero_and_table_round_trip():
    assert timesteps_of([0.0], TABLE) == [0]
    assert timesteps_of(TABLE, TABLE) == list(range(1000))


def encoder(timesteps: torch.Tensor) -> Contexts:
    key = timesteps.float().view(-1, 1, 1).expand(-1, 2, 3)
    return Contexts(key, -key)


EARLY_CONTEXT = Contexts(torch.full((1, 2, 3), 9e9), torch.full((1, 2, 3), 9e9))


def test_one_batch_and_lookup_by_timestep_not_by_index():
    batches = []

    def counted(t):
        batches.append(len(t))
        return encoder(t)

    staged = precompute(counted, EARLY_CONTEXT, Stages(400, 800), ddim_timesteps(50))
    assert batches == [20]
    for t in (601, 401, 781, 601):  # any order, twice
        assert staged.at(t).key.unique().item() == t and staged.at(t).value.unique().item() == -t
    assert staged.at(801).key is EARLY_CONTEXT.key
    assert staged.at(381).key.unique().item() == 401 == staged.at(0).key.unique().item()


def test_late_supercategory():
    staged = precompute(encoder, EARLY_CONTEXT, Stages(400, 800, "supercategory"), ddim_timesteps(50))
    assert staged.at(100).key is EARLY_CONTEXT.key


@pytest.mark.parametrize("schedule", [[301, 201, 1], [901, 301], [999]])
def test_schedules_that_miss_the_dynamic_stage(schedule):
    staged = precompute(encoder, EARLY_CONTEXT, Stages(400, 800), schedule)
    assert staged.timesteps == (400,) and staged.at(1).key.unique().item() == 400


@pytest.mark.parametrize(
    "schedule, speaks, as_at",
    [([999, 350, 0], 350, 400), ([999, 850, 100, 0], 850, 800), ([999, 0], 999, 800)],
)
def test_few_steps_that_jump_over_the_stage_speak_at_the_level_next_to_it(schedule, speaks, as_at):
    staged = precompute(encoder, EARLY_CONTEXT, Stages(400, 800, "supercategory"), schedule)
    for timestep in schedule:
        key = staged.at(timestep).key
        assert key is EARLY_CONTEXT.key if timestep != speaks else key.unique().item() == as_at


def test_midpoints_serve_two_stage_samplers_but_the_held_one_is_on_schedule():
    staged = precompute(encoder, EARLY_CONTEXT, Stages(400, 800), [900, 700, 500, 300], midpoints=True)
    assert staged.timesteps == (800, 700, 600, 500, 400)
    assert staged.at(602).key.unique().item() == 600
    assert staged.at(200).key.unique().item() == 500


@pytest.mark.parametrize("bad", [(500, 500, "held"), (-1, 10, "held"), (400, 800, "never")])
def test_bad_stages(bad):
    with pytest.raises(LikenessError):
        Stages(*bad)


def test_iou_of_known_maps():
    mask = torch.zeros(16, 16)
    mask[4:8, 4:8] = 1
    half = torch.zeros(16, 16)
    half[4:8, 4:6] = 3.0
    maps = torch.stack([mask * 0.2 + 0.1, half, 1 - mask])
    assert attention_iou(maps, mask).tolist() == [1.0, 0.5, 0.0]


def test_curve_gives_bounds_where_it_crosses():
    timesteps = list(range(980, -1, -20))
    size = 32
    mask = torch.zeros(size, size)
    mask[8:24, 8:24] = 1
    maps = []
    for t in timesteps:  # attention shrinks from the whole picture to the face as noise falls
        grow = round(8 * t / 980)
        one = torch.zeros(size, size)
        one[8 - grow : 24 + grow, 8 - grow : 24 + grow] = 1
        maps.append(one + 1e-3 * torch.rand(size, size))
    curve = iou_curve(timesteps, torch.stack(maps), mask, calibrated=False)
    assert list(curve.smooth) == sorted(curve.smooth)
    stages, found = stages_from_iou(curve, 0.4, 0.7)
    assert found and stages.low < stages.high
    value = dict(zip(curve.timesteps, curve.smooth, strict=True))
    assert value[stages.high] >= 0.4 > value[stages.high + 20]
    assert value[stages.low] <= 0.7 < value[stages.low - 20]
    open_end, _ = stages_from_iou(curve, 0.4, 1.0)
    assert open_end.low == 0, "nothing exceeds lambda2: no late stage"


def test_calibration_maps_to_the_papers_range():
    curve = calibrate(torch.tensor([0.1, 0.1, 0.1, 0.2, 0.3, 0.3, 0.3]))
    assert curve[0].item() == pytest.approx(0.5) and curve[-1].item() == pytest.approx(1.0)
    for flat in ([0.3] * 9, [0.05] * 3 + [0.07] * 3 + [0.12] * 3):
        assert calibrate(torch.tensor(flat)).tolist() == [0.5] * 9


def test_flat_curve_falls_back():
    mask = torch.zeros(8, 8)
    mask[2:4, 2:4] = 1
    curve = iou_curve([800, 400, 0], torch.rand(1, 8, 8).expand(3, 8, 8), mask)
    stages, found = stages_from_iou(curve)
    assert not found and (stages.low, stages.high) == (400, 800)
    with pytest.raises(LikenessError):
        stages_from_iou(curve, 0.8, 0.7)
