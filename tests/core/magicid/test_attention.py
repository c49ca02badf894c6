"""MGMICA against a float64 loop over identities, its extremes, and the masks that steer it."""

from __future__ import annotations

import pytest
import torch

from likeness.core.errors import LikenessError
from likeness.core.magicid import attention
from likeness.core.magicid.attention import IdentityKeys, mgmica, pack
from likeness.core.magicid.masks import RegionMasks
from likeness.core.masks import Frame

HEADS, WIDTH = 3, 8


def tensors(batch, queries, counts, seed=0):
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, HEADS, queries, WIDTH, generator=g)
    keys = [tuple(torch.randn(batch, n, HEADS * WIDTH, generator=g) for _ in range(2)) for n in counts]
    weights = torch.rand(batch, len(counts), queries, generator=g)
    return q, keys, weights


def alg1(q, keys, weights):
    """Lines 2-6 of Alg. 1, one identity, row and head at a time, in float64."""
    out = torch.zeros(q.shape, dtype=torch.float64)
    for i, (k, v) in enumerate(keys):
        for b in range(q.shape[0]):
            for h in range(HEADS):
                part = slice(h * WIDTH, (h + 1) * WIDTH)
                kh, vh = k[b, :, part].double(), v[b, :, part].double()
                attended = (q[b, h].double() @ kh.T / WIDTH**0.5).softmax(-1) @ vh
                out[b, h] += attended * weights[b, i].double()[:, None]
    return out


@pytest.mark.parametrize("columns", [attention.MAP_COLUMNS, 0], ids=["map", "kernel"])
@pytest.mark.parametrize("counts", [[4], [4, 4], [4, 16, 1], [2, 2, 2, 7]])
def test_equals_the_loop(monkeypatch, columns, counts):
    monkeypatch.setattr(attention, "MAP_COLUMNS", columns)
    q, keys, weights = tensors(2, 15, counts)
    got = mgmica(q, pack(keys, HEADS), weights)
    assert torch.allclose(got.double(), alg1(q, keys, weights), atol=1e-5)


@pytest.mark.parametrize("columns", [attention.MAP_COLUMNS, 0], ids=["map", "kernel"])
def test_zero_masks_add_exactly_nothing(monkeypatch, columns):
    monkeypatch.setattr(attention, "MAP_COLUMNS", columns)
    q, keys, weights = tensors(2, 15, [4, 6])
    text = torch.randn(q.shape)
    assert torch.equal(text + mgmica(q, pack(keys, HEADS), weights * 0), text)


def test_one_identity_everywhere_is_decoupled_cross_attention():
    q, keys, weights = tensors(2, 15, [4])
    k, v = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in keys[0])
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert torch.allclose(mgmica(q, pack(keys, HEADS), torch.ones_like(weights)), expected, atol=1e-6)


def test_an_identity_acts_only_inside_its_mask():
    q, keys, _ = tensors(1, 6, [4, 4])
    weights = torch.zeros(1, 2, 6)
    weights[0, 0, :3] = weights[0, 1, 3:] = 1
    got = mgmica(q, pack(keys, HEADS), weights)
    alone = [mgmica(q, pack([one], HEADS), torch.ones(1, 1, 6)) for one in keys]
    assert torch.allclose(got[:, :, :3], alone[0][:, :, :3], atol=1e-6)
    assert torch.allclose(got[:, :, 3:], alone[1][:, :, 3:], atol=1e-6)


def test_rows_share_keys_or_have_their_own():
    q, keys, weights = tensors(3, 5, [4, 2])
    packed = pack(keys, HEADS)
    first = packed.of(torch.tensor([0]))
    assert first.k.shape[0] == 1
    spread = mgmica(q, first, weights)
    assert torch.allclose(spread, mgmica(q, packed.of(torch.tensor([0, 0, 0])), weights), atol=1e-6)


def test_only_some_identities():
    q, keys, weights = tensors(2, 5, [4, 2, 4])
    got = mgmica(q, pack(keys, HEADS).only([0, 2]), weights[:, [0, 2]])
    assert torch.allclose(got.double(), alg1(q, [keys[0], keys[2]], weights[:, [0, 2]]), atol=1e-5)


def test_gradients_reach_keys_and_queries():
    q, keys, weights = tensors(1, 5, [4, 2])
    leaves = [q, *(x for pair in keys for x in pair)]
    for x in leaves:
        x.requires_grad_(True)
    mgmica(q, pack(keys, HEADS), weights).square().sum().backward()
    assert all(bool(x.grad.abs().sum() > 0) for x in leaves)


def test_half_precision_keeps_its_type():
    q, keys, weights = tensors(1, 5, [4])
    packed = pack([tuple(x.bfloat16() for x in pair) for pair in keys], HEADS)
    assert mgmica(q.bfloat16(), IdentityKeys(packed.k, packed.v), weights).dtype == torch.bfloat16


def test_small_regions_do_not_vanish():
    """Area pooling: 3 pixels of 64 x 64 still weigh something on a grid of 8."""
    plane = torch.zeros(64, 64)
    plane[10, 10:13] = 1
    weights = RegionMasks([plane]).tokens((8, 8))
    assert weights.sum() > 0 and RegionMasks([plane]).present((8, 8)) == (0,)
    assert weights.max() == pytest.approx(3 / 64)


def test_any_size_and_a_part_of_the_picture():
    plane = torch.zeros(10, 20)
    plane[:, 10:] = 1
    masks = RegionMasks([plane, None, torch.zeros(3, 3)])
    right = Frame(0, 0.5, 1, 0.5)
    assert bool((masks.tokens((4, 4), right)[0] == 1).all())
    assert masks.present((4, 4), right) == (0, 1)
    assert masks.present((4, 4), Frame(0, 0, 1, 0.5)) == (1,)


def test_overlaps():
    plane = torch.ones(4, 4)
    assert bool((RegionMasks([plane, plane]).tokens((2, 2)).sum(0) == 2).all())
    shared = RegionMasks([plane, plane * 0.2], "share").tokens((2, 2))
    assert torch.allclose(shared.sum(0), torch.ones(4))
    assert torch.allclose(RegionMasks([plane * 0.4], "share").tokens((2, 2)), torch.full((1, 4), 0.4))
    with pytest.raises(LikenessError, match="overlap"):
        RegionMasks([plane], "max")


def test_masks_that_are_none():
    with pytest.raises(LikenessError, match="region 1"):
        RegionMasks([torch.zeros(2, 3, 3)])
    with pytest.raises(LikenessError, match="NaN"):
        RegionMasks([torch.full((2, 2), float("nan"))])
