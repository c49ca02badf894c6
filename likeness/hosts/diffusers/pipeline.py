"""Text to picture without ComfyUI: one base model, with personas and MagicFace in one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from ...core.magicface.request import MagicFaceRequest, Reference
from ...core.masks import check_mask
from ...core.persona.persona import Persona
from ...core.persona.text import TextEncoder, Tokenizer, plain_ids
from ...core.prompt import find_phrase
from .magicface import magicface, make_reference
from .persona import (
    DiffusersDenoiser,
    StagedConditioning,
    checkpointed,
    frozen,
    persona_contexts,
    persona_token_map,
    plain_contexts,
    split_contexts,
    supercategory_prompt,
)
from .sampling import Callback, Conditioning, Denoiser, PlainSession, Session, Text, guided_denoiser, sample

LATENT_FACTOR = 8
LATENT_CHANNELS = 4
#: Stable Diffusion's noise schedule (SD1.x, SD2.x, SDXL), as diffusers' schedulers take it.
SCHEDULE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
#: How DDIM runs on it: the last step ends at the lowest trained level.
SAMPLER = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}

Personas = Mapping[str, Persona]
"""By the placeholder that stands for each in the prompt."""


@dataclass(frozen=True)
class Pipeline:
    """The models of one base, and what is done with them headless. A host of persona training, too.

    Attributes:
        unet: UNet2DConditionModel.
        text, tokenizer: of the prompt, as the core's persona package takes them.
        encode_image: ``B 3 H W`` in [0, 1] -> latents ``B 4 h w`` in the model's scaled space.
        decode_image: the inverse, differentiable and not clamped.
        side: picture side in pixels the UNet was trained at.
        name: for tables.
        base: description written into personas.
        schedule: of a DDIM scheduler; its ``prediction_type`` is the model's.
        pool: SDXL's pooled text embedding: ``B L`` ids -> ``B P``.
    """

    unet: nn.Module
    text: TextEncoder
    tokenizer: Tokenizer
    encode_image: Callable[[Tensor], Tensor]
    decode_image: Callable[[Tensor], Tensor]
    side: int = 512
    name: str = "model"
    base: dict = field(default_factory=dict)
    schedule: Mapping[str, Any] = field(default_factory=lambda: dict(SCHEDULE))
    pool: Callable[[Tensor], Tensor] | None = None

    @property
    def device(self) -> torch.device:
        """Where the UNet lives."""
        return next(self.unet.parameters()).device

    @property
    def prediction(self) -> str:
        """``epsilon`` or ``v_prediction``."""
        return self.schedule.get("prediction_type", "epsilon")

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """Cumulative alphas of the training schedule, ``T``."""
        return self.scheduler().alphas_cumprod

    def scheduler(self, steps: int | None = None) -> DDIMScheduler:
        """A DDIM scheduler of this model; with ``steps`` its timesteps are set."""
        made = DDIMScheduler(**{**self.schedule, **SAMPLER})
        if steps is not None:
            made.set_timesteps(steps)
        return made

    # --- pictures -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Pictures ``B 3 H W`` in [0, 1], sides multiples of 8, to scaled latents ``B 4 H/8 W/8``."""
        return self.encode_image(images.to(self.device))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents to pictures ``B 3 H W`` in [0, 1], on the CPU."""
        return self.decode_image(latents).clamp(0, 1).float().cpu()

    def noise(self, seeds: Sequence[int], height: int | None = None, width: int | None = None) -> Tensor:
        """Start noise ``B 4 h w`` of pictures so many pixels high and wide, one seed each; the same on every device."""
        shape = (LATENT_CHANNELS, *((side or self.side) // LATENT_FACTOR for side in (height, width)))
        draws = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(draws).to(self.device)

    # --- texts --------------------------------------------------------------------------------------------------------

    def conditioning(self, prompts: Sequence[str], size: tuple[int, int] | None = None) -> Conditioning:
        """Conditioning of plain prompts, a row each.

        Args:
            prompts: what is asked for.
            size: height and width in pixels, which SDXL is told; by default :attr:`side`.
        """
        return Conditioning(plain_contexts(self, prompts).key, self._added(prompts, size))

    def persona_conditioning(
        self, prompt: str, personas: Personas, timesteps: Sequence[int], size: tuple[int, int] | None = None
    ) -> StagedConditioning:
        """Conditioning of a prompt in which personas speak, for every timestep of a schedule.

        Raises:
            LikenessError: a placeholder is missing or doubled, or a persona belongs to another base.
        """
        staged = persona_contexts(self, prompt, personas, timesteps)
        added = self._added([supercategory_prompt(prompt, personas)], size)
        return StagedConditioning(staged, added, persona_token_map(self.tokenizer, prompt, personas))

    @torch.no_grad()
    def _added(self, prompts: Sequence[str], size: tuple[int, int] | None) -> dict[str, Tensor]:
        if self.pool is None:
            return {}
        height, width = size or (self.side, self.side)
        pooled = self.pool(plain_ids(prompts, self.tokenizer).to(self.device))
        return {
            "text_embeds": pooled,
            "time_ids": pooled.new_tensor([[height, width, 0, 0, height, width]]).expand(len(prompts), -1),
        }

    def reference(
        self, image: Tensor, word: str, prompt: str, mask: Tensor | None = None, weight: float = 3.0,
        own_prompt: str | None = None, region: Tensor | None = None,
    ) -> Reference:
        """One concept picture, ready for a MagicFace request.

        Args:
            image: ``3 H W`` in [0, 1].
            word: the concept's word or phrase; it must stand in ``prompt``.
            prompt: the prompt of the picture to be made; where a persona speaks, with its plain word instead (see
                :func:`supercategory_prompt`).
            mask: ``h w`` in [0, 1] of any size; None is the whole picture.
            weight: w of section 3.2.4.
            own_prompt: prompt of the reference's own forward; None is the word.
            region: where in the new picture it belongs, ``h w`` in [0, 1] of any size; None: where the map finds it.
        """
        name = f"MagicFace reference '{word}'"
        if mask is not None:
            check_mask(mask, name)
        if region is not None:
            check_mask(region, name, "region", "to let the semantic map find its place")
        words_of = self.tokenizer.words
        found = find_phrase(words_of(word), words_of(prompt), name=word, text=prompt, source=f"{name}: prompt")
        context = self.conditioning([word if own_prompt is None else own_prompt], tuple(image.shape[-2:]))
        positions = tuple(position for occurrence in found for position in occurrence)
        return make_reference(word, self.encode(image[None]), context, positions, mask, weight, region)

    # --- sampling -----------------------------------------------------------------------------------------------------

    @contextmanager
    def denoiser(
        self, cond: Text, uncond: Text | None, scale: float, scheduler: Any, request: MagicFaceRequest | None = None,
        start: int = 0, around: Callable[[Session], Session] | None = None,
    ) -> Iterator[Denoiser]:
        """The UNet with everything that is asked of one sampling run; left as it was when the block ends.

        Args:
            cond: a :class:`Conditioning`, or a persona's.
            uncond: the negative prompt's; None samples without guidance.
            scale: of the guidance.
            scheduler: of the run, its timesteps set.
            request: MagicFace's; None is without.
            start: index of the first timestep to run.
            around: puts a session of the caller's round the run's own, to be told of every model call.
        """
        with ExitStack() as stack:
            if any(isinstance(text, StagedConditioning) for text in (cond, uncond)):
                stack.enter_context(split_contexts(self.unet))
            session: Session = PlainSession()
            if request is not None:
                session = stack.enter_context(magicface(self.unet, request, scheduler, start=start))
            yield guided_denoiser(self.unet, cond, uncond, scale, around(session) if around else session)

    def sample(
        self, latents: Tensor, prompt: str, *, negative: str = "", personas: Personas | None = None,
        request: MagicFaceRequest | None = None, steps: int = 30, scale: float = 5.0, callback: Callback | None = None,
    ) -> Tensor:
        """Unit noise ``B 4 h w`` to clean latents by DDIM; the other arguments are :meth:`generate`'s."""
        scheduler = self.scheduler(steps)
        size = tuple(side * LATENT_FACTOR for side in latents.shape[-2:])
        cond: Text
        if personas:
            cond = self.persona_conditioning(prompt, personas, scheduler.timesteps.tolist(), size)
        else:
            cond = self.conditioning([prompt], size)
        uncond = self.conditioning([negative], size)
        with self.denoiser(cond, uncond, scale, scheduler, request) as denoise:
            return sample(denoise, latents, scheduler, callback)

    def generate(
        self, prompt: str, seeds: Sequence[int], request: MagicFaceRequest | None = None, steps: int = 30,
        scale: float = 5.0, width: int | None = None, callback: Callback | None = None, *, height: int | None = None,
        negative: str = "", personas: Personas | None = None,
    ) -> Tensor:
        """Pictures ``B 3 H W`` in [0, 1] of one prompt, one seed each; DDIM with classifier-free guidance.

        Args:
            prompt: what to draw; with ``personas`` each one's placeholder exactly once in it.
            seeds: one a picture.
            request: MagicFace's; None is without. Its references are made for the prompt, see :meth:`reference`.
            steps, scale: of the sampler and of the guidance.
            width, height: in pixels, where not :attr:`side`.
            callback: told after every step.
            negative: negative prompt.
            personas: who stands for which placeholder.
        """
        latents = self.sample(
            self.noise(seeds, height, width), prompt, negative=negative, personas=personas, request=request,
            steps=steps, scale=scale, callback=callback,
        )
        return self.decode(latents)

    # --- persona training ---------------------------------------------------------------------------------------------

    @contextmanager
    def open(self, checkpointing: bool = False) -> Iterator[DiffusersDenoiser]:
        """The frozen UNet as the trainer takes it, inside the block; the model is left as it was found.

        SDXL is told the empty prompt's pooled text and :attr:`side`: the trainer's prompts differ from step to step.
        """
        frozen_parts = frozen(self.unet, *self.text.modules)
        with checkpointed(self.unet, checkpointing), frozen_parts, split_contexts(self.unet) as state:
            alphas = self.alphas_cumprod.to(self.device)
            yield DiffusersDenoiser(self.unet, state, alphas, self.prediction, self._added([""], None))
