"""What the in-process MagicFace tests share: the tiny parts, references, applying and sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from support.comfy import tiny

from likeness.hosts.comfy.magicface import apply as magicface_apply
from likeness.hosts.comfy.magicface.apply import ApplyOptions
from likeness.hosts.comfy.magicface.references import References, given_concept

PROMPT = "a man with a red tie"


@dataclass(frozen=True)
class Parts:
    """The tiny checkpoint and an empty negative prompt."""

    model: Any
    clip: Any
    vae: Any
    negative: list


@dataclass(frozen=True)
class Applied:
    """What MagicFace Apply gave, with the negative prompt."""

    model: Any
    positive: list
    record: Any
    negative: list


def picture(seed: int = 0, height: int = 128, width: int = 128) -> torch.Tensor:
    """A picture of coloured patches, IMAGE."""
    coarse = torch.rand((1, 3, 8, 8), generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear").movedim(1, -1)


def box(height: int = 128, width: int = 128) -> torch.Tensor:
    """A mask that is 1 in the middle, MASK."""
    mask = torch.zeros(1, height, width)
    mask[:, height // 4 : -height // 4, width // 4 : -width // 4] = 1
    return mask


def chain(
    *names: str, mask: torch.Tensor | None = None, weight: float = 3.0, regions: Sequence[torch.Tensor | None] = ()
) -> References:
    """References of the named concepts, each with a picture of its own and, where there is one, a region."""
    return References(
        tuple(
            given_concept(picture(i), mask, name, "", weight, region)
            for i, (name, region) in enumerate(zip_longest(names, regions))
        )
    )


def apply(
    parts: Parts,
    references: References | None,
    prompt: str = PROMPT,
    model: Any = None,
    alpha: float = 0.4,
    positive: list | None = None,
    **options: Any,
) -> Applied:
    """MagicFace Apply on the tiny checkpoint, or on ``model``; ``options`` as of MagicFace Options."""
    made = magicface_apply.apply(
        model or parts.model, parts.clip, parts.vae, prompt, alpha, references, positive, ApplyOptions(**options)
    )
    return Applied(made.model, made.positive, made.record, parts.negative)


def sample(applied: Applied, *, model: Any = None, positive: list | None = None, **options: Any) -> torch.Tensor:
    """Sample with what Apply gave; ``model`` and ``positive`` take the place of its own."""
    return tiny.sample(model or applied.model, positive or applied.positive, applied.negative, **options)
