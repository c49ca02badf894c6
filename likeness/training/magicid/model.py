"""Everything that MMF trains, as one module."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...core.blocks import UNetLayout
from ...core.magicid.encoder import FaceFeatures, IdentityEncoder
from ...core.magicid.projections import IdentityAttention
from .attention import TrainingCall
from .request import CONTROL, MagicIdTraining, Phase, TrainingHost
from .samples import Batch


class MagicIdModel(nn.Module):
    """Encoder, identity attention of each place, and the ControlNet.

    Args:
        host: the frozen base model; not a part of this module.
        layouts: of each place's network.
        control: the ControlNet, None where no phase trains it.
    """

    def __init__(
        self, host: TrainingHost, encoder: IdentityEncoder, attention: dict[str, IdentityAttention],
        layouts: dict[str, UNetLayout], control: nn.Module | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.encoder, self.attention, self.control = encoder, nn.ModuleDict(attention), control
        self.layouts, self._host = layouts, (host,)

    @property
    def host(self) -> TrainingHost:
        """The frozen base model."""
        return self._host[0]

    def learn(self, phase: Phase) -> None:
        """Let what a phase trains take gradients, and nothing else."""
        self.requires_grad_(False)
        self.encoder.requires_grad_(phase.encoder)
        for place in phase.places:
            self.attention[place].requires_grad_(True)
        if CONTROL in phase.places:
            self.control.requires_grad_(True)

    def groups(self, config: MagicIdTraining) -> list[dict]:
        """Parameter groups of what learns: the ControlNet's copied weights at a rate of their own."""
        copied = [] if self.control is None else [p for p in self.control.parameters() if p.requires_grad]
        known = {id(p) for p in copied}
        own = [p for p in self.parameters() if p.requires_grad and id(p) not in known]
        rates = ((own, 1.0), (copied, config.control_rate))
        return [{"params": part, "rate": rate} for part, rate in rates if part]

    def forward(
        self, batch: Batch, places: Sequence[str], keep: bool = False
    ) -> tuple[Tensor, dict[str, TrainingCall]]:
        """Predicted noise ``B 4 h w``, and the calls of the places that acted.

        Args:
            places: that act. keep: whether the calls keep features for ``L_cfa``.
        """
        count, people, width = batch.vectors.shape
        tokens = self.encoder(FaceFeatures(vector=batch.vectors.reshape(-1, width))).unflatten(0, (count, people))
        calls = {p: TrainingCall(self.attention[p], self.layouts[p], tokens, batch.planes, keep) for p in places}
        level = self.host.alphas_cumprod.to(batch.latents)[batch.timesteps].view(-1, 1, 1, 1)
        noisy = level.sqrt() * batch.latents + (1 - level).sqrt() * batch.noise
        control = self.control if CONTROL in places else None
        predicted = self.host.predict(noisy, batch.timesteps, batch.text, calls, control, batch.pose)
        return predicted, calls


class Average:
    """The moving average of a module's parameters, by name."""

    def __init__(self, module: nn.Module) -> None:
        self.values = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module, decay: float) -> None:
        """Move towards the parameters that learn."""
        learning = {name: p for name, p in module.named_parameters() if p.requires_grad}
        torch._foreach_lerp_([self.values[name] for name in learning], list(learning.values()), 1 - decay)

    @torch.no_grad()
    def put(self, module: nn.Module) -> None:
        """Give the module the averaged values."""
        for name, p in module.named_parameters():
            p.copy_(self.values[name])
