"""What the in-process tests of personas beside other patches share: a prompt, and an untrained persona."""

from __future__ import annotations

import torch
from support.comfy import tiny

from likeness.core.persona.mapper import Mapper, MapperConfig
from likeness.core.persona.persona import Persona
from likeness.core.persona.stages import Stages
from likeness.hosts.comfy.persona.text import NamedPersona

WORDS = 4
PROMPT, PLAIN = "a photo of S* in the snow", "a photo of face in the snow"
#: speaks from the first step on but the highest timesteps
STAGES = Stages(100, 900)


def chain(supercategory: str = "face", placeholder: str = "S*", seed: int = 0) -> tuple[NamedPersona, ...]:
    torch.manual_seed(seed)
    config = MapperConfig((tiny.CONTEXT_WIDTH,), tokens=WORDS, image_width=16)
    mapper = Mapper(config, torch.randn(tiny.CONTEXT_WIDTH) * 0.5).eval().requires_grad_(False)
    return (NamedPersona(placeholder, Persona(mapper, STAGES, supercategory, torch.randn(1, 16))),)
