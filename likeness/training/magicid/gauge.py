"""The curves to watch: what another's identity or another's pose costs on held-out people (the paired gaps)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .losses import weighted_error
from .model import MagicIdModel
from .request import CONTROL, MagicIdTraining, Phase
from .samples import Batch, Sample, Sampler

TIMESTEPS = (500, 700, 880)


class Gauge:
    """The same pictures, noise and timesteps at every measurement.

    Args:
        samples: of held-out people, at least two.
        rows: in one model call.
    """

    def __init__(self, config: MagicIdTraining, samples: Sequence[Sample], empty: Tensor, rows: int = 8) -> None:
        plain = replace(config, batch=rows, alike=0.0, empty=0.0, nobody=0.0, everywhere=0.0)
        self.sampler, self.count = Sampler(plain, samples, empty, 1000), len(samples)
        self.rows = rows

    @torch.no_grad()
    def measure(self, model: MagicIdModel, phase: Phase) -> dict[str, float]:
        """``gap``: loss with another's identity less the loss with one's own, as a share of the latter, mean over
        timesteps; ``gap@T`` at each. ``pose gap``: the same of another's pose picture, where poses act."""
        device = next(model.parameters()).device
        own, other, posed = (torch.zeros(len(TIMESTEPS), device=device) for _ in range(3))
        was = model.training
        model.eval()
        for number in range(max(1, self.count // self.rows)):
            batch = self.sampler.batch(number, phase).to(device)
            for i, t in enumerate(TIMESTEPS):
                at = replace(batch, timesteps=torch.full_like(batch.timesteps, t))
                own[i] += self._loss(model, at, phase)
                other[i] += self._loss(model, replace(at, vectors=at.vectors.roll(1, 0)), phase)
                if CONTROL in phase.places:
                    posed[i] += self._loss(model, replace(at, pose=at.pose.roll(1, 0)), phase)
        model.train(was)
        own, other, posed = torch.stack([own, other, posed]).tolist()  # the only wait
        gaps = {f"gap@{t}": theirs / ours - 1 for t, theirs, ours in zip(TIMESTEPS, other, own, strict=True)}
        found = {"gap": sum(gaps.values()) / len(gaps), **gaps}
        if CONTROL in phase.places:
            found["pose gap"] = sum(theirs / ours - 1 for theirs, ours in zip(posed, own, strict=True)) / len(own)
        return found

    def _loss(self, model: MagicIdModel, batch: Batch, phase: Phase) -> Tensor:
        predicted, _ = model(batch, phase.places)
        return weighted_error(predicted, batch.noise, batch.weights).mean()
