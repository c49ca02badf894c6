"""The same run in both hosts: DDIM's noise levels, taken by ComfyUI's sampler."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import torch
from diffusers import DDIMScheduler

from likeness.core.schedule import schedule_sigmas

STEPS, CFG = 4, 5.0


def scheduler() -> DDIMScheduler:
    """Of diffusers, its timesteps set."""
    made = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=True,
        timestep_spacing="trailing",
    )  # fmt: skip
    made.set_timesteps(STEPS)
    return made


def in_comfy(applied: Any, schedule: DDIMScheduler, noise: torch.Tensor) -> torch.Tensor:
    """Clean latents of what an Apply node hands on: a model, a positive and a negative."""
    guider = comfy.samplers.CFGGuider(applied.model)
    guider.set_conds(applied.positive, applied.negative)
    guider.set_cfg(CFG)
    sigmas = torch.tensor(schedule_sigmas(schedule.alphas_cumprod, schedule.timesteps), dtype=torch.float32)
    with torch.inference_mode():
        sampler = comfy.samplers.sampler_object("euler")
        out = guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=0)
        return applied.model.model.process_latent_in(out).clone()


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest, relative to the other's largest value."""
    return float((one - other).abs().max() / other.abs().max())
