"""DDIM inversion: the noise latents from which DDIM draws a given picture again."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..errors import bad_input

Denoise = Callable[[Tensor, float], Tensor]
"""``(x, sigma) -> x0``: the model's estimate of the clean latents ``B C h w``.

``x = z0 + sigma eps`` is in the variance-exploding (VE) form, ``sigma > 0``. That is the model of k-diffusion and of
ComfyUI's samplers; eps- and v-prediction look the same through it.
"""
Progress = Callable[[str, int, int, Tensor], None]
"""``(stage, steps done, steps in all, clean latents as estimated)``, the stage "inversion" or "restoration"; may raise
to stop."""
Record = Callable[[int], AbstractContextManager]
"""Entered round the model call that reaches level ``i`` of the schedule."""


@dataclass(frozen=True)
class Trajectory:
    """Latents of a picture at every noise level, from noise to clean.

    Attributes:
        sigmas: T + 1 descending VE noise levels, the last 0.
        latents: ``Z^_T ... Z^_0``, one ``B C h w`` a level, in VE form, float32.
        inputs: what the model was given at each of the first T levels when the features of that level were made, in
            VE form; empty where no model was asked.
    """

    sigmas: tuple[float, ...]
    latents: tuple[Tensor, ...]
    inputs: tuple[Tensor, ...] = ()

    @property
    def steps(self) -> int:
        """Number of steps T."""
        return len(self.sigmas) - 1


def check_sigmas(sigmas: Sequence[float]) -> tuple[float, ...]:
    """Noise levels as a tuple of floats.

    Raises:
        LikenessError: they do not fall from a finite level to 0.
    """
    levels = tuple(float(s) for s in sigmas)
    falling = all(a > b for a, b in pairwise(levels))
    if len(levels) < 2 or not falling or levels[-1] != 0 or not math.isfinite(levels[0]):
        raise bad_input("DIIR: noise levels", [round(s, 4) for s in levels], "falling levels that end at 0",
                        "Use a DDIM schedule of at least one step (ComfyUI: 'ddim_uniform').")
    return levels


def noise_estimate(denoise: Denoise, x: Tensor, sigma: float) -> Tensor:
    """``eps = (x - x0) / sigma``, whatever the model predicts."""
    return (x - denoise(x, sigma).to(x)) / sigma


def rescaled(x: Tensor, sigma: float, target: float) -> Tensor:
    """VE latents at ``sigma`` such that the model sees the same (variance-preserving) picture at level ``target``."""
    return x * math.sqrt((1 + target**2) / (1 + sigma**2))


@torch.no_grad()
def invert(
    denoise: Denoise,
    latents: Tensor,
    sigmas: Sequence[float],
    corrections: int = 0,
    progress: Progress | None = None,
    record: Record | None = None,
) -> Trajectory:
    """DDIM inversion by the noise estimate of the target level, ``z_t = z_{t-1} + (s_t - s_{t-1}) eps(z_{t-1}, t)``.

    The model is never asked at sigma 0, and its calls land on the levels that the restoration uses, which is what
    the fused features need.

    Args:
        denoise: the model without guidance and without identity.
        latents: ``Z0``, ``B C h w``, scaled as the model takes them.
        sigmas: T + 1 descending VE noise levels, the last 0.
        corrections: fixed-point corrections a step: the estimate is made again at the latents that it led to.
        progress: told after every step.
        record: entered round the last call of every step.

    Raises:
        LikenessError: the schedule cannot be inverted, or the latents hold NaN.
    """
    levels = check_sigmas(sigmas)
    x = _checked(latents)
    found, inputs = [x], []
    total = len(levels) - 1
    for level in range(total - 1, -1, -1):
        sigma, target = levels[level + 1], levels[level]
        y = rescaled(x, sigma, target)
        for call in range(corrections + 1):
            given = y
            with record(level) if record and call == corrections else nullcontext():
                eps = noise_estimate(denoise, given, target)
            y = x + (target - sigma) * eps
        x = y
        found.append(x)
        inputs.append(given)
        if progress is not None:
            progress("inversion", total - level, total, given - target * eps)
    return Trajectory(levels, tuple(reversed(found)), tuple(reversed(inputs)))


@torch.no_grad()
def noised(latents: Tensor, sigmas: Sequence[float], noise: Tensor) -> Trajectory:
    """The trajectory of plain image-to-image: ``Z0`` with one noise at every level. The fast mode's.

    Args:
        latents: ``Z0``, ``B C h w``.
        sigmas: T + 1 descending VE noise levels, the last 0.
        noise: unit Gaussian noise of the same shape.
    """
    levels = check_sigmas(sigmas)
    x, noise = _checked(latents), noise.to(latents.device, torch.float32)
    return Trajectory(levels, tuple(x + s * noise for s in levels))


@torch.no_grad()
def round_trip(denoise: Denoise, trajectory: Trajectory) -> Tensor:
    """Root mean square error per picture, ``B``, of DDIM from ``Z^_T`` back to ``Z0`` by the inversion's own model."""
    x = trajectory.latents[0]
    for sigma, lower in pairwise(trajectory.sigmas):
        x = ddim_step(x, denoise(x, sigma).to(x), sigma, lower)
    return (x - trajectory.latents[-1]).square().flatten(1).mean(1).sqrt()


def ddim_step(x: Tensor, clean: Tensor, sigma: float, lower: float) -> Tensor:
    """One DDIM step (eta 0) in VE form: ``x0 + lower eps``."""
    return clean + (x - clean) * (lower / sigma)


def _checked(latents: Tensor) -> Tensor:
    if latents.ndim != 4 or 0 in latents.shape:
        raise bad_input("DIIR: latents", f"shape {tuple(latents.shape)}", "B C h w",
                        "Use a model and VAE for still pictures.")
    if not bool(torch.isfinite(latents).all()):
        raise bad_input("DIIR: latents", "NaN or infinite values", "finite numbers",
                        "Run the VAE in fp32 or bf16, or check the picture.")
    return latents.float()
