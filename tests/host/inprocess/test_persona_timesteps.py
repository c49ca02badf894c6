"""Persona time under the host's own ways of sampling: the model's timestep, else that of the equal noise level."""

from __future__ import annotations

import math

import pytest
import torch
from comfy_extras import nodes_model_advanced as advanced

from likeness.core.errors import LikenessError
from likeness.core.schedule import sigma_table, stable_diffusion_alphas
from likeness.hosts.comfy.persona.timesteps import timestep_reader
from likeness.hosts.comfy.persona.training_host import predicts_velocity

#: Stable Diffusion's noise beside a picture at every timestep.
NOISE = sigma_table(stable_diffusion_alphas())
TIMESTEPS = [0, 1, 250, 400, 601, 800, 998, 999]


def sampling_of(parts, node, *values):
    model = parts.model if node is None else node().patch(parts.model, *values)[0]
    return model.get_model_object("model_sampling")


@pytest.mark.parametrize(
    "node, values",
    [(None, ()), (advanced.ModelSamplingDiscrete, ("eps", False)),
     (advanced.ModelSamplingDiscrete, ("v_prediction", False)),
     (advanced.ModelSamplingDiscrete, ("v_prediction", True))],
)  # fmt: skip
def test_a_table_of_all_timesteps_is_read_as_it_is(parts, node, values):
    """Also one whose noise has been rescaled to end without any signal."""
    sampling = sampling_of(parts, node, *values)
    assert timestep_reader(sampling, "Apply: model")(sampling.sigmas[TIMESTEPS].tolist()) == TIMESTEPS


def test_a_distilled_table_tells_the_timesteps_its_unet_is_told(parts):
    sampling = sampling_of(parts, advanced.ModelSamplingDiscrete, "lcm", False)
    told = [round(t) for t in sampling.timestep(sampling.sigmas).tolist()]
    assert len(told) < 1000 and told[-1] == 999
    read = timestep_reader(sampling, "Apply: model")
    assert read(sampling.sigmas.tolist()) == told
    nearest = [min(range(1000), key=lambda t: abs(math.log(NOISE[t]) - math.log(s))) for s in sampling.sigmas.tolist()]
    assert max(abs(a - b) for a, b in zip(told, nearest, strict=True)) <= 1, "and they have the same noise"


@pytest.mark.parametrize(
    "node, values, own",
    [
        (advanced.ModelSamplingContinuousEDM, ("v_prediction", 120.0, 0.002), lambda noise: noise),
        (advanced.ModelSamplingContinuousEDM, ("eps", 120.0, 0.002), lambda noise: noise),
        (advanced.ModelSamplingContinuousEDM, ("edm_playground_v2.5", 80.0, 0.002), lambda noise: noise / 2),
        (advanced.ModelSamplingContinuousV, ("v_prediction", 500.0, 0.03), lambda noise: noise),
        (advanced.ModelSamplingSD3, (3.0,), lambda noise: noise / (1 + noise)),
    ],
)
def test_other_noise_levels_are_read_by_the_noise_beside_the_picture(parts, node, values, own):
    """Checked by what the host mixes: its noise's share beside its picture's is that of the timestep."""
    sampling = sampling_of(parts, node, *values)
    levels = [own(NOISE[t].item()) for t in TIMESTEPS]
    assert timestep_reader(sampling, "Apply: model")(levels) == TIMESTEPS
    picture, noise = torch.zeros(1), torch.ones(1)
    for level, t in zip(levels, TIMESTEPS, strict=True):
        sigma = torch.tensor([level])
        share = sampling.noise_scaling(sigma, noise, picture), sampling.noise_scaling(sigma, picture, noise)
        spread = getattr(sampling, "sigma_data", 1.0)  # EDM's pictures are not of unit variance
        assert (share[0] / share[1] / spread).item() == pytest.approx(NOISE[t].item(), rel=1e-3)


def test_levels_of_another_kind_are_refused(parts):
    with pytest.raises(LikenessError, match=r"Apply: model.*noise levels of its own kind.*Remove the node"):
        timestep_reader(sampling_of(parts, advanced.ModelSamplingStableCascade, 2.0), "Apply: model")


@pytest.mark.parametrize("node, values, velocity", [
    (None, (), False), (advanced.ModelSamplingDiscrete, ("v_prediction", True), True),
])  # fmt: skip
def test_training_knows_noise_from_velocity(parts, node, values, velocity):
    assert predicts_velocity(sampling_of(parts, node, *values)) == velocity


@pytest.mark.parametrize(
    "node, values",
    [(advanced.ModelSamplingDiscrete, ("lcm", False)), (advanced.ModelSamplingDiscrete, ("x0", False)),
     (advanced.ModelSamplingContinuousEDM, ("eps", 120.0, 0.002)), (advanced.ModelSamplingSD3, (3.0,))],
)  # fmt: skip
def test_training_on_other_samplings_is_refused_with_the_reason(parts, node, values):
    with pytest.raises(LikenessError, match=r"Persona Train: model: got a model that samples by other rules"):
        predicts_velocity(sampling_of(parts, node, *values))
