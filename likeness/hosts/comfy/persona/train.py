"""Persona Train's work: photos in, a persona out, on the host's progress bar."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.model_management as management
import comfy.sample
import comfy.samplers
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
from .apply import apply
from .files import state_path
from .photos import NODE, encode_photos, fit_all, masks_for, with_identity
from .text import NamedPersona, unwritten
from .training_host import Judges, training_host

log = logging.getLogger("likeness")


@dataclass(frozen=True)
class TrainOptions:
    """What Persona Train Options hands to Persona Train; these defaults hold where none is connected.

    Attributes:
        request: the training; its supercategory is the one that Persona Train shows itself.
        name: of the persona, and of an unfinished training on the disk; ``resume`` goes on with it.
        side: of the training pictures in pixels, 0 for the model's own; ``crop`` cuts them to a square.
        clip_vision: embeds the pictures for the residual branch; None: their pooled latents do.
        faces: face models, for the identity loss and for masks.
        preview_every: steps between previews of ``preview_prompt``; 0: none.
    """

    request: PersonaTraining = field(default_factory=PersonaTraining)
    name: str = "persona"
    resume: bool = True
    side: int = 0
    crop: bool = False
    clip_vision: Any = None
    faces: FaceModels | None = None
    preview_every: int = 0
    preview_prompt: str = "a photo of S*"


@dataclass(frozen=True)
class Learned:
    """What the node gives out: the persona, curves as IMAGE, and the last preview (grey without one)."""

    persona: Persona
    loss: Tensor
    iou: Tensor
    preview: Tensor


def learn(
    model: Any,
    clip: Any,
    vae: Any,
    pictures: Tensor,
    masks: Tensor | None,
    supercategory: str,
    options: TrainOptions,
) -> Learned:
    """Train a persona. Leaves MODEL, CLIP and VAE as they were, also when it is cancelled or fails.

    Args:
        pictures: ``B 3 H W`` in [0, 1].
        masks: ``B 1 h w`` or ``1 1 h w`` in [0, 1]; None has them made.
        supercategory: the plain word for what is learnt.
    """
    if not len(pictures):
        raise bad_input(f"{NODE}: image", "an empty batch", "at least one picture", "Check where it comes from.")
    supercategory = unwritten(supercategory)
    side = options.side or native_side(model)
    masks = masks_for(pictures, masks, supercategory, options.faces)
    pictures, masks = (fit_all(x, side, options.crop) for x in (pictures, masks))
    photos = encode_photos(model, vae, options.clip_vision, pictures, masks)
    width = photos[0].image.numel() if options.request.image_width else 0
    request = replace(options.request, supercategory=supercategory, image_width=width)
    management.throw_exception_if_processing_interrupted()
    preview = Preview(model, clip, vae, side, options.preview_prompt)
    with torch.inference_mode(False), torch.enable_grad():
        identifier = None
        if request.identity > 0:
            photos, identifier = with_identity(options.faces, photos, pictures)
        judges = Judges(vae, identifier.embedder.model) if identifier else None
        host = training_host(model, clip, request, side, judges)
        trainer = PersonaTrainer(request, host, [photo.to(host.device) for photo in photos], identifier)
        try:
            persona = _run(trainer, options, preview)
        finally:
            del host
    return Learned(persona, draw_loss(trainer.history), draw_iou(persona), preview.last)


def _run(trainer: PersonaTrainer, options: TrainOptions, preview: Preview) -> Persona:
    """Train to the end, from where an unfinished training of that name stands; its file goes when it is done."""
    path = state_path(options.name)
    if options.resume and path.is_file():
        load_state(trainer, path)
    progress = Progress(trainer.config)
    persona = train(
        trainer,
        on_step=progress,
        checkpoint=lambda trainer: save_state(trainer, path),
        preview=lambda trainer: progress.show(preview(trainer)),
        preview_every=options.preview_every,
        name=options.name,
    )
    path.unlink(missing_ok=True)
    return persona.to("cpu")


def prompt_lines(text: str, name: str) -> tuple[str, ...]:
    """Prompts written one a line, each with ``{}`` once; empty lines are left out.

    Raises:
        LikenessError: a line without ``{}``, or with two.
    """
    lines = tuple(line.strip() for line in text.splitlines() if line.strip())
    for line in lines:
        if line.count("{}") != 1:
            raise bad_input(
                f"{NODE} Options: {name}", repr(line), "{} exactly once in every line", "It is the persona's place."
            )
    return lines


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
            log.info("%s: step %d of %d, loss %.4f", NODE, report.step, report.total, report.loss)

    def show(self, picture: Tensor | None) -> None:
        """A preview picture ``1 H W 3`` under the bar."""
        if picture is None:
            return
        pixels = (picture[0].clamp(0, 1) * 255).byte().cpu().numpy()
        self.bar.update_absolute(self.done, self.total, ("JPEG", Image.fromarray(pixels), 512))


class Preview:
    """Draws one picture with the persona so far, with the host's own sampler. A failure is told and not fatal."""

    def __init__(
        self, model: Any, clip: Any, vae: Any, side: int, prompt: str, steps: int = 16, guidance: float = 6.0
    ) -> None:
        self.model, self.clip, self.vae = model, clip, vae
        self.side, self.prompt, self.steps, self.guidance = side, prompt, steps, guidance
        self.last = torch.full((1, 64, 64, 3), 0.5)

    def __call__(self, trainer: PersonaTrainer) -> Tensor | None:
        try:
            with torch.inference_mode():
                self.last = self._draw(trainer.persona().to("cpu"))
        except LikenessError as error:
            log.warning("%s: no preview (%s)", NODE, error)
            return None
        return self.last

    def _draw(self, persona: Persona) -> Tensor:
        model, positive = apply(self.model, self.clip, (NamedPersona("S*", persona),), self.prompt)
        negative = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(""))
        latent = torch.zeros(1, 4, self.side // 8, self.side // 8)
        noise = comfy.sample.prepare_noise(latent, 0)
        sampling = model.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", self.steps)
        samples = comfy.sample.sample_custom(
            model, noise, self.guidance, comfy.samplers.sampler_object("ddim"), sigmas, positive, negative, latent,
            disable_pbar=True, seed=0,
        )  # fmt: skip
        return self.vae.decode(samples)[:1]
