"""Sampling with a diffusers scheduler: one loop, one guided denoiser, for every method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from ...core.errors import bad_input

Denoiser = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""``(model input B C h w, timestep) -> prediction B C h w`` in the scheduler's prediction type, guidance included."""
Callback = Callable[[int, int, torch.Tensor], None]
"""``(steps done, steps in all, latents)``; may raise to stop."""


@dataclass(frozen=True)
class Conditioning:
    """Text conditioning of a UNet.

    Attributes:
        context: ``1 T C`` or ``B T C``, the text encoder's output.
        added: further conditions by diffusers' names (SDXL: ``text_embeds``, ``time_ids``), first dimension 1 or B.
    """

    context: torch.Tensor
    added: dict[str, torch.Tensor] = field(default_factory=dict)

    def rows(self, batch: int) -> Conditioning:
        """The same for a batch of ``batch``."""
        return Conditioning(_rows(self.context, batch), {name: _rows(x, batch) for name, x in self.added.items()})

    @staticmethod
    def join(parts: Sequence[Conditioning]) -> Conditioning:
        """Rows of several conditionings behind one another; contexts must be equally long."""
        added = {name: torch.cat([p.added[name] for p in parts]) for name in parts[0].added}
        return Conditioning(torch.cat([p.context for p in parts]), added)


def _rows(x: torch.Tensor, batch: int) -> torch.Tensor:
    return x if x.shape[0] == batch else x.expand(batch, *x.shape[1:])


class Session(Protocol):
    """What a method does around a denoiser's model calls."""

    def call(
        self, timestep: torch.Tensor, conditional: Sequence[bool], latents: torch.Tensor
    ) -> AbstractContextManager[Any]:
        """Entered round one UNet forward with these rows."""

    def guide(self, cond: torch.Tensor, uncond: torch.Tensor, scale: float) -> torch.Tensor:
        """Combine both predictions."""


class PlainSession:
    """Vanilla sampling."""

    def call(
        self, timestep: torch.Tensor, conditional: Sequence[bool], latents: torch.Tensor
    ) -> AbstractContextManager[Any]:
        """Nothing is done round the forward."""
        return nullcontext()

    def guide(self, cond: torch.Tensor, uncond: torch.Tensor, scale: float) -> torch.Tensor:
        """Classifier-free guidance: ``uncond + scale (cond - uncond)``."""
        return uncond + scale * (cond - uncond)


def unet_forward(
    unet: torch.nn.Module, latents: torch.Tensor, timestep: torch.Tensor, conditioning: Conditioning
) -> torch.Tensor:
    """The UNet's prediction for rows that all have their conditioning."""
    added = {name: x.to(latents) for name, x in conditioning.added.items()} or None
    context = conditioning.context.to(latents)
    return unet(latents, timestep, encoder_hidden_states=context, added_cond_kwargs=added, return_dict=False)[0]


def guided_denoiser(
    unet: torch.nn.Module,
    cond: Conditioning,
    uncond: Conditioning | None = None,
    scale: float = 7.5,
    session: Session | None = None,
    split: bool = False,
) -> Denoiser:
    """A denoiser with classifier-free guidance on a diffusers UNet.

    Args:
        unet: UNet2DConditionModel.
        cond: the prompt's conditioning.
        uncond: the negative prompt's; None samples without guidance.
        scale: guidance scale; 1 with ``uncond`` still evaluates both.
        session: a method's part in it; None is vanilla.
        split: evaluate both in a call each instead of one (the same result, less memory).
    """
    session = session or PlainSession()

    def evaluate(latents: torch.Tensor, timestep: torch.Tensor, parts: list[tuple[bool, Conditioning]]) -> torch.Tensor:
        batch = latents.shape[0]
        rows = torch.cat([latents] * len(parts))
        conditional = [label for label, _ in parts for _ in range(batch)]
        with session.call(timestep, conditional, rows):
            return unet_forward(unet, rows, timestep, Conditioning.join([c.rows(batch) for _, c in parts]))

    def denoise(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        if uncond is None:
            return evaluate(latents, timestep, [(True, cond)])
        if split:
            without = evaluate(latents, timestep, [(False, uncond)])
            return session.guide(evaluate(latents, timestep, [(True, cond)]), without, scale)
        without, with_ = evaluate(latents, timestep, [(False, uncond), (True, cond)]).chunk(2)
        return session.guide(with_, without, scale)

    return denoise


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    latents: torch.Tensor,
    scheduler: Any,
    callback: Callback | None = None,
    generator: torch.Generator | None = None,
    start: int = 0,
) -> torch.Tensor:
    """Denoise with a diffusers scheduler whose timesteps are set (``scheduler.set_timesteps(n)``).

    Args:
        denoiser: see :data:`Denoiser`.
        latents: ``B C h w``. With ``start`` 0 unit Gaussian noise; later, latents already noised to that timestep in
            the scheduler's own scaling (``scheduler.add_noise``).
        scheduler: any diffusers scheduler with ``scale_model_input`` and ``step``.
        callback: told after every step.
        generator: noise source of stochastic schedulers.
        start: index of the first timestep to run.

    Returns:
        Clean latents ``B C h w`` in the model's scaled space.

    Raises:
        LikenessError: the latents hold NaN or infinite values.
    """
    if not bool(torch.isfinite(latents).all()):
        raise bad_input("sampling: latents", "NaN or infinite values", "finite numbers", "Check what made them.")
    timesteps = scheduler.timesteps[start:]
    if start == 0:
        latents = latents * scheduler.init_noise_sigma
    elif hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    extra = {"generator": generator} if generator is not None else {}
    for done, timestep in enumerate(timesteps, start=1):
        prediction = denoiser(scheduler.scale_model_input(latents, timestep), timestep)
        latents = scheduler.step(prediction, timestep, latents, return_dict=False, **extra)[0]
        if callback is not None:
            callback(done, len(timesteps), latents)
    return latents
