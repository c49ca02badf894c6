"""Eq. 5 and Eq. 6 against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from likeness.core.diir.fusion import fuse, fuse_latents, fuse_tokens, mask_to_latent, mask_to_tokens, masked_adain


def eq5(restored: Tensor, kept: Tensor, mask: Tensor) -> Tensor:
    """Eq. 5 channel by channel in float64."""
    out = restored.double().clone()
    for b in range(len(out)):
        w = mask[b, 0].double()
        for c in range(out.shape[1]):
            v, k = restored[b, c].double(), kept[b, c].double()
            mean = lambda x: (x * w).sum() / w.sum()  # noqa: B023, E731
            std = lambda x: mean((x - mean(x)) ** 2).sqrt()  # noqa: B023, E731
            out[b, c] = (v - mean(v)) / std(v) * std(k) + mean(k)
    return out


@pytest.fixture
def values() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    restored = torch.randn(3, 5, 40, generator=generator) * 3 + 7
    kept = torch.randn(3, 5, 40, generator=generator) * 0.5 - 2
    return restored, kept, torch.rand(3, 1, 40, generator=generator)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
def test_both_equations(values: tuple[Tensor, Tensor, Tensor], dtype: torch.dtype, tolerance: float) -> None:
    restored, kept, mask = (v.to(dtype) for v in values)
    styled = eq5(restored, kept, mask)
    assert masked_adain(restored, kept, mask).dtype is dtype
    assert torch.allclose(masked_adain(restored, kept, mask).double(), styled, atol=tolerance * 4)
    m = mask.double()
    assert torch.allclose(fuse(restored, kept, mask, True).double(), styled * m + kept.double() * (1 - m),
                          atol=tolerance * 4)
    plain = restored.double() * m + kept.double() * (1 - m)
    assert torch.allclose(fuse(restored, kept, mask).double(), plain, atol=tolerance * 8)


def test_extremes(values: tuple[Tensor, Tensor, Tensor]) -> None:
    restored, kept, mask = values
    nothing, all_ = torch.zeros_like(mask), torch.ones_like(mask)
    for style in (False, True):
        assert torch.equal(fuse(restored, kept, nothing, style), kept)
    assert torch.equal(fuse(restored, kept, all_), restored)
    assert torch.equal(masked_adain(restored, kept, nothing), restored)
    same = fuse(restored, kept, all_, True)
    assert torch.allclose(same.mean(-1), kept.mean(-1), atol=1e-4)
    flat = torch.full_like(restored, 2.0)
    mean = (kept * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True)
    assert torch.allclose(masked_adain(flat, kept, mask), mean.expand_as(kept), atol=1e-5), "it is only shifted"
    assert torch.isfinite(fuse(restored, torch.full_like(kept, 3.0), mask, True)).all()


def test_layouts_agree() -> None:
    restored, kept, mask = torch.randn(2, 4, 6, 6), torch.randn(2, 4, 6, 6), torch.rand(2, 1, 6, 6)
    latents = fuse_latents(restored, kept, mask, True)
    tokens = fuse_tokens(restored.flatten(2).mT, kept.flatten(2).mT, mask.flatten(2), True)
    assert torch.allclose(latents, tokens.mT.unflatten(2, (6, 6)), atol=1e-6)


def test_masks_on_grids() -> None:
    mask = torch.zeros(1, 64, 64)
    mask[:, :32] = 1
    latent = mask_to_latent(mask, (8, 8))
    assert latent.shape == (1, 1, 8, 8) and latent.sum() == 32
    assert mask_to_tokens(latent, 64).sum() == 32
    assert mask_to_tokens(latent, 16).sum() == 8
    assert mask_to_tokens(torch.ones(1, 1, 7, 7), 16).shape == (1, 1, 16), "levels round up"
    assert mask_to_tokens(latent, 63) is None
