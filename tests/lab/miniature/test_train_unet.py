"""What the miniature's UNet is trained on: batches of latents, their loss's weights and captions; the loss itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lab.miniature.train_unet import DIFFERENT, NOISY, Balance, Batch, Batches, Config, diffusion_loss
from likeness.miniature.world.spec import VARIANTS


@pytest.fixture(scope="module")
def batches() -> Batches:
    return Batches(Config(size=64, batch=4, details=3.0), seed=2)


@pytest.mark.parametrize(
    ("kind", "shape"), [("singles", (4, 4, 8, 8)), ("pairs", (2, 4, 8, 16)), ("variants", (4, 4, 8, 8))]
)
def test_a_batch_weighs_the_cells_of_details_and_no_others(batches: Batches, kind: str, shape: tuple[int, ...]) -> None:
    batch: Batch = getattr(batches, kind)()
    assert batch.latents.shape == shape and batch.latents.isfinite().all()
    assert batch.weights.shape == (shape[0], 1, *shape[2:]) and set(batch.weights.unique().tolist()) == {1.0, 4.0}
    assert batch.weights.mean() < 2.5  # details are the smaller part
    assert batch.ids.shape == (shape[0], 77)


def test_variants_differ_where_they_weigh_and_in_their_captions(batches: Batches) -> None:
    batch = batches.variants()
    assert batch.alike == VARIANTS == len(batch.latents)
    assert len(batch.ids.unique(dim=0)) >= VARIANTS - 1
    light = (batch.weights == 1).expand_as(batch.latents)
    change = (batch.latents - batch.latents[:1]).abs()
    assert change[light].max() <= DIFFERENT < change[~light].max()


def test_alike_rows_get_one_noise_and_one_timestep_of_much_noise() -> None:
    seen = {}

    class Watching:
        def predict(self, noisy: Tensor, t: Tensor, ids: Tensor) -> Tensor:
            seen.update(noisy=noisy, t=t)
            return noisy

    batch = Batch(torch.zeros(60, 4, 2, 2), torch.ones(60, 1, 2, 2), torch.zeros(60, 77), alike=3)
    diffusion_loss(Watching(), batch, torch.zeros(1000), Balance(1, 1000, torch.device("cpu")), bf16=False)
    for values in (seen["noisy"], seen["t"]):
        scenes = values.unflatten(0, (-1, 3))
        assert torch.equal(scenes, scenes[:, :1].expand_as(scenes))
        assert not torch.equal(values[0], values[3])
    assert seen["t"].min() >= NOISY


class Blind:
    """Predicts the noise but for a constant error where ``wrong`` is 1."""

    def __init__(self, wrong: Tensor) -> None:
        self.wrong = wrong

    def predict(self, noisy: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """With latents of zeros and no signal left, the noisy latents are the noise."""
        return noisy + self.wrong


@pytest.mark.parametrize(("details", "expected"), [(0.0, 1 / 4), (4.0, 5 / 8)])
def test_the_loss_is_a_mean_in_which_details_weigh_more(details: float, expected: float) -> None:
    wrong = torch.zeros(1, 1, 2, 2)
    wrong[..., 0, 0] = 1.0
    alphas = torch.zeros(10)
    batch = Batch(torch.zeros(3, 4, 2, 2), 1 + details * wrong.expand(3, 1, 2, 2), torch.zeros(3, 77))
    loss = diffusion_loss(Blind(wrong), batch, alphas, Balance(1, 10, alphas.device), bf16=False)
    assert loss.item() == pytest.approx(expected)
