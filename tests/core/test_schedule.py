"""Noise levels by their three names, and what a prediction stands for."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler

from likeness.core.digest import digest
from likeness.core.schedule import (
    Schedule,
    clean_estimate,
    noise_from_velocity,
    schedule_sigmas,
    sigma_table,
    stable_diffusion_alphas,
    timestep_sigma,
    timesteps_of,
)

ALPHAS = stable_diffusion_alphas()


def test_stable_diffusions_schedule_is_the_libraries() -> None:
    theirs = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod
    torch.testing.assert_close(ALPHAS.float(), theirs, rtol=1e-4, atol=1e-6)
    table = sigma_table(ALPHAS)
    assert table.dtype == torch.float64 and (table.diff() > 0).all()
    assert (float(table[0]), float(table[-1])) == pytest.approx((0.0292, 14.6146), abs=1e-4)


def test_timesteps_and_sigmas_are_each_others_inverse() -> None:
    asked = [999, 601, 47, 0]
    sigmas = [timestep_sigma(ALPHAS, t) for t in asked]
    assert timesteps_of(sigmas, sigma_table(ALPHAS)) == asked
    assert timesteps_of([0.0, 1e9], sigma_table(ALPHAS)) == [0, 999]
    between = timestep_sigma(ALPHAS, 600.5)
    assert between == pytest.approx(math.sqrt(timestep_sigma(ALPHAS, 600) * timestep_sigma(ALPHAS, 601)))
    assert timestep_sigma(ALPHAS, 5000) == sigmas[0] and timestep_sigma(ALPHAS, -1) == pytest.approx(sigmas[-1])


def test_a_sampler_that_calls_twice_has_each_level_once() -> None:
    sigmas = schedule_sigmas(ALPHAS, torch.tensor([801, 401, 401, 1]))
    assert sigmas[-1] == 0 and len(sigmas) == 4
    schedule = Schedule(sigmas)
    assert [schedule.step(s) for s in sigmas[:-1]] == [0, 1, 2]


@pytest.mark.parametrize("t", [1, 500, 981])
def test_noise_velocity_and_the_clean_picture_belong_together(t: int) -> None:
    clean, noise = torch.randn(2, 4, 3, 3, dtype=torch.float64), torch.randn(2, 4, 3, 3, dtype=torch.float64)
    level = ALPHAS[torch.tensor([t, t])]
    a = level.view(-1, 1, 1, 1)
    noisy, velocity = a.sqrt() * clean + (1 - a).sqrt() * noise, a.sqrt() * noise - (1 - a).sqrt() * clean
    torch.testing.assert_close(noise_from_velocity(noisy, velocity, level), noise)
    torch.testing.assert_close(clean_estimate(noisy, noise, level), clean)


def test_digests_tell_content_shape_and_order() -> None:
    x = torch.arange(6.0)
    assert digest(x, "a") == digest(x.clone(), "a") == digest(x.half(), "a")
    others = [digest(x, "b"), digest(x.view(2, 3), "a"), digest("a", x), digest(x + 1, "a"), digest(x), digest(x, None)]
    assert len({digest(x, "a"), *others}) == 7
