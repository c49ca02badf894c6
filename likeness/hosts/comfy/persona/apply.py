"""Persona Apply's work: a prompt that carries its personas, and a model that listens for them."""

from __future__ import annotations

from typing import Any

from ....core.errors import bad_input
from ....core.persona.text import check_placeholders
from ..wrappers import install
from .plan import PLAN_KEY, PersonaPlan
from .session import NODE, PersonaSystem
from .text import Personas, plain_text, text_widths


def apply(model: Any, clip: Any, personas: Personas, prompt: str) -> tuple[Any, list]:
    """MODEL and CONDITIONING for a prompt with the personas' placeholders.

    The conditioning is that of the prompt with the plain words; each of its entries carries a plan. One system on the
    model serves any number of them.

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
    carried = [
        [context, {**extra, PLAN_KEY: PersonaPlan(clip, prompt, personas, context)}] for context, extra in conditioning
    ]
    return install(model, PersonaSystem()), carried
