"""The losses of MMF."""

from __future__ import annotations

import pytest
import torch

from likeness.core.blocks import BlockId
from likeness.training.magicid.losses import Balance, clone_face_loss, face_window, watched, weighted_error

FINE, COARSE = BlockId("down", 0), BlockId("down", 1)


def halves(same: bool, rows: int = 6, side: int = 8, width: int = 4) -> torch.Tensor:
    """Features ``B T C`` of a picture that is ``2 side`` wide, both halves alike or not."""
    left = torch.randn(2, rows, side, width, generator=torch.Generator().manual_seed(1))
    right = left if same else torch.randn(left.shape, generator=torch.Generator().manual_seed(2))
    return torch.cat([left, right], dim=2).flatten(1, 2)


BOXES = torch.tensor([[0.2, 0.1, 0.7, 0.8], [0.5, 0.5, 0.55, 0.55]])


def test_identical_halves_cost_nothing():
    loss, told = clone_face_loss({FINE: ((6, 16), halves(True))}, BOXES)
    assert float(loss) == 0.0 and float(told["relative"]) == 0.0
    assert float(told["power"]) > 0.1 and float(told["variation"]) > 0.1


def test_different_halves_cost_by_the_definition():
    features, boxes = halves(False), BOXES[:1].repeat(2, 1)
    loss, _ = clone_face_loss({FINE: ((6, 16), features)}, boxes)
    window = face_window(boxes, (6, 8)).square().double()
    picture = features.double().view(2, 6, 16, 4)
    expected = 0.0
    for b in range(2):
        for y in range(6):
            for x in range(8):
                apart = (picture[b, y, x] - picture[b, y, x + 8]).square().mean()
                expected += float(window[b, y, x] * apart / window[b].sum()) / 2
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_only_the_face_counts():
    features = halves(True).view(2, 6, 16, 4)
    features[:, :, 8 + 6 :] += 5.0  # right of the first face, in the right half
    boxes = BOXES[:1].repeat(2, 1)
    loss, _ = clone_face_loss({FINE: ((6, 16), features.flatten(1, 2))}, boxes)
    assert float(loss) == 0.0


def test_collapse_shows():
    constant = torch.ones(2, 96, 4)
    _, told = clone_face_loss({FINE: ((6, 16), constant)}, BOXES)
    assert float(told["variation"]) == pytest.approx(0, abs=1e-6) and float(told["power"]) == pytest.approx(1)


def test_a_face_smaller_than_a_cell_keeps_its_weight():
    window = face_window(torch.tensor([[0.51, 0.51, 0.55, 0.56]]), (4, 4))
    assert window[0, 2, 2] > 0 and int((window > 0).sum()) == 1


def test_grids_finer_than_asked_are_watched_else_the_finest():
    kept = {FINE: ((64, 128), torch.zeros(1)), COARSE: ((32, 64), torch.zeros(1))}
    assert set(watched(kept, 32)) == {FINE}
    assert set(watched(kept, 16)) == {FINE, COARSE}
    assert set(watched(kept, 100)) == {FINE}


def test_cells_weigh_the_error():
    predicted, noise = torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 2, 2)
    noise[..., 0, 0] = 2.0
    weights = torch.ones(1, 1, 2, 2)
    assert float(weighted_error(predicted, noise)) == pytest.approx(1.0)
    weights[..., 0, 0] = 5.0
    assert float(weighted_error(predicted, noise, weights)) == pytest.approx(20 / 8)


def test_balance_brings_noise_levels_together():
    balance, times = Balance(1000, bands=2), torch.tensor([10, 990])
    for _ in range(50):
        balance.update(torch.tensor([3.0, 0.1]), times)
    weighed = balance.weights(times) * torch.tensor([3.0, 0.1])
    assert float(weighed[0]) == pytest.approx(float(weighed[1]), rel=1e-4)
