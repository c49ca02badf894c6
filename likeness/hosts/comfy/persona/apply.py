"""Persona Apply's work: a prompt that carries its personas, and a model that listens for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ....core.errors import bad_input
from ....core.persona.text import check_placeholders
from ..wrappers import install
from .plan import PLAN_KEY, PersonaPlan
from .session import NODE, PersonaSystem
from .text import Personas, Range, plain_text, text_widths


def apply(model: Any, clip: Any, personas: Personas, prompt: str, positive: list | None = None) -> tuple[Any, list]:
    """MODEL and CONDITIONING for a prompt with the personas' placeholders.

    The conditioning is that of the prompt with the plain words; each of its entries carries a plan. One system on the
    model serves any number of them.

    Args:
        positive: that conditioning as somebody else has made it; None encodes it here. Where its text is another one,
            see :class:`~.session.Voice` for what becomes of it.

    Raises:
        LikenessError: a placeholder is missing or doubled, or a persona belongs to another base.
    """
    if not personas:
        raise bad_input(f"{NODE}: personas", "none", "at least one persona", "Connect Persona Load or Persona Train.")
    check_placeholders(prompt, [p.placeholder for p in personas], f"{NODE}: prompt")
    widths = text_widths(clip, f"{NODE}: clip")
    for item in personas:
        item.persona.check_base(widths, f"{NODE}: clip")
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(plain_text(prompt, personas)))
    plans = [PersonaPlan(clip, prompt, personas, context, _hooks_range(extra)) for context, extra in conditioning]
    carried = [
        [text, {**extra, PLAN_KEY: _own_plan(text, plans)}]
        for text, extra in (conditioning if positive is None else positive)
    ]
    return install(model, PersonaSystem()), carried


def _own_plan(text: torch.Tensor, plans: list[PersonaPlan]) -> PersonaPlan:
    """The plan of a text ``1 L C``: a CLIP whose hooks follow a schedule encodes a prompt once for each range."""
    return next((plan for plan in plans if torch.equal(plan.early, text)), plans[0])


def _hooks_range(extra: Mapping[str, Any]) -> Range | None:
    """The range that a CLIP whose hooks follow a schedule has encoded an entry for."""
    found = tuple(extra.get(f"clip_{end}_percent") for end in ("start", "end"))
    return None if None in found else found
