"""Persona Train's work: photos in, a persona out, on the host's progress bar."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management as management
import comfy.utils
import torch
from PIL import Image
from torch import Tensor

from ....core.errors import LikenessError, bad_input
from ....core.persona.persona import Persona
from ....drawing.curves import draw_iou, draw_loss
from ....faces.interface import FaceModels
from ....training.persona.request import PersonaTraining, StepReport
from ....training.persona.state import load_state, save_state
from ....training.persona.trainer import PersonaTrainer, train
from ..unet import native_side
from .files import state_path
from .photos import _on, fitted_pictures, prepare_photos, with_identity
from .session import NamedPersona, apply
from .training_host import NODE, Judging, training_host

log = logging.getLogger("likeness")


@dataclass(frozen=True)
class Inputs:
    """What is connected to the node; see its tooltips."""

    model: Any
    clip: Any
    vae: Any
    image: Tensor
    mask: Tensor | None
    clip_vision: Any
    size: int
    crop: bool
    name: str
    resume: bool
    preview_every: int
    preview_prompt: str
    faces: FaceModels | None = None


@dataclass(frozen=True)
class Learned:
    """What the node gives out: the persona, curves as IMAGE, and the last preview (grey without one)."""

    persona: Persona
    loss: Tensor
    iou: Tensor
    preview: Tensor


def learn(inputs: Inputs, request: PersonaTraining) -> Learned:
    """Train a persona. Leaves MODEL, CLIP and VAE as they were, also when it is cancelled or fails."""
    size = inputs.size or native_side(inputs.model)
    pictures = fitted_pictures(inputs, size)
    photos, image_width = prepare_photos(inputs, pictures, request.supercategory)
    request = replace(request, image_width=image_width if request.image_width else 0)
    management.throw_exception_if_processing_interrupted()
    with torch.inference_mode(False), torch.enable_grad():
        identify = None
        if request.identity > 0:
            photos, identify = with_identity(inputs.faces, photos, pictures)
        host = training_host(
            inputs.model, inputs.clip, request.supercategory, (size, size), request.precision, request.checkpointing,
            Judging(inputs.vae, identify.embedder.model) if identify else None,
        )  # fmt: skip
        trainer = PersonaTrainer(request, host, [_on(photo, host.device) for photo in photos], identify)
        path = state_path(inputs.name)
        if inputs.resume and path.is_file():
            load_state(trainer, path)
        report = Progress(request)
        preview = Preview(inputs, size)
        try:
            persona = train(
                trainer,
                on_step=report,
                checkpoint=lambda t: save_state(t, path),
                preview=lambda t: report.show(preview(t)),
                preview_every=inputs.preview_every,
                name=inputs.name,
            )
        finally:
            del host
        path.unlink(missing_ok=True)
    _to_cpu(persona)
    return Learned(persona, draw_loss(trainer.history), draw_iou(persona), preview.last)


def prompt_lines(text: str, name: str) -> tuple[str, ...]:
    """Prompts written one a line, each with ``{}`` once; empty lines are left out.

    Raises:
        LikenessError: a line without ``{}``, or with two.
    """
    lines = tuple(line.strip() for line in text.splitlines() if line.strip())
    for line in lines:
        if line.count("{}") != 1:
            raise bad_input(
                f"{NODE}: {name}", repr(line), "{} exactly once in every line", "It is the persona's place."
            )
    return lines


def _to_cpu(persona: Persona) -> None:
    persona.mapper.to("cpu")
    if persona.image is not None:
        persona.image.data = persona.image.data.cpu()


class Progress:
    """Ticks the host's bar; the host raises its interrupt from here, which cancels the training."""

    def __init__(self, request: PersonaTraining) -> None:
        self.warmup = request.warmup if request.stages == "iou" else 0
        self.total = self.warmup + request.steps
        self.bar = comfy.utils.ProgressBar(self.total)
        self.done = 0

    def __call__(self, report: StepReport) -> None:
        management.throw_exception_if_processing_interrupted()
        self.done = report.step + (0 if report.warmup else self.warmup)
        self.bar.update_absolute(self.done, self.total)
        if report.step % 50 == 0:
            log.info("Persona Train: step %d of %d, loss %.4f", report.step, report.total, report.loss)

    def show(self, picture: Tensor | None) -> None:
        """A preview picture ``1 H W 3`` under the bar."""
        if picture is None:
            return
        pixels = (picture[0].clamp(0, 1) * 255).byte().cpu().numpy()
        self.bar.update_absolute(self.done, self.total, ("JPEG", Image.fromarray(pixels), 512))


class Preview:
    """Draws one picture with the persona so far, with the host's own sampler. A failure is told and not fatal."""

    def __init__(self, inputs: Inputs, size: int, steps: int = 16, guidance: float = 6.0) -> None:
        self.inputs, self.size, self.steps, self.guidance = inputs, size, steps, guidance
        self.last = torch.full((1, 64, 64, 3), 0.5)

    def __call__(self, trainer: PersonaTrainer) -> Tensor | None:
        persona = trainer.persona(self.inputs.name)
        _to_cpu(persona)
        try:
            with torch.inference_mode():
                self.last = self._draw(persona)
        except LikenessError as error:
            log.warning("Persona Train: no preview (%s)", error)
            return None
        return self.last

    def _draw(self, persona: Persona) -> Tensor:
        import comfy.sample
        import comfy.samplers

        inputs = self.inputs
        model, positive = apply(inputs.model, inputs.clip, (NamedPersona("S*", persona),), inputs.preview_prompt)
        negative = inputs.clip.encode_from_tokens_scheduled(inputs.clip.tokenize(""))
        latent = torch.zeros(1, 4, self.size // 8, self.size // 8)
        noise = comfy.sample.prepare_noise(latent, 0)
        sampling = model.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", self.steps)
        samples = comfy.sample.sample_custom(
            model, noise, self.guidance, comfy.samplers.sampler_object("ddim"), sigmas, positive, negative, latent,
            disable_pbar=True, seed=0,
        )  # fmt: skip
        return inputs.vae.decode(samples)[:1]
