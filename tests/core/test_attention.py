"""Fast attention against materialised float64."""

from __future__ import annotations

import pytest
import torch

from likeness.core.attention import (
    attend,
    attend_split,
    blend_split,
    mean_probabilities,
    merge_heads,
    propagate,
    split_heads,
)


def heads_of(x: torch.Tensor, heads: int) -> torch.Tensor:
    """B N C -> B H N D in float64, by slicing."""
    return torch.stack(x.double().chunk(heads, dim=-1), dim=1)


def probabilities(q: torch.Tensor, k: torch.Tensor, heads: int, bias: torch.Tensor | None = None) -> torch.Tensor:
    logits = heads_of(q, heads) @ heads_of(k, heads).transpose(-1, -2) / (q.shape[-1] // heads) ** 0.5
    return (logits if bias is None else logits + bias.double()).softmax(dim=-1)


def naive(q, k, v, heads, bias=None) -> torch.Tensor:
    out = probabilities(q, k, heads, bias) @ heads_of(v, heads)
    return torch.cat(out.unbind(dim=1), dim=-1)


def tensors(batch: int, queries: int, keys: int, width: int, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, queries, width, generator=g),
        torch.randn(batch, keys, width, generator=g),
        torch.randn(batch, keys, width, generator=g),
    )


def test_heads_round_trip():
    q, _, _ = tensors(2, 7, 3, 24)
    assert torch.equal(merge_heads(split_heads(q, 3)), q)


@pytest.mark.parametrize("width, heads", [(32, 8), (40, 1), (80, 2)])
def test_attend_without_bias(width, heads):
    q, k, v = tensors(2, 17, 29, width)
    assert torch.allclose(attend(q, k, v, heads).double(), naive(q, k, v, heads), atol=1e-5)


@pytest.mark.parametrize("lanes", [False, True])
@pytest.mark.parametrize("width, heads", [(32, 8), (40, 1), (36, 2)])
def test_attend_with_bias(lanes, width, heads):
    q, k, v = tensors(2, 17, 29, width)
    bias = torch.linspace(-3, 7, 29)
    assert torch.allclose(attend(q, k, v, heads, bias, lanes).double(), naive(q, k, v, heads, bias), atol=1e-5)


def test_lanes_lose_no_bias_in_half_precision():
    """A bias that bfloat16 cannot hold still arrives: the second lane carries what rounding took."""
    keys = torch.zeros(1, 2, 8, dtype=torch.bfloat16)
    values = torch.tensor([[0.0], [1.0]], dtype=torch.bfloat16).expand(2, 8)[None]
    bias = torch.tensor([0.0, 3.0123])
    got = attend(keys[:, :1], keys, values, 1, bias, lanes=True)[0, 0, 0].float()
    assert abs(float(got) - float(bias.softmax(0)[1])) < 4e-3  # bfloat16 of the result itself


@pytest.mark.parametrize("own", [1, 13, 28])
def test_split_attention_recombines(own):
    q, k, v = tensors(2, 17, 29, 32)
    bias = torch.cat([torch.zeros(own), torch.full((29 - own,), 2.5)])
    part, mass = attend_split(q, k, v, 4, bias, own)
    over_own = attend(q, k[:, :own].contiguous(), v[:, :own].contiguous(), 4)
    assert torch.allclose(blend_split(over_own, part, mass).double(), naive(q, k, v, 4, bias), atol=1e-5)
    expected = probabilities(q, k, 4, bias)[..., own:].sum(dim=-1, keepdim=True)
    assert torch.allclose(mass.double(), expected, atol=1e-6)


@pytest.mark.parametrize("columns", [1, 2, 77, 300])
def test_propagate_equals_head_mean_map(columns):
    q, k, _ = tensors(2, 17, 29, 32)
    values = torch.rand(2, 29, columns)
    expected = probabilities(q, k, 4).mean(dim=1) @ values.double()
    assert torch.allclose(propagate(q, k, values, 4).double(), expected, atol=1e-5)


def test_mean_probabilities():
    q, k, _ = tensors(2, 17, 7, 32)
    got = mean_probabilities(q, k, 4)
    assert torch.allclose(got.double(), probabilities(q, k, 4).mean(dim=1), atol=1e-6)
    assert torch.allclose(got.sum(dim=-1), torch.ones(2, 17), atol=1e-5)
