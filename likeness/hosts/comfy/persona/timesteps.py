"""Which training timestep a noise level of the host's model is: personas know no other time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import comfy.model_sampling as host
import torch

from ....core.errors import bad_input
from ....core.schedule import sigma_table, timesteps_of

#: Noise levels of a run -> its timesteps.
TimestepReader = Callable[[Sequence[float]], list[int]]


def timestep_reader(sampling: Any, source: str) -> TimestepReader:
    """How to read timesteps off a model's noise levels, on the CPU.

    A model with a table of discrete timesteps tells its own, which is also what its UNet is told (a distilled model's
    table has fewer levels than timesteps). Others are asked for the timestep at which Stable Diffusion's own schedule
    has as much noise beside the picture: ``sigma / sigma_data`` for EDM and continuous v-prediction, and
    ``sigma / (1 - sigma)`` for flow matching, whose picture fades while the noise comes.

    Args:
        sampling: the model's ``model_sampling``.
        source: node and input to name in the error.

    Raises:
        LikenessError: a model whose noise levels mean something else.
    """
    if _is_discrete(sampling):
        own = copy.deepcopy(sampling).to("cpu")
        return lambda sigmas: [round(t) for t in own.timestep(torch.tensor(sigmas, dtype=torch.float32)).tolist()]
    relative = _relative_level(sampling, source)
    standard = _standard_table()
    return lambda sigmas: timesteps_of([relative(sigma) for sigma in sigmas], standard)


def _kind(name: str) -> Any:
    return getattr(host, name, ())  # which ones there are differs between the host's versions


def _is_discrete(sampling: Any) -> bool:
    others = (_kind("ModelSamplingDiscreteEDM"), _kind("StableCascadeSampling"))
    return isinstance(sampling, host.ModelSamplingDiscrete) and not isinstance(sampling, others)


def _relative_level(sampling: Any, source: str) -> Callable[[float], float]:
    """Noise beside a picture of unit variance, from the model's own noise level."""
    if isinstance(sampling, host.CONST):
        return lambda sigma: sigma / max(1 - sigma, 1e-6)
    edm = (host.ModelSamplingContinuousEDM, _kind("ModelSamplingDiscreteEDM"))
    if isinstance(sampling, edm) and not isinstance(sampling, _kind("ModelSamplingCosmosRFlow")):
        spread = getattr(sampling, "sigma_data", 1.0)
        return lambda sigma: sigma / spread
    raise bad_input(
        source,
        "a model with noise levels of its own kind",
        "one with Stable Diffusion's timesteps, EDM, continuous v-prediction or flow matching",
        "Remove the node that changes the model's sampling.",
    )


def _standard_table() -> torch.Tensor:
    """Stable Diffusion's own ``T`` noise levels."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return sigma_table((1 - betas).cumprod(0))
