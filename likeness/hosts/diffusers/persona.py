"""PersonaMagic on diffusers and transformers: text encoder, tokenizer, denoiser, and a DDIM loop to play personas.

Key and value contexts reach the cross-attention stacked along the token axis; attention processors split them. They
are installed by a context manager and the former processors come back however it is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...core.errors import bad_input
from ...core.persona.attention_maps import MapRecorder
from ...core.persona.clip import ClipText
from ...core.persona.persona import Persona
from ...core.persona.stages import StagedContexts, precompute
from ...core.persona.text import Contexts, check_placeholders, encode, lay_out, plain_ids
from ...core.schedule import noise_from_velocity
from ...training.persona.photos import Photo, check_mask, fit, latent_mask, pooled_latent_embedding

Progress = Callable[[int, int], None]


def clip_text(model: nn.Module) -> ClipText:
    """A transformers ``CLIPTextModel`` (4.x or 5.x) as the core's text encoder."""
    body = getattr(model, "text_model", model)
    return ClipText(body, dtype=next(model.parameters()).dtype)


class ClipTokenizerAdapter:
    """A transformers CLIP tokenizer as the core's :class:`~likeness.core.persona.text.Tokenizer`."""

    def __init__(self, tokenizer: Any, length: int = 77) -> None:
        self.tokenizer = tokenizer
        self.bos, self.eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.eos
        self.length = length

    def pieces(self, text: str) -> list[int]:
        """Ids without begin and end."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


class SplitContextProcessor:
    """Cross-attention with keys and values from different contexts, stacked ``B 2L C``."""

    def __init__(self, state: SplitState) -> None:
        self.state = state

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        context_key, context_value = encoder_hidden_states.chunk(2, dim=1)
        query = attn.to_q(hidden_states)
        key, value = attn.to_k(context_key), attn.to_v(context_value)
        split = (attn.heads, query.shape[-1] // attn.heads)
        query, key, value = (x.unflatten(-1, split).transpose(1, 2) for x in (query, key, value))  # B H N D
        if self.state.recorder is not None:
            self.state.recorder.add(query, key)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        return attn.to_out[1](attn.to_out[0](mixed.transpose(1, 2).flatten(2)))


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """No parameter of the modules asks for a gradient inside the block; their flags come back afterwards."""
    asking = [p for module in modules for p in module.parameters() if p.requires_grad]
    try:
        for parameter in asking:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


@dataclass
class SplitState:
    """Shared by the processors of one installation."""

    recorder: MapRecorder | None = None


@contextmanager
def split_contexts(unet: nn.Module) -> Iterator[SplitState]:
    """Install :class:`SplitContextProcessor` on every cross-attention; undone however the block is left."""
    layers = [m for name, m in unet.named_modules() if name.endswith("attn2") and hasattr(m, "set_processor")]
    if not layers:
        raise bad_input("Persona: unet", type(unet).__name__, "a UNet with cross-attention", "Use SD1.x or SD2.x.")
    former, state = [layer.processor for layer in layers], SplitState()
    try:
        for layer in layers:
            layer.set_processor(SplitContextProcessor(state))
        yield state
    finally:
        for layer, processor in zip(layers, former, strict=True):
            layer.set_processor(processor)


@dataclass
class DiffusersDenoiser:
    """The UNet inside :func:`split_contexts`.

    Attributes:
        alphas_cumprod: ``T``; needed to turn a velocity prediction into noise.
        prediction: ``epsilon`` or ``v_prediction``.
        added: further UNet inputs (SDXL's ``added_cond_kwargs``), passed through.
    """

    unet: nn.Module
    state: SplitState
    alphas_cumprod: Tensor
    prediction: str = "epsilon"
    added: dict = field(default_factory=dict)

    def __call__(self, noisy: Tensor, timesteps: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """``B 4 h w`` in the VP parametrisation, ``B`` timesteps, two ``B L C`` contexts -> noise ``B 4 h w``."""
        context = torch.cat([key, value], dim=1)  # B 2L C
        out = self.unet(noisy, timesteps, encoder_hidden_states=context, **self.added).sample
        if self.prediction == "epsilon":
            return out
        return noise_from_velocity(noisy, out, self.alphas_cumprod.to(noisy)[timesteps])

    @torch.no_grad()
    def maps(self, noisy: Tensor, timesteps: Tensor, key: Tensor, value: Tensor, positions: Tensor) -> Tensor:
        """Cross-attention of ``n`` token positions, ``B h w``: heads, positions and the blocks near 16 x 16 joined."""
        recorder = MapRecorder(positions)
        self.state.recorder = recorder
        try:
            self(noisy, timesteps, key, value)
        finally:
            self.state.recorder = None
        return recorder.mean(noisy.shape[-2:])


@dataclass(frozen=True)
class PersonaHost:
    """The frozen models of one base, as the trainer and the player take them.

    Attributes:
        unet, text, tokenizer: the model.
        encode_image: ``B 3 H W`` in [0, 1] -> latents ``B 4 h w`` in the model's scaled space.
        decode_image: the inverse, differentiable.
        alphas_cumprod: ``T``.
        base: description written into personas.
    """

    unet: nn.Module
    text: ClipText
    tokenizer: Any
    encode_image: Callable[[Tensor], Tensor]
    decode_image: Callable[[Tensor], Tensor]
    alphas_cumprod: Tensor
    base: dict = field(default_factory=dict)
    prediction: str = "epsilon"

    @property
    def device(self) -> torch.device:
        """Where the UNet lives."""
        return next(self.unet.parameters()).device

    @contextmanager
    def open(self, checkpointing: bool = False) -> Iterator[DiffusersDenoiser]:
        """The denoiser, usable inside the block; processors and gradient checkpointing are put back afterwards."""
        switch = checkpointing and not getattr(self.unet, "is_gradient_checkpointing", False)
        try:
            if switch:
                self.unet.enable_gradient_checkpointing()
            with frozen(self.unet, *self.text.modules), split_contexts(self.unet) as state:
                yield DiffusersDenoiser(self.unet, state, self.alphas_cumprod, self.prediction)
        finally:
            if switch:
                self.unet.disable_gradient_checkpointing()


def plain_contexts(host: PersonaHost, prompts: Sequence[str]) -> Contexts:
    """Ordinary prompts, keys and values alike: ``B L C``."""
    with torch.no_grad():
        return encode(host.text, plain_ids(prompts, host.tokenizer))


def supercategory_prompt(prompt: str, personas: Mapping[str, Persona]) -> str:
    """The prompt of the early stage: every placeholder replaced by its persona's plain word."""
    check_placeholders(prompt, list(personas))
    for placeholder in sorted(personas, key=len, reverse=True):
        prompt = prompt.replace(placeholder, personas[placeholder].supercategory)
    return prompt


@torch.no_grad()
def persona_contexts(
    host: PersonaHost, prompt: str, personas: Mapping[str, Persona], timesteps: Sequence[int]
) -> StagedContexts:
    """Contexts of one prompt for a whole schedule; several personas share the stages of the first.

    Args:
        personas: by placeholder, each exactly once in the prompt.
        timesteps: the schedule.
    """
    for persona in personas.values():
        persona.check_base(host.text.widths)
    early = plain_contexts(host, [supercategory_prompt(prompt, personas)])
    holes = {placeholder: persona.tokens for placeholder, persona in personas.items()}
    layout = lay_out(prompt, holes, host.tokenizer, host.tokenizer.bos)
    stages = next(iter(personas.values())).stages

    def dynamic(wanted: Tensor) -> Contexts:
        ids = layout.ids.expand(len(wanted), -1)
        speakers = [p.speaker(wanted.to(host.device), layout.slots[name]) for name, p in personas.items()]
        return encode(host.text, ids, speakers)

    return precompute(dynamic, early, stages, timesteps)


def ddim_timesteps(steps: int, total: int = 1000) -> list[int]:
    """Evenly spaced, descending, ending at 1: 981, 961 ... 1 for 50 of 1000."""
    stride = total // steps
    return [i * stride + 1 for i in reversed(range(steps))]


@torch.no_grad()
def play(
    host: PersonaHost,
    contexts: StagedContexts,
    latents: Tensor,
    negative: str = "",
    steps: int = 50,
    guidance: float = 8.0,
    progress: Progress | None = None,
) -> Tensor:
    """DDIM (eta 0) with classifier-free guidance, the contexts looked up by timestep.

    Args:
        latents: ``B 4 h w`` unit noise.

    Returns:
        ``B 4 h w`` clean latents.
    """
    uncond = plain_contexts(host, [negative])
    alphas, batch = host.alphas_cumprod.to(latents), len(latents)
    timesteps = ddim_timesteps(steps, len(alphas))
    with host.open() as denoise:
        for i, t in enumerate(timesteps):
            cond = contexts.at(t)
            key, value = (
                torch.cat([u.expand(batch, -1, -1), c.expand(batch, -1, -1)]) for u, c in zip(uncond, cond, strict=True)
            )
            both = torch.cat([latents, latents])
            noise = denoise(both, torch.full((2 * batch,), t, device=latents.device), key, value)
            without, with_prompt = noise.chunk(2)
            noise = without + guidance * (with_prompt - without)
            now, after = alphas[t], alphas[timesteps[i + 1]] if i + 1 < len(timesteps) else alphas[0]
            clean = (latents - (1 - now).sqrt() * noise) / now.sqrt()
            latents = after.sqrt() * clean + (1 - after).sqrt() * noise
            if progress is not None:
                progress(i + 1, len(timesteps))
    return latents


@torch.no_grad()
def prepare_photo(
    host: PersonaHost, picture: Tensor, mask: Tensor, size: int, image_width: int = 512, crop: bool = False
) -> Photo:
    """One picture ``3 H W`` in [0, 1] and its mask ``1 H W`` as a training example of ``size`` pixels."""
    fitted = fit(picture, size, crop)[None].to(host.device)
    latent = host.encode_image(fitted)
    small = latent_mask(fit(check_mask(mask), size, crop), latent.shape[-2:]).to(host.device)
    image = pooled_latent_embedding(latent)[0] if image_width else None
    return Photo(latent[0], small, image)


def image_width(photo: Photo) -> int:
    """Length of a photo's image embedding; 0 without one."""
    return 0 if photo.image is None else photo.image.numel()
