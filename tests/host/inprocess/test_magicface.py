"""MagicFace in ComfyUI: what it changes, what it leaves alone, and that nothing stays behind."""

from __future__ import annotations

import pytest
import torch

from likeness.core.errors import LikenessError
from likeness.hosts.comfy import magicface_apply
from likeness.hosts.comfy.magicface_apply import Settings
from likeness.hosts.comfy.references import References, concept
from likeness.hosts.comfy.text import encode
from likeness.tests.host.support import tiny

PROMPT = "a man with a red tie"


@pytest.fixture(scope="module")
def parts():
    return tiny.model(), tiny.clip(), tiny.vae()


@pytest.fixture(scope="module")
def negative(parts):
    return encode(parts[1], "").conditioning


def picture(seed: int = 0, height: int = 128, width: int = 128) -> torch.Tensor:
    coarse = torch.rand((1, 3, 8, 8), generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear").movedim(1, -1)


def box(height: int = 128, width: int = 128) -> torch.Tensor:
    mask = torch.zeros(1, height, width)
    mask[:, height // 4 : -height // 4, width // 4 : -width // 4] = 1
    return mask


def chain(*names: str, mask: torch.Tensor | None = None, weight: float = 3.0) -> References:
    names = names or ("man",)
    return References(tuple(concept(picture(i), mask, name, "", weight) for i, name in enumerate(names)))


def apply(parts, references, prompt=PROMPT, **settings):
    return magicface_apply.apply(*parts, prompt, references, Settings(**settings))


def test_no_references_is_vanilla_bit_for_bit(parts, negative):
    patched, positive, _ = apply(parts, None)
    vanilla = tiny.sample(parts[0], positive, negative)
    assert torch.equal(tiny.sample(patched, positive, negative), vanilla)


def test_weight_zero_is_vanilla_bit_for_bit(parts, negative):
    patched, positive, _ = apply(parts, chain("man", weight=0.0))
    vanilla = tiny.sample(parts[0], positive, negative)
    assert torch.equal(tiny.sample(patched, positive, negative), vanilla)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("weighting", ["additive", "multiplicative", "none"])
def test_references_change_the_picture(parts, negative, alpha, weighting):
    patched, positive, _ = apply(parts, chain("man", mask=box()), alpha=alpha, weighting=weighting)
    vanilla = tiny.sample(parts[0], positive, negative)
    out = tiny.sample(patched, positive, negative)
    assert torch.isfinite(out).all()
    assert (out - vanilla).abs().max() > 1e-3
