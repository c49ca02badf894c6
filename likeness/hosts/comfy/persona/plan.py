"""What a conditioning carries from Persona Apply to the sampler: how its prompt is spoken at any time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from ....core.persona.stages import StagedContexts, precompute
from ....core.persona.text import Contexts
from .text import Personas, Range, encode_at, mark_prompt
from .token_map import prompt_token_map

#: Of a :class:`PersonaPlan` in a conditioning entry.
PLAN_KEY = "likeness_persona_plan"
#: Schedules whose contexts a plan keeps: the first pass and a few of a hires fix.
SCHEDULES = 4


@dataclass
class PersonaPlan:
    """How to encode a prompt with its personas.

    Attributes:
        early: ``1 L C``, the text with the plain words, as the conditioning came from the encoder.
        hooks_range: the part of the sampling that it was encoded for, where the CLIP's hooks follow a schedule.
        kept: contexts of the latest schedules.
    """

    clip: Any
    prompt: str
    personas: Personas
    early: torch.Tensor
    hooks_range: Range | None = None
    kept: dict[tuple, StagedContexts] = field(default_factory=dict)

    def contexts(self, timesteps: Sequence[int]) -> StagedContexts:
        """Contexts of a schedule, encoded in one batch the first time it is asked for."""
        key = tuple(timesteps)
        staged = self.kept.pop(key, None) or self._encode(timesteps)
        self.kept[key] = staged  # the latest stands last
        while len(self.kept) > SCHEDULES:
            del self.kept[next(iter(self.kept))]
        return staged

    def _encode(self, timesteps: Sequence[int]) -> StagedContexts:
        marked = mark_prompt(self.clip, self.prompt, self.personas)
        return precompute(
            lambda t: encode_at(self.clip, marked, self.personas, t, self.hooks_range),
            Contexts(self.early, self.early),
            self.personas[0].persona.stages,
            timesteps,
            midpoints=True,
        )

    @cached_property
    def token_map(self) -> torch.Tensor | None:
        """How the tokens that are spoken stand for those of the plain prompt; see :func:`prompt_token_map`."""
        return prompt_token_map(self.clip, self.prompt, self.personas)


def plan_of(entry: Mapping[str, Any]) -> PersonaPlan | None:
    """The plan that a conditioning entry carries, if any."""
    plan = entry.get(PLAN_KEY)
    return plan if isinstance(plan, PersonaPlan) else None
