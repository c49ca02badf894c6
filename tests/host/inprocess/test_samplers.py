"""Every sampler and every schedule of the host, and the host's ways of computing attention, with MagicFace."""

from __future__ import annotations

from typing import Any

import comfy.ldm.modules.attention as host_attention
import comfy.samplers
import pytest
import torch
from support.comfy import tiny
from support.comfy.magicface import apply, box, chain, sample

SMALL = {"size": (8, 8), "steps": 2}
#: The adaptive one takes as many steps as an untrained model makes it take.
SAMPLERS = [name for name in comfy.samplers.KSampler.SAMPLERS if name != "dpm_adaptive"]


@pytest.fixture(scope="module")
def applied(parts: Any) -> Any:
    """MagicFace with both stages and a map."""
    return apply(parts, chain("man", "red tie", mask=box()), alpha=0.4)


def check(parts: Any, applied: Any, **options: Any) -> None:
    out, vanilla = sample(applied, **SMALL, **options), sample(applied, model=parts.model, **SMALL, **options)
    assert torch.isfinite(vanilla).all() and torch.isfinite(out).all()
    assert not torch.equal(out, vanilla)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler(parts: Any, applied: Any, sampler: str) -> None:
    check(parts, applied, sampler=sampler)


@pytest.mark.parametrize("scheduler", comfy.samplers.KSampler.SCHEDULERS)
def test_every_schedule(parts: Any, applied: Any, scheduler: str) -> None:
    check(parts, applied, scheduler=scheduler)


@pytest.mark.parametrize("name", ["attention_basic", "attention_split", "attention_sub_quad"])
def test_every_way_of_attention(parts: Any, applied: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = sample(applied, **SMALL)
    kernel = getattr(host_attention, name)
    monkeypatch.setattr(host_attention, "optimized_attention", kernel)
    monkeypatch.setattr(host_attention, "optimized_attention_masked", kernel)
    torch.testing.assert_close(sample(applied, **SMALL), usual, rtol=1e-2, atol=1e-2)


def test_a_merged_model(parts: Any) -> None:
    """A merge is another model: nothing that was read with the first one stands for it."""
    other = tiny.model(tiny.diffusers_unet(seed=5))
    merged = parts.model.clone()
    for key, patch in other.get_key_patches("diffusion_model.").items():
        merged.add_patches({key: patch}, 0.5, 0.5)
    references = chain("man", mask=box())
    on_one, on_merged = apply(parts, references), apply(parts, references, model=merged)
    cache = next(iter(references._caches.values()))
    sample(on_one, **SMALL)
    hits = cache.hits
    out = sample(on_merged, **SMALL)
    assert cache.hits == hits
    assert not torch.equal(out, sample(on_merged, model=merged, **SMALL))
    alone = apply(parts, chain("man", mask=box()), model=merged)
    assert torch.equal(out, sample(alone, **SMALL)), "as without the other model"
