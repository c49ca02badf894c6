"""Fast attention against materialised float64."""

from __future__ import annotations

import pytest
import torch

from likeness.core import attention
from likeness.core.attention import attend, attend_part, merge_heads, propagate, split_heads


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


@pytest.mark.parametrize("kernel", [attention._flash_on_cpu, attention._formed])
@pytest.mark.parametrize("width, heads", [(32, 8), (40, 1), (36, 2)])
def test_parts_join_to_attention_over_all_keys(kernel, width, heads, monkeypatch):
    monkeypatch.setattr(attention, "_kernel", lambda *_: kernel)
    q, k, v = tensors(2, 1100, 29, width)
    parts = [attend_part(q, k[:, a:b], v[:, a:b], heads) for a, b in ((0, 13), (13, 14), (14, 29))]
    bias = torch.cat([torch.full((n,), b) for n, b in ((13, 0.0), (1, -1.5), (15, 3.0))])
    joined = parts[0].joined(parts[1].raised(-1.5)).blended(parts[2].raised(3.0)).flatten(2)
    assert torch.allclose(joined.double(), naive(q, k, v, heads, bias), atol=1e-5)
    logits = heads_of(q, heads) @ heads_of(k[:, :13], heads).transpose(-1, -2) / (width // heads) ** 0.5
    assert torch.allclose(parts[0].mass.double(), logits.logsumexp(-1).transpose(1, 2), atol=1e-5)


def test_the_cpu_has_a_kernel_that_tells_the_mass():
    assert attention._kernel(torch.device("cpu"), torch.float32, 40) is attention._flash_on_cpu


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("weight", [0.5, 3.0, 7.3, 20.0])
def test_half_precision_is_nearly_as_good_as_plain_attentions(dtype, weight):
    """The weight is in the mass (float32), so that no rounding of it is added to that of a plain call."""
    q, k, v = (x.to(dtype) for x in tensors(2, 64, 128, 128))
    bias = torch.cat([torch.zeros(64), torch.full((64,), weight)])
    own, theirs = (attend_part(q, k[:, rows], v[:, rows], 2) for rows in (slice(0, 64), slice(64, 128)))
    ours = own.blended(theirs.raised(weight)).flatten(2)
    wrong = (ours.double() - naive(q, k, v, 2, bias)).abs()
    sets = (k, v), (k[:, :64], v[:, :64]), (k[:, 64:], v[:, 64:])
    plain = [(attend(q, x, y, 2).double() - naive(q, x, y, 2)).abs() for x, y in sets]
    assert wrong.max() <= 2 * max(p.max() for p in plain)
    assert wrong.mean() <= 2 * max(p.mean() for p in plain)


@pytest.mark.parametrize("columns", [1, 2, 77, 300])
def test_propagate_equals_head_mean_map(columns):
    q, k, _ = tensors(2, 17, 29, 32)
    values = torch.rand(2, 29, columns)
    expected = probabilities(q, k, 4).mean(dim=1) @ values.double()
    assert torch.allclose(propagate(q, k, values, 4).double(), expected, atol=1e-5)
