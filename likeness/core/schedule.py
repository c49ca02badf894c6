"""Noise levels: those a model was trained at, and where one stands in a sampler's schedule.

One noise level has three names: the training timestep ``t`` (0 is almost clean), the cumulative alpha ``a``
(``x_t = sqrt(a) x_0 + sqrt(1 - a) eps``), and sigma, ``sqrt((1 - a) / a)``, the noise beside an unscaled picture (VE).
Samplers are followed by sigma, which every host can tell.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import bad_input

TOLERANCE = 1e-4  # relative; hosts compute the same sigma in different precisions


# --- a sampler's schedule ---------------------------------------------------------------------------------------------


class Schedule:
    """A sampler's noise levels, by which any sampler is followed, however often it calls the model.

    Args:
        sigmas: noise levels of the run, first to last; T steps have T + 1 levels, the last usually 0.

    Raises:
        LikenessError: fewer than two levels, or a negative one.
    """

    def __init__(self, sigmas: Sequence[float]) -> None:
        levels = [float(s) for s in sigmas]
        if len(levels) < 2 or any(not s >= 0 for s in levels):
            raise bad_input(
                "sampling schedule", f"{len(levels)} noise levels", "at least two, none negative", "Sample >= 1 step."
            )
        self.sigmas = tuple(sorted(levels, reverse=True))

    @property
    def steps(self) -> int:
        """Number of steps T."""
        return len(self.sigmas) - 1

    def step(self, sigma: float) -> int:
        """Index 0..T-1 of the step a noise level belongs to: from its own level down to above the next one."""
        reached = sum(level * (1 + TOLERANCE) >= sigma for level in self.sigmas[:-1])
        return max(0, reached - 1)

    def before(self, sigma: float, share: float) -> bool:
        """Whether ``sigma`` lies in the first ``share`` of the steps (share 0: never, 1: always)."""
        return self.step(sigma) < share * self.steps - 1e-9


def same_sigma(a: float | None, b: float | None) -> bool:
    """Whether two noise levels are the same but for rounding."""
    if a is None or b is None:
        return a is b
    return abs(a - b) <= TOLERANCE * 0.01 * max(abs(a), abs(b))


# --- a model's training schedule --------------------------------------------------------------------------------------


def stable_diffusion_alphas(timesteps: int = 1000, first: float = 0.00085, last: float = 0.012) -> Tensor:
    """Cumulative alphas ``T`` of Stable Diffusion (SD1.x, SD2.x, SDXL), float64: betas linear in their square root."""
    betas = torch.linspace(first**0.5, last**0.5, timesteps, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0)


def sigma_table(alphas_cumprod: Tensor) -> Tensor:
    """Sigma at every training timestep: ``T`` cumulative alphas -> ``T`` float64 on the CPU, ascending."""
    alphas = alphas_cumprod.detach().to("cpu", torch.float64)
    return ((1 - alphas) / alphas).sqrt()


def timesteps_of(sigmas: Sequence[float] | Tensor, table: Tensor) -> list[int]:
    """Timesteps whose noise level is nearest in the logarithm.

    Args:
        sigmas: noise levels, any order; zero counts as timestep 0.
        table: ``T`` ascending noise levels, see :func:`sigma_table`.
    """
    sigmas = torch.as_tensor(sigmas, dtype=torch.float64).flatten().clamp(min=1e-10)
    logs = table.detach().to("cpu", torch.float64).log()
    return (sigmas.log()[:, None] - logs).abs().argmin(dim=1).tolist()


def timestep_sigma(alphas_cumprod: Tensor, timestep: float) -> float:
    """Sigma at a timestep; between timesteps linear in its logarithm."""
    logs = sigma_table(alphas_cumprod).log()
    t = min(max(float(timestep), 0.0), len(logs) - 1.0)
    low = min(int(t), len(logs) - 2)
    return float(torch.lerp(logs[low], logs[low + 1], t - low).exp())


def schedule_sigmas(alphas_cumprod: Tensor, timesteps: Sequence[float] | Tensor) -> list[float]:
    """Sigmas of a sampler's timesteps (repeated ones once), then 0: what :class:`Schedule` takes."""
    unique = dict.fromkeys(float(t) for t in timesteps)
    return [*(timestep_sigma(alphas_cumprod, t) for t in unique), 0.0]


# --- what a prediction stands for -------------------------------------------------------------------------------------


def clean_estimate(noisy: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """``x_0|t = (x_t - sqrt(1 - a) eps) / sqrt(a)``: ``B 4 h w`` twice, ``B`` cumulative alphas -> ``B 4 h w``."""
    alpha_bar = alpha_bar.to(noisy).view(-1, 1, 1, 1)
    return (noisy - (1 - alpha_bar).sqrt() * noise.to(noisy)) / alpha_bar.sqrt()


def noise_from_velocity(noisy: Tensor, velocity: Tensor, alpha_bar: Tensor) -> Tensor:
    """The noise a v-prediction stands for, ``sqrt(a) v + sqrt(1 - a) x_t``; shapes as in :func:`clean_estimate`."""
    alpha_bar = alpha_bar.to(noisy).view(-1, 1, 1, 1)
    return alpha_bar.sqrt() * velocity + (1 - alpha_bar).sqrt() * noisy
