"""Sampling with a diffusers scheduler: one loop, one guided denoiser, for every method.

The loop goes wherever the scheduler's timesteps lead: with ``DDIMInverseScheduler`` it inverts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
        values: context of the cross-attention's values where it is another than that of its keys (a persona's
            residual), shaped as ``context``; None: ``context`` serves both.
        token_map: where the text is another than the prompt in which tokens are looked up, how its ``T`` tokens stand
            for those ``P`` of the prompt: ``T P``, rows sum to 1; None: the text is the prompt.
    """

    context: torch.Tensor
    added: Mapping[str, torch.Tensor] = field(default_factory=dict)
    values: torch.Tensor | None = None
    token_map: torch.Tensor | None = None

    def at(self, timestep: float) -> Conditioning:
        """What conditions a timestep: the same at all (see :class:`Text`)."""
        return self


class Text(Protocol):
    """What a prompt says: a :class:`Conditioning`, or another one at every timestep."""

    def at(self, timestep: float) -> Conditioning:
        """The conditioning of a timestep."""


@dataclass(frozen=True)
class Rows:
    """Conditioning of every row of a model call.

    Attributes:
        context: ``B T C``; with ``split`` ``B 2T C``, the keys' context and behind it the values'.
        added: see :class:`Conditioning`, ``B`` rows each.
        split: whether keys and values have contexts of their own.
        token_maps: per row, see :class:`Conditioning`.
    """

    context: torch.Tensor
    added: Mapping[str, torch.Tensor] = field(default_factory=dict)
    split: bool = False
    token_maps: tuple[torch.Tensor | None, ...] = ()

    @classmethod
    def of(cls, parts: Sequence[Conditioning], batch: int = 1) -> Rows:
        """``batch`` rows of each conditioning, one conditioning after the other; contexts must be equally long."""
        split = any(part.values is not None for part in parts)
        context = torch.cat([_expanded(part.context, batch) for part in parts])
        if split:
            values = [part.context if part.values is None else part.values for part in parts]
            context = torch.cat([context, torch.cat([_expanded(v, batch) for v in values])], dim=1)
        added = {name: torch.cat([_expanded(p.added[name], batch) for p in parts]) for name in parts[0].added}
        return cls(context, added, split, tuple(part.token_map for part in parts for _ in range(batch)))


def _expanded(x: torch.Tensor, batch: int) -> torch.Tensor:
    return x if x.shape[0] == batch else x.expand(batch, *x.shape[1:])


class Session(Protocol):
    """What a method does around a denoiser's model calls."""

    def call(
        self, timestep: torch.Tensor, conditional: Sequence[bool], latents: torch.Tensor, rows: Rows | None = None
    ) -> AbstractContextManager[Any]:
        """Entered round one UNet forward.

        Args:
            timestep: of all rows.
            conditional: per row whether it has the prompt (else the negative one).
            latents: the model's input ``B C h w``.
            rows: their conditioning; None: plain, unsplit contexts.
        """

    def guide(self, cond: torch.Tensor, uncond: torch.Tensor, scale: float) -> torch.Tensor:
        """Combine both predictions."""


class PlainSession:
    """Vanilla sampling."""

    def call(
        self, timestep: torch.Tensor, conditional: Sequence[bool], latents: torch.Tensor, rows: Rows | None = None
    ) -> AbstractContextManager[Any]:
        """Nothing is done round the forward."""
        return nullcontext()

    def guide(self, cond: torch.Tensor, uncond: torch.Tensor, scale: float) -> torch.Tensor:
        """Classifier-free guidance: ``uncond + scale (cond - uncond)``."""
        return uncond + scale * (cond - uncond)


def unet_forward(
    unet: torch.nn.Module, latents: torch.Tensor, timestep: torch.Tensor, rows: Rows
) -> torch.Tensor:
    """The UNet's prediction ``B C h w`` for latents ``B C h w``, each row with its conditioning.

    The UNet computes in its own type, the prediction comes back in that of the latents.
    """
    added = {name: x.to(latents.device, unet.dtype) for name, x in rows.added.items()} or None
    context = rows.context.to(latents.device, unet.dtype)
    inputs = latents.to(unet.dtype)
    out = unet(inputs, timestep, encoder_hidden_states=context, added_cond_kwargs=added, return_dict=False)[0]
    return out.to(latents)


def guided_denoiser(
    unet: torch.nn.Module,
    cond: Text,
    uncond: Text | None = None,
    scale: float = 7.5,
    session: Session | None = None,
    split: bool = False,
) -> Denoiser:
    """A denoiser with classifier-free guidance on a diffusers UNet.

    Args:
        unet: UNet2DConditionModel.
        cond: the prompt's :class:`Conditioning`, or what says another at every timestep.
        uncond: the negative prompt's; None samples without guidance.
        scale: guidance scale; 1 with ``uncond`` still evaluates both.
        session: a method's part in it; None is vanilla.
        split: evaluate both in a call each instead of one (the same result, less memory).
    """
    session = session or PlainSession()

    def evaluate(latents: torch.Tensor, timestep: torch.Tensor, parts: list[tuple[bool, Text]]) -> torch.Tensor:
        batch = latents.shape[0]
        inputs = torch.cat([latents] * len(parts))
        conditional = [label for label, _ in parts for _ in range(batch)]
        rows = Rows.of([text.at(float(timestep)) for _, text in parts], batch)
        with session.call(timestep, conditional, inputs, rows):
            return unet_forward(unet, inputs, timestep, rows)

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
        latents: ``B C h w``. With ``start`` 0 unit Gaussian noise (of an inverting scheduler the clean latents);
            later, latents already noised to that timestep in the scheduler's own scaling (``scheduler.add_noise``).
        scheduler: any diffusers scheduler with ``scale_model_input`` and ``step``, inverting ones included.
        callback: told after every step.
        generator: noise source of stochastic schedulers.
        start: index of the first timestep to run.

    Returns:
        Clean (of an inverting scheduler: noisy) latents ``B C h w`` in the model's scaled space.

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
