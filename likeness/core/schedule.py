"""Where a noise level stands in a sampling schedule."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import bad_input

TOLERANCE = 1e-4  # relative; hosts compute the same sigma in different precisions


class Schedule:
    """A sampler's noise levels, by which any sampler is followed, however often it calls the model.

    Args:
        sigmas: VE noise levels of the run, first to last; T steps have T + 1 levels, the last usually 0.
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


def clean_estimate(noisy: Tensor, predicted: Tensor, alpha_bar: Tensor) -> Tensor:
    """``X_0|t = (x_t - sqrt(1 - a) eps) / sqrt(a)``: ``B 4 h w``, ``a`` = ``B``."""
    alpha_bar = alpha_bar.to(noisy).view(-1, 1, 1, 1)
    return (noisy - (1 - alpha_bar).sqrt() * predicted.to(noisy)) / alpha_bar.sqrt()


def noise_from_velocity(noisy: Tensor, velocity: Tensor, alpha_bar: Tensor) -> Tensor:
    """The noise a v-prediction stands for, ``sqrt(a) v + sqrt(1 - a) x_t``: ``B 4 h w``, ``a`` = ``B``."""
    alpha_bar = alpha_bar.view(-1, 1, 1, 1)
    return alpha_bar.sqrt() * velocity + (1 - alpha_bar).sqrt() * noisy


def timesteps_of(sigmas: Sequence[float] | Tensor, table: Tensor) -> list[int]:
    """Timesteps whose noise level is nearest in the logarithm.

    Args:
        sigmas: noise levels (VE parametrisation), any order; zero counts as timestep 0.
        table: ``T`` ascending noise levels of the model's training schedule, ``sqrt((1 - a) / a)``.
    """
    sigmas = torch.as_tensor(sigmas, dtype=torch.float64).flatten().clamp(min=1e-10)
    logs = table.detach().to("cpu", torch.float64).log()
    return (sigmas.log()[:, None] - logs).abs().argmin(dim=1).tolist()


def sigma_table(alphas_cumprod: Tensor) -> Tensor:
    """``T`` noise levels from the cumulative alphas."""
    alphas = alphas_cumprod.to(torch.float64)
    return ((1 - alphas) / alphas).sqrt()


def log_sigmas(alphas_cumprod: torch.Tensor) -> torch.Tensor:
    """Log of the VE noise level at every training timestep, ``T`` float64, ascending."""
    alphas = alphas_cumprod.double().cpu()
    return 0.5 * ((1 - alphas) / alphas).log()


def timestep_sigma(alphas_cumprod: torch.Tensor, timestep: float) -> float:
    """VE noise level at a timestep; between timesteps linear in its logarithm."""
    levels = log_sigmas(alphas_cumprod)
    t = min(max(float(timestep), 0.0), len(levels) - 1.0)
    low = min(int(t), len(levels) - 2)
    return float(torch.lerp(levels[low], levels[low + 1], t - low).exp())


def schedule_sigmas(alphas_cumprod: torch.Tensor, timesteps: torch.Tensor) -> list[float]:
    """VE noise levels of a scheduler's timesteps (repeated ones once), then 0."""
    unique = dict.fromkeys(float(t) for t in timesteps)
    return [*(timestep_sigma(alphas_cumprod, t) for t in unique), 0.0]
