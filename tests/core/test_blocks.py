"""Block identity, layer choice, grids, masks and schedules."""

from __future__ import annotations

import pytest
import torch

from likeness.core.blocks import DEFAULT_LAYERS, BlockId, UNetLayout
from likeness.core.errors import LikenessError
from likeness.core.masks import check_mask, level_grid, mask_to_grid, token_grid
from likeness.core.schedule import Schedule, same_sigma

SD15 = UNetLayout.from_counts([[1, 1], [1, 1], [1, 1], []], [1], [[], [1, 1, 1], [1, 1, 1], [1, 1, 1]])
SDXL = UNetLayout.from_counts([[], [2, 2], [10, 10]], [10], [[10] * 3, [2] * 3, []])


def test_sd15_numbering_is_the_papers():
    assert len(SD15.blocks) == 16
    assert SD15.levels == ("down0", "down1", "down2", "mid", "up1", "up2", "up3")
    assert SD15.number(BlockId("mid", 0)) == 6
    assert [SD15.number(b) for b in SD15.select(DEFAULT_LAYERS)] == list(range(10, 16))
    assert SD15.in_levels(SD15.levels[5:]) == SD15.select("10-15")  # the paper's blocks 5 and 6


def test_factors():
    assert SD15.factors == (1, 2, 4, 8)
    assert [SD15.factor(b) for b in SD15.blocks] == [1, 1, 2, 2, 4, 4, 8, 4, 4, 4, 2, 2, 2, 1, 1, 1]
    assert SDXL.factors == (2, 4)


def test_sdxl_default_layers_are_its_two_decoder_levels():
    chosen = SDXL.select(DEFAULT_LAYERS)
    assert len(chosen) == 36
    assert {b.level_name for b in chosen} == {"up0", "up1"}
    assert SDXL.number(chosen[0]) == 34  # after 4 + 20 encoder and 10 middle blocks


@pytest.mark.parametrize(
    "text, numbers",
    [
        ("all", range(16)),
        ("decoder", range(7, 16)),
        ("mid", [6]),
        ("up3, mid", [6, 13, 14, 15]),
        ("0-1, 15", [0, 1, 15]),
        ("", range(10, 16)),
    ],
)
def test_select(text, numbers):
    assert [SD15.number(b) for b in SD15.select(text)] == list(numbers)


@pytest.mark.parametrize("text", ["up0", "16", "9-3", "down", "10-99", "1-"])
def test_select_rejects(text):
    with pytest.raises(LikenessError, match="layers"):
        SD15.select(text)


def test_level_grid_rounds_up_like_strided_convolutions():
    side = 67
    for factor in (2, 4, 8):
        side = (side + 2 - 3) // 2 + 1
        assert level_grid((67, 64), factor)[0] == side


def test_token_grid():
    assert token_grid((65, 32), 2, 33 * 16) == (33, 16)
    assert token_grid((64, 32), 1, 16 * 8) == (16, 8)  # a level run at another size
    with pytest.raises(LikenessError, match="tokens"):
        token_grid((64, 64), 1, 4093)


def test_mask_to_grid():
    mask = torch.zeros(100, 50)
    mask[:50] = 1
    assert torch.equal(mask_to_grid(mask, (4, 4)), torch.tensor([[True], [True], [False], [False]]).expand(4, 4))
    assert mask_to_grid(torch.ones(3, 5), (16, 16)).all()
    assert not mask_to_grid(torch.zeros(9, 9), (4, 4)).any()
    thin = torch.zeros(512, 512)
    thin[7, 9] = 1
    assert mask_to_grid(thin, (16, 16)).nonzero().tolist() == [[0, 0]]


@pytest.mark.parametrize(
    "mask, said",
    [
        (torch.zeros(4, 4), "empty"),
        (torch.full((4, 4), float("nan")), "NaN"),
        (torch.ones(1, 4, 4), "shape"),
    ],
)
def test_check_mask(mask, said):
    with pytest.raises(LikenessError, match=said):
        check_mask(mask, "Reference")


def test_schedule_places_any_sigma():
    schedule = Schedule([10, 5, 2, 1, 0])
    assert schedule.steps == 4
    assert [schedule.step(s) for s in (12, 10, 7, 5, 3, 2, 1, 0.5)] == [0, 0, 0, 1, 1, 2, 3, 3]
    assert [schedule.before(s, 0.5) for s in (10, 5, 4.9999, 2, 1)] == [True, True, True, False, False]
    assert not schedule.before(10, 0.0)
    assert schedule.before(1, 1.0)
    assert schedule.step(5 * (1 + 1e-6)) == 1  # rounding of another precision does not move a step


def test_schedule_rejects():
    with pytest.raises(LikenessError):
        Schedule([1.0])


def test_same_sigma():
    assert same_sigma(14.6146, 14.614600001)
    assert not same_sigma(14.6, 14.5)
    assert not same_sigma(None, 0.0)
