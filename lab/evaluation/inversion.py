"""Textual inversion as a baseline, trained by PersonaMagic's own trainer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from likeness.core.persona.mapper import MapperConfig, MapperOutput
from likeness.core.persona.persona import Persona
from likeness.core.persona.stages import Stages
from likeness.training.persona.trainer import PersonaTrainer


class Inversion(nn.Module):
    """Textual inversion as a mapper: free vectors that do not know the time (Gal et al. 2023)."""

    def __init__(self, config: MapperConfig, word: Tensor) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("supercategory", word.detach().float().clone())
        self.words = nn.Parameter(word.detach().float().expand(config.tokens, -1).clone())

    def forward(self, timesteps: Tensor, image: Tensor | None = None, generator: object = None) -> MapperOutput:
        """The same ``B n W`` words at all times, no residual."""
        return MapperOutput(self.words.expand(len(timesteps), -1, -1), None)


class InversionTrainer(PersonaTrainer):
    """The trainer with :class:`Inversion` in the mapper's place: all timesteps, no mask, no tandem."""

    def _fresh(self, stages: Stages) -> None:
        self.stages = stages
        config = self.config.mapper_config(self.host.text.widths, (stages.low, stages.high))
        self.mapper = Inversion(config, self.word.cpu()).to(self.host.device)
        self.optimiser = torch.optim.AdamW(self.mapper.parameters(), lr=5e-3, weight_decay=0.0)

    def persona(self, name: str = "persona") -> Persona:
        """The vectors as a persona that speaks at all times."""
        return Persona(self.mapper.eval().requires_grad_(False), self.stages, self.config.supercategory, None, name)
