"""Learns a persona: the loop of PersonaMagic, independent of the host.

UNet and text encoder are frozen; gradients run through their activations only, back to the mapper. All randomness of
a step is a function of (seed, step), so a run that was interrupted goes on with the very curve it would have had.
What a step has chosen goes to the device without waiting for it; a step waits once, for its losses.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from ...core.errors import LikenessError, bad_input
from ...core.persona.losses import identity_loss, masked_mse
from ...core.persona.mapper import Mapper, MapperOutput
from ...core.persona.persona import Persona
from ...core.persona.prompts import STYLE_TEMPLATES, TANDEM_PROMPTS, TEMPLATES
from ...core.persona.stages import IouCurve, Stages, iou_curve, stages_from_iou
from ...core.persona.tandem import tandem_loss
from ...core.persona.text import (
    TEMPLATE_SLOT,
    Contexts,
    Layout,
    Speaker,
    encode,
    lay_out,
    splice,
    supercategory_embedding,
)
from ...core.schedule import clean_estimate
from .photos import Photo
from .request import Batch, Denoiser, PersonaTraining, StepReport, TrainingHost

logger = logging.getLogger("likeness")


def _laid(layouts: Sequence[Layout], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids ``B L`` and the persona's positions ``B n``, on a device."""
    ids = torch.stack([layout.ids for layout in layouts])
    positions = torch.stack([layout.slots[TEMPLATE_SLOT] for layout in layouts])
    return ids.to(device, non_blocking=True), positions.to(device, non_blocking=True)


class PersonaTrainer:
    """A run's state and its one step.

    Args:
        config: the request.
        host: the frozen models.
        photos: the training examples, at least one.
        identify: ``B 3 H W`` in [0, 1] and photos -> ``B E`` face embeddings; needed by the identity loss.
    """

    def __init__(
        self,
        config: PersonaTraining,
        host: TrainingHost,
        photos: Sequence[Photo],
        identify: Callable[[Tensor, list[Photo]], Tensor] | None = None,
    ) -> None:
        self.config, self.host, self.photos, self.identify = config, host, list(photos), identify
        self.alphas = host.alphas_cumprod.to(host.device, torch.float32)  # T
        self._check()
        templates = config.templates or (STYLE_TEMPLATES if config.style else TEMPLATES)
        self.templates = [self._layout(t) for t in templates]
        self.tandem_prompts = [self._layout(t) for t in config.tandem_prompts or TANDEM_PROMPTS]
        pieces = host.tokenizer.pieces(config.supercategory)
        self.word = supercategory_embedding(host.text, pieces, config.subtokens)
        self.stages = Stages(config.low, config.high, config.late)
        self.curve: IouCurve | None = None
        self.step, self.history = 0, []
        self._fresh(self.stages)

    def _check(self) -> None:
        if not self.photos:
            raise bad_input("Persona Train: images", "none", "at least one picture", "Connect a picture.")
        shapes = {photo.latent.shape for photo in self.photos}
        if len(shapes) > 1:
            raise bad_input("Persona Train: images", f"latents {shapes}", "one size", "Prepare all photos alike.")
        for photo in self.photos:
            if photo.mask.amax() <= 0:
                raise bad_input("Persona Train: mask", "an empty mask", "some weight above 0", "Paint the face.")
            if self.config.identity > 0 and (photo.identity is None or self.identify is None):
                raise bad_input(
                    "Persona Train: identity loss",
                    "a picture with no face found, or no face model",
                    "a face in every picture",
                    "Set the identity weight to 0, or use another picture.",
                )

    def _layout(self, template: str) -> Layout:
        return lay_out(template, {TEMPLATE_SLOT: self.config.tokens}, self.host.tokenizer, self.host.tokenizer.bos)

    def _fresh(self, stages: Stages) -> None:
        """A new mapper and optimiser whose anchors span the stages' dynamic range."""
        device = self.host.device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            bounds = (stages.low, stages.high)
            mapper = Mapper(self.config.mapper_config(self.host.text.widths, bounds), self.word.cpu())
        self.stages = stages
        self.mapper = mapper.to(device).train()
        self.optimiser = torch.optim.AdamW(
            self.mapper.parameters(),
            lr=self.config.learning_rate,
            betas=self.config.betas,
            weight_decay=self.config.weight_decay,
        )

    # --- one step ---------------------------------------------------------------------------------------------------

    def batch(self, step: int, bounds: tuple[int, int]) -> Batch:
        """The random choices of a step: a function of the seed and the step alone."""
        config = self.config
        generator = torch.Generator().manual_seed((config.seed + 1) * 1_000_003 + step)

        def choose(count: int) -> list[int]:
            return torch.randint(count, (config.batch,), generator=generator).tolist()

        photos = [self.photos[i] for i in choose(len(self.photos))]
        timesteps = torch.randint(bounds[0], bounds[1], (config.batch,), generator=generator)
        noise = torch.randn((config.batch, *photos[0].latent.shape), generator=generator)
        layouts = [self.templates[i] for i in choose(len(self.templates))]
        tandem = [self.tandem_prompts[i] for i in choose(len(self.tandem_prompts))]
        device = self.host.device
        judged = (timesteps < config.identity_below).nonzero().flatten() if config.identity > 0 else None
        timesteps, noise = (x.to(device, non_blocking=True) for x in (timesteps, noise))
        return Batch(photos, timesteps, noise, layouts, tandem, generator, judged)

    def contexts(self, words: MapperOutput, layouts: Sequence[Layout]) -> Contexts:
        """Key and value contexts ``B L C`` of the layouts with these words."""
        ids, positions = _laid(layouts, self.host.device)
        return encode(self.host.text, ids, [Speaker(positions, words.words, words.residual, words.kept)])

    def tandem_term(self, words: MapperOutput, layouts: Sequence[Layout]) -> Tensor:
        """Tandem Equilibrium on prompts of their own; the text encoder alone, no residual."""
        text = self.host.text
        ids, positions = _laid(layouts, self.host.device)
        queries, keys = text.last_queries_keys(splice(text.embed(ids), positions, words.words))
        slots = [layout.slots[TEMPLATE_SLOT] for layout in layouts]
        return tandem_loss(queries, keys, slots, [layout.words for layout in layouts], self.config.tandem)

    def identity_term(self, batch: Batch, noisy: Tensor, predicted: Tensor, alphas: Tensor) -> Tensor | None:
        """Eq. 3 and 4 on the samples whose estimate is clear enough to judge; None if there are none."""
        if batch.judged is None or not len(batch.judged):
            return None
        photos = [batch.photos[i] for i in batch.judged.tolist()]
        chosen = batch.judged.to(noisy.device, non_blocking=True)
        pixels = self.host.decode_image(clean_estimate(noisy[chosen], predicted[chosen], alphas[chosen]))
        reference = torch.stack([photo.identity for photo in photos])
        share, total = len(chosen) / len(batch.photos), len(self.alphas)
        return share * identity_loss(self.identify(pixels, photos), reference, batch.timesteps[chosen], total)

    def losses(self, denoise: Denoiser, batch: Batch) -> dict[str, Tensor]:
        """All active terms, already weighted (Eq. 5 is their sum)."""
        config = self.config
        image = None
        if config.image_width:
            image = torch.stack([photo.image for photo in batch.photos])
        words = self.mapper(batch.timesteps, image, batch.generator)
        key, value = self.contexts(words, batch.layouts)
        latents = torch.stack([photo.latent for photo in batch.photos])
        mask = torch.stack([photo.mask for photo in batch.photos])
        alphas = self.alphas[batch.timesteps]  # B
        level = alphas.view(-1, 1, 1, 1)
        noisy = level.sqrt() * latents + (1 - level).sqrt() * batch.noise
        predicted = denoise(noisy, batch.timesteps, key, value)
        terms = {"mse": masked_mse(predicted, batch.noise, mask)}
        if config.tandem.weight:
            terms["tandem"] = self.tandem_term(words, batch.tandem)
        if config.identity > 0:
            term = self.identity_term(batch, noisy, predicted, alphas)
            if term is not None:
                terms["identity"] = config.identity * term
        return terms

    def advance(self, denoise: Denoiser, bounds: tuple[int, int], warmup: bool = False) -> StepReport:
        """One optimiser step."""
        start = time.perf_counter()
        batch = self.batch(self.step, bounds)
        device = self.host.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.config.precision == "bf16"):
            terms = self.losses(denoise, batch)
        losses = torch.stack([term.float() for term in terms.values()])
        self.optimiser.zero_grad(set_to_none=True)
        losses.sum().backward()
        told = losses.detach().tolist()  # the step's only wait, when the device has all its work but the optimiser's
        loss = sum(told)
        if not math.isfinite(loss):
            raise LikenessError(
                f"Persona Train: the loss at step {self.step} is {loss}. Lower the learning rate, or train in bf16 or "
                "fp32 if the model runs in fp16."
            )
        self.optimiser.step()
        self.step += 1
        parts = dict(zip(terms, told, strict=True))
        total = self.config.warmup if warmup else self.config.steps
        report = StepReport(self.step, total, loss, parts, time.perf_counter() - start, warmup)
        if not warmup:
            self.history.append(report.loss)
        return report

    # --- stages from attention --------------------------------------------------------------------------------------

    @torch.no_grad()
    def measure_curve(self, denoise: Denoiser, every: int = 20) -> IouCurve:
        """IoU of the persona's attention and the mask over the whole schedule, mean over photos (Fig. 2)."""
        timesteps = list(range(len(self.alphas) - every, -1, -every))
        layout = self.templates[0]
        curves = [self._photo_curve(denoise, photo, timesteps, layout) for photo in self.photos]
        maps, masks = zip(*curves, strict=True)
        joined = [iou_curve(timesteps, m, k, self.config.calibrated) for m, k in zip(maps, masks, strict=True)]
        iou = torch.tensor([curve.iou for curve in joined]).mean(dim=0)
        smooth = torch.tensor([curve.smooth for curve in joined]).mean(dim=0)
        return IouCurve(tuple(timesteps), tuple(iou.tolist()), tuple(smooth.tolist()))

    def _photo_curve(
        self, denoise: Denoiser, photo: Photo, timesteps: list[int], layout: Layout
    ) -> tuple[Tensor, Tensor]:
        device, maps = self.host.device, []
        generator = torch.Generator().manual_seed(self.config.seed)
        noise = torch.randn(photo.latent.shape, generator=generator).to(device)
        image = None if photo.image is None else photo.image[None]
        for chunk in torch.tensor(timesteps, device=device).split(5):
            level = self.alphas[chunk].view(-1, 1, 1, 1)
            noisy = level.sqrt() * photo.latent + (1 - level).sqrt() * noise
            key, value = self.contexts(self.mapper(chunk, image), [layout] * len(chunk))
            maps.append(denoise.maps(noisy, chunk, key, value, layout.slots[TEMPLATE_SLOT]))
        return torch.cat(maps), photo.mask[0]

    def partition(self, denoise: Denoiser, on_step: Callable[[StepReport], None] | None = None) -> None:
        """Warm up over the whole schedule, measure the curve, set the stages, start afresh inside them.

        The warm-up's weights are dropped: their anchors span all timesteps, the final ones only the dynamic stage.
        """
        config = self.config
        everything = Stages(0, len(self.alphas), config.late)
        self._fresh(everything)
        self.step = 0
        while self.step < config.warmup:
            report = self.advance(denoise, (everything.low, everything.high), warmup=True)
            if on_step is not None:
                on_step(report)
        self.curve = self.measure_curve(denoise)
        stages, found = stages_from_iou(
            self.curve, config.lambda1, config.lambda2, config.late, (config.low, config.high)
        )
        if not found:
            logger.warning("Persona Train: the IoU curve has no usable stage; %d-%d is used.", config.low, config.high)
        self.step = 0
        self._fresh(stages)

    # --- results ----------------------------------------------------------------------------------------------------

    def persona(self, name: str = "persona") -> Persona:
        """The persona as it stands, a copy that further steps do not change."""
        mapper = Mapper(self.mapper.config, self.mapper.supercategory.cpu())
        mapper.load_state_dict({k: v.detach().cpu() for k, v in self.mapper.state_dict().items()})
        images = [photo.image.detach().cpu() for photo in self.photos if photo.image is not None]
        record = {**self.config.to_dict(), "done": self.step}
        if self.curve is not None:
            record["iou"] = {"timesteps": self.curve.timesteps, "iou": self.curve.iou, "smooth": self.curve.smooth}
        return Persona(
            mapper=mapper.to(self.host.device).eval().requires_grad_(False),
            stages=self.stages,
            supercategory=self.config.supercategory,
            image=torch.stack(images).to(self.host.device) if images and self.config.image_width else None,
            name=name,
            base={**self.host.base, "text_widths": list(self.host.text.widths)},
            training=record,
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that a later run needs to go on: tensors, and plain JSON values."""
        tensors = {f"mapper.{k}": v.detach().cpu().contiguous() for k, v in self.mapper.state_dict().items()}
        for index, values in self.optimiser.state_dict()["state"].items():
            for name, value in values.items():
                tensors[f"optimiser.{index}.{name}"] = torch.as_tensor(value).detach().cpu().contiguous()
        for index, photo in enumerate(self.photos):
            tensors[f"photo.{index}"] = photo.latent.detach().cpu().contiguous()
        plain = {
            "step": self.step,
            "history": self.history,
            "stages": asdict(self.stages),
            "config": self.config.to_dict(),
            "curve": None if self.curve is None else asdict(self.curve),
        }
        return tensors, plain

    def restore(self, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        """Go on from :meth:`state`; only the number of steps may differ from the saved request.

        Raises:
            LikenessError: the saved run had other settings or pictures.
        """
        self._check_resumed(tensors, plain)
        self._fresh(Stages(**plain["stages"]))
        self.mapper.load_state_dict(
            {k.removeprefix("mapper."): v for k, v in tensors.items() if k.startswith("mapper.")}
        )
        slots: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimiser."):
                _, index, entry = name.split(".", 2)
                slots.setdefault(int(index), {})[entry] = value
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": slots})
        self.step, self.history = plain["step"], list(plain["history"])
        if plain["curve"] is not None:
            self.curve = IouCurve(**{k: tuple(v) for k, v in plain["curve"].items()})

    def _check_resumed(self, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        """A saved run goes on only with the settings and the pictures it began with."""
        saved = replace(PersonaTraining.from_dict(plain["config"]), steps=self.config.steps)
        ours, theirs = self.config.to_dict(), saved.to_dict()
        differing = [f"{k} {theirs[k]!r} then, {ours[k]!r} now" for k in ours if ours[k] != theirs[k]]
        latents = [value for name, value in tensors.items() if name.startswith("photo.")]
        known = all(
            f"photo.{i}" in tensors and _alike(tensors[f"photo.{i}"], photo.latent.cpu())
            for i, photo in enumerate(self.photos)
        )
        if not known or len(latents) != len(self.photos):
            differing.append("other pictures")
        if differing:
            raise bad_input(
                "Persona Train: resume",
                f"an unfinished training of this name with other settings ({', '.join(differing)})",
                "what it began with",
                "Put that back, switch resume off to begin anew, or choose another name.",
            )


def _alike(a: Tensor, b: Tensor) -> bool:
    """Whether two latents are of one picture; a GPU does not encode it twice to the bit."""
    return a.shape == b.shape and bool((a - b).abs().mean() <= 0.05 * a.abs().mean())


def train(
    trainer: PersonaTrainer,
    on_step: Callable[[StepReport], None] | None = None,
    checkpoint: Callable[[PersonaTrainer], None] | None = None,
    checkpoint_every: int = 100,
    preview: Callable[[PersonaTrainer], None] | None = None,
    preview_every: int = 0,
    name: str = "persona",
) -> Persona:
    """Run a trainer to its end, from wherever it stands.

    Args:
        on_step: called after every step; raising from it cancels the run.
        checkpoint: saves the trainer's state, every ``checkpoint_every`` steps and also when the run is cut short.
        preview: draws a picture with the persona so far, every ``preview_every`` steps; the host is closed then.
    """
    config = trainer.config
    if config.stages == "iou" and trainer.curve is None:
        with trainer.host.open(config.checkpointing) as denoise:
            trainer.partition(denoise, on_step)
    try:
        while trainer.step < config.steps:
            pause = min([config.steps, *([_next(trainer.step, preview_every)] if preview and preview_every else [])])
            with trainer.host.open(config.checkpointing) as denoise:
                while trainer.step < pause:
                    report = trainer.advance(denoise, (trainer.stages.low, trainer.stages.high))
                    if on_step is not None:
                        on_step(report)
                    if checkpoint is not None and trainer.step % checkpoint_every == 0:
                        checkpoint(trainer)
            if preview is not None and preview_every and trainer.step % preview_every == 0:
                preview(trainer)
    except BaseException:
        if checkpoint is not None and trainer.step:
            _save_quietly(checkpoint, trainer)
        raise
    return trainer.persona(name)


def _next(step: int, every: int) -> int:
    return (step // every + 1) * every


def _save_quietly(checkpoint: Callable[[PersonaTrainer], None], trainer: PersonaTrainer) -> None:
    """Save on the way out; the error that ended the run must stay the one that is seen."""
    try:
        checkpoint(trainer)
    except Exception as error:
        logger.error("Persona Train: the state could not be saved (%s).", error)
