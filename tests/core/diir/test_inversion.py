"""Inversion and restoration on models whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from likeness.core.diir.features import FeatureCache, FeatureFusion
from likeness.core.diir.inversion import check_sigmas, invert, noised, round_trip
from likeness.core.diir.request import DiirRequest
from likeness.core.diir.restore import restore
from likeness.core.errors import LikenessError
from likeness.core.schedule import sigma_table

ALPHAS = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)


def schedule(steps: int) -> list[float]:
    table = sigma_table(ALPHAS)
    return [*table[torch.linspace(999, 999 / steps, steps).long()].tolist(), 0.0]


class Mixture:
    """The exact denoiser of a mixture of Gaussians, through eps or v as a network would give it."""

    def __init__(self, prediction: str = "eps", width: float = 0.3) -> None:
        generator = torch.Generator().manual_seed(3)
        self.means = torch.randn(6, 64, generator=generator)
        self.width, self.prediction, self.asked = width, prediction, []

    def sample(self, count: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        chosen = self.means[torch.randint(6, (count,), generator=generator)]
        return (chosen + self.width * torch.randn(count, 64, generator=generator)).view(count, 4, 4, 4)

    def clean(self, x: Tensor, sigma: float) -> Tensor:
        flat, total = x.flatten(1), self.width**2 + sigma**2
        share = (-torch.cdist(flat, self.means).square() / (2 * total)).softmax(1)  # B K
        return ((self.width**2 * flat + sigma**2 * share @ self.means) / total).view_as(x)

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        assert sigma > 0, "the model is never asked at sigma 0"
        self.asked.append(sigma)
        clean, s = self.clean(x, sigma), math.sqrt(1 + sigma**2)
        eps = (x - clean) / sigma
        if self.prediction == "eps":
            return x - sigma * eps
        v = (eps - sigma * clean) / s  # sqrt(a) eps - sqrt(1 - a) x0, a = 1 / s^2
        return x / s**2 - v * sigma / s


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize(("corrections", "bound"), [(0, 0.07), (1, 0.02), (3, 0.001)])
def test_round_trip(prediction: str, corrections: int, bound: float) -> None:
    model = Mixture(prediction)
    path = invert(model, model.sample(64), schedule(30), corrections)
    assert len(path.latents) == 31 and len(path.inputs) == 30
    assert len(model.asked) == 30 * (1 + corrections)
    assert float(round_trip(model, path).median()) < bound


def test_calls_land_on_the_levels_of_the_restoration() -> None:
    model, levels = Mixture(), schedule(7)
    path = invert(model, model.sample(2), levels)
    assert model.asked == levels[-2::-1]
    model.asked.clear()
    restore(model, path, torch.ones(2, 1, 4, 4))
    assert model.asked == levels[:-1]


def test_one_step_by_hand() -> None:
    model, z = Mixture(), Mixture().sample(1)
    path = invert(model, z, [2.0, 0.0])
    given = z * math.sqrt(5.0)  # the model sees the clean picture at the target level
    eps = (given - model.clean(given, 2.0)) / 2.0
    assert torch.allclose(path.latents[0], z + 2.0 * eps, atol=1e-5)


def test_mask_keeps_the_rest_exactly_and_a_full_mask_is_plain_ddim() -> None:
    model, z = Mixture(), Mixture().sample(3)
    path = invert(model, z, schedule(10))
    away = lambda x, sigma: model.clean(x, sigma) + 1  # noqa: E731  another picture than the inversion's
    half = torch.zeros(3, 1, 4, 4)
    half[..., :2] = 1
    made = restore(away, path, half)
    assert torch.equal(made[..., 2:], z[..., 2:])
    assert float((made[..., :2] - z[..., :2]).abs().mean()) > 0.1
    assert torch.equal(restore(away, path, torch.zeros(3, 1, 4, 4)), z)
    back = restore(model, path, torch.ones(3, 1, 4, 4))
    error = (back - z).square().flatten(1).mean(1).sqrt()
    assert torch.allclose(error, round_trip(model, path), atol=1e-5)


def test_strength_starts_at_the_trajectory() -> None:
    model = Mixture()
    path = invert(model, model.sample(2), schedule(10))
    model.asked.clear()
    restore(model, path, torch.ones(2, 1, 4, 4), start=DiirRequest(steps=10, strength=0.6).start)
    assert len(model.asked) == 6
    assert torch.equal(restore(model, path, torch.ones(2, 1, 4, 4), start=10), path.latents[-1])


def test_fast_mode_is_image_to_image() -> None:
    model = Mixture()
    z, noise = model.sample(2), torch.randn(2, 4, 4, 4)
    path = noised(z, schedule(30), noise)
    assert torch.equal(path.latents[0], z + path.sigmas[0] * noise)
    start = DiirRequest(mode="fast").start
    assert start == 8 and DiirRequest(mode="fast").rows == 44
    assert torch.isfinite(restore(model, path, torch.ones(2, 1, 4, 4), start)).all()


def test_rows() -> None:
    assert DiirRequest().rows == 90
    assert DiirRequest(corrections=1).rows == 120
    assert DiirRequest(strength=0.5).rows == 60


def test_a_row_is_the_same_alone_and_in_a_batch() -> None:
    model = Mixture()
    z, mask = model.sample(4), torch.rand(4, 1, 4, 4)
    together = restore(model, invert(model, z, schedule(10)), mask, keep_style=True)
    for row in range(4):
        alone = restore(model, invert(model, z[row : row + 1], schedule(10)), mask[row : row + 1], keep_style=True)
        assert torch.allclose(alone[0], together[row], atol=1e-4)


def test_callback_stops_it() -> None:
    seen = []

    def progress(stage: str, done: int, total: int, clean: Tensor) -> None:
        seen.append((stage, done, total, tuple(clean.shape)))
        if stage == "restoration" and done == 2:
            raise InterruptedError

    model = Mixture()
    path = invert(model, model.sample(1), schedule(4), progress=progress)
    with pytest.raises(InterruptedError):
        restore(model, path, torch.ones(1, 1, 4, 4), progress=progress)
    assert [s[:3] for s in seen] == [("inversion", i, 4) for i in (1, 2, 3, 4)] + [
        ("restoration", 1, 4), ("restoration", 2, 4)]


@pytest.mark.parametrize("levels", [[1.0], [0.0, 1.0], [2.0, 1.0], [1.0, 1.0, 0.0], [math.inf, 0.0], [math.nan, 0.0]])
def test_bad_schedules(levels: list[float]) -> None:
    with pytest.raises(LikenessError, match="noise levels"):
        check_sigmas(levels)


def test_bad_latents() -> None:
    with pytest.raises(LikenessError, match="NaN"):
        invert(Mixture(), torch.full((1, 4, 4, 4), math.nan), [1.0, 0.0])
    with pytest.raises(LikenessError, match="B C h w"):
        invert(Mixture(), torch.zeros(4, 4, 4), [1.0, 0.0])


class Attentive:
    """A model of two self-attention layers, shown to a fusion as a host would: rows are faces, or both guidances."""

    def __init__(self, guided: bool) -> None:
        generator = torch.Generator().manual_seed(1)
        self.first, self.second = (torch.randn(4, 4, generator=generator) / 2 for _ in range(2))
        self.guided, self.fusion = guided, None

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        faces = list(range(len(x))) * (2 if self.guided else 1)
        rows = torch.cat([x, x + 0.1]) if self.guided else x
        tokens = (rows / math.sqrt(1 + sigma**2)).flatten(2).transpose(1, 2)  # R 16 4
        for block, weight in enumerate((self.first, self.second)):
            out = torch.tanh(tokens @ weight)
            tokens = tokens + (out if self.fusion is None else self.fusion.output(block, out, faces))
        clean = tokens.transpose(1, 2).reshape(rows.shape)
        return clean if not self.guided else clean[: len(x)] * 3 - clean[len(x) :] * 2


def paper_mode(cache: FeatureCache, faces: int = 3, corrections: int = 0) -> tuple[Tensor, FeatureFusion]:
    z = torch.randn(faces, 4, 4, 4, generator=torch.Generator().manual_seed(9))
    mask = torch.rand(faces, 1, 4, 4, generator=torch.Generator().manual_seed(8))
    plain, guided = Attentive(guided=False), Attentive(guided=True)
    fusion = plain.fusion = guided.fusion = FeatureFusion(mask, plain, cache)
    path = invert(plain, z, schedule(6), corrections, record=fusion.recording)
    return restore(guided, path, mask, keep_style=True, features=fusion), fusion


@pytest.mark.parametrize("corrections", [0, 2])
def test_cache_modes_agree(corrections: int) -> None:
    made, fusion = paper_mode(FeatureCache("device"), corrections=corrections)
    assert fusion.again == 0
    for cache, again in (
        (FeatureCache("host"), 0),
        (FeatureCache("recompute"), 6),
        (FeatureCache("auto", {"device": 3000, "host": 3000}), 3),  # 1536 bytes a level: one there, one or two here
        (FeatureCache("auto", {"device": 0, "host": 0}), 6),
    ):
        other, fusion = paper_mode(cache, corrections=corrections)
        assert torch.equal(made, other)
        assert abs(fusion.again - again) <= 1
    model = Attentive(guided=True)
    path = invert(Attentive(guided=False), torch.randn(3, 4, 4, 4), schedule(6), corrections)
    assert not torch.allclose(made, restore(model, path, fusion.mask, keep_style=True)), "features matter"


def test_features_lie_on_the_level_that_they_are_fused_at() -> None:
    """With a restoration that is the inversion's own model, at a full mask without style, nothing may change."""
    z, mask = torch.randn(2, 4, 4, 4), torch.zeros(2, 1, 4, 4)
    plain = Attentive(guided=False)
    fusion = FeatureFusion(mask, plain, FeatureCache())
    plain.fusion = fusion
    seen: dict[int, Tensor] = {}
    path = invert(plain, z, schedule(5), record=fusion.recording)
    with fusion.fusing(2, path):
        x = torch.randn(2, 16, 4)
        seen[2] = fusion.output(0, x, [0, 1])
    clean = path.inputs[2] / math.sqrt(1 + path.sigmas[2] ** 2)
    expected = torch.tanh(clean.flatten(2).transpose(1, 2) @ plain.first)
    assert torch.allclose(seen[2], expected, atol=1e-6)
    assert fusion.output(0, x, [0, 1]) is x, "outside of both passes nothing is touched"


def test_rows_that_are_nobodys_and_layers_of_another_grid_are_left_alone() -> None:
    mask = torch.ones(1, 1, 4, 4)
    fusion = FeatureFusion(mask, lambda x, sigma: x)
    path = noised(torch.zeros(1, 4, 4, 4), [1.0, 0.0], torch.zeros(1, 4, 4, 4))
    x, odd = torch.randn(2, 16, 8, dtype=torch.bfloat16), torch.randn(1, 15, 8)
    with fusion.recording(0):
        fusion.output("block", torch.randn(1, 16, 8, dtype=torch.bfloat16), [0])
        fusion.output("odd", odd, [0])
    with fusion.fusing(0, path):
        out = fusion.output("block", x, [None, 0])
        assert torch.equal(out[0], x[0]) and not torch.equal(out[1], x[1]) and out.dtype is torch.bfloat16
        assert fusion.output("odd", odd, [0]) is odd
        assert fusion.output("unknown", x, [0, 0]) is x


def test_request_says_what_is_wrong() -> None:
    for options, words in (
        ({"mode": "slow"}, "exact, fast"), ({"steps": 0}, "1 to 1000"), ({"guidance": math.nan}, "guidance"),
        ({"strength": 1.2}, "strength"), ({"keep_style": "paper", "mode": "fast"}, "mode 'exact'"),
        ({"cache": "disk"}, "recompute"), ({"max_face_px": -1}, "at least 0"),
    ):
        with pytest.raises(LikenessError, match=words):
            DiirRequest(**options)
