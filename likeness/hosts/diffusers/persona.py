"""PersonaMagic on diffusers and transformers: a persona's conditioning over a schedule, and the UNet for its training.

Key and value contexts reach the cross-attention stacked along the token axis; attention processors split them. They
are installed by a context manager and the former processors come back however it is left.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...core.errors import bad_input
from ...core.persona.attention_maps import MapRecorder
from ...core.persona.clip import ClipText
from ...core.persona.persona import Persona
from ...core.persona.shares import word_shares
from ...core.persona.stages import StagedContexts, precompute
from ...core.persona.text import (
    Contexts,
    TextEncoder,
    Tokenizer,
    check_placeholders,
    encode,
    lay_out,
    plain_ids,
    split_prompt,
)
from ...core.prompt import Word
from ...core.schedule import noise_from_velocity
from ...training.persona.photos import Photo, check_mask, fit, latent_mask, pooled_latent_embedding
from .sampling import Conditioning


def clip_text(model: nn.Module, skip: int = 0, normalised: bool = True) -> ClipText:
    """A transformers ``CLIPTextModel`` (4.x or 5.x) as the core's text encoder; see :class:`ClipText`."""
    body = getattr(model, "text_model", model)
    return ClipText(body, skip, normalised, dtype=next(model.parameters()).dtype)


# --- cross-attention with keys and values of their own ----------------------------------------------------------------


@dataclass
class SplitState:
    """Shared by the processors of one installation."""

    recorder: MapRecorder | None = None


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
def split_contexts(unet: nn.Module) -> Iterator[SplitState]:
    """Install :class:`SplitContextProcessor` on every cross-attention; undone however the block is left."""
    layers = [m for name, m in unet.named_modules() if name.endswith("attn2") and hasattr(m, "set_processor")]
    if not layers:
        raise bad_input("Persona: unet", type(unet).__name__, "a UNet with cross-attention", "Use SD1.x to SDXL.")
    former, state = [layer.processor for layer in layers], SplitState()
    try:
        for layer in layers:
            layer.set_processor(SplitContextProcessor(state))
        yield state
    finally:
        for layer, processor in zip(layers, former, strict=True):
            layer.set_processor(processor)


# --- training ---------------------------------------------------------------------------------------------------------


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
class DiffusersDenoiser:
    """The UNet inside :func:`split_contexts`.

    Attributes:
        alphas_cumprod: ``T``; needed to turn a velocity prediction into noise.
        prediction: ``epsilon`` or ``v_prediction``.
        added: SDXL's further conditions, one row each; see :class:`Conditioning`.
    """

    unet: nn.Module
    state: SplitState
    alphas_cumprod: Tensor
    prediction: str = "epsilon"
    added: Mapping[str, Tensor] = field(default_factory=dict)

    def __call__(self, noisy: Tensor, timesteps: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """``B 4 h w`` in the VP parametrisation, ``B`` timesteps, two ``B L C`` contexts -> noise ``B 4 h w``."""
        context = torch.cat([key, value], dim=1)  # B 2L C
        more = {name: x.to(noisy).expand(len(noisy), -1) for name, x in self.added.items()}
        more = {"added_cond_kwargs": more} if more else {}
        out = self.unet(noisy, timesteps, encoder_hidden_states=context, **more).sample
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


@contextmanager
def checkpointed(unet: nn.Module, wanted: bool) -> Iterator[None]:
    """Gradient checkpointing inside the block, if wanted and not on already."""
    switch = wanted and not getattr(unet, "is_gradient_checkpointing", False)
    try:
        if switch:
            unet.enable_gradient_checkpointing()
        yield
    finally:
        if switch:
            unet.disable_gradient_checkpointing()


class PictureHost(Protocol):
    """What preparing photos asks of a base model."""

    @property
    def device(self) -> torch.device:
        """Where its models live."""

    def encode_image(self, images: Tensor) -> Tensor:
        """``B 3 H W`` in [0, 1] -> ``B 4 h w`` in the model's scaled space."""


@torch.no_grad()
def prepare_photo(
    host: PictureHost, picture: Tensor, mask: Tensor, size: int, image_width: int = 512, crop: bool = False
) -> Photo:
    """One picture ``3 H W`` in [0, 1] and its mask (``1 H W`` or ``H W``) as a training example of ``size`` pixels."""
    fitted = fit(picture, size, crop)[None].to(host.device)
    latent = host.encode_image(fitted)
    small = latent_mask(fit(check_mask(mask), size, crop), latent.shape[-2:]).to(host.device)
    image = pooled_latent_embedding(latent)[0] if image_width else None
    return Photo(latent[0], small, image)


def image_width(photo: Photo) -> int:
    """Length of a photo's image embedding; 0 without one."""
    return 0 if photo.image is None else photo.image.numel()


# --- a persona's prompt over a schedule -------------------------------------------------------------------------------


class TextHost(Protocol):
    """What encoding a prompt asks of a base model."""

    text: TextEncoder
    tokenizer: Tokenizer

    @property
    def device(self) -> torch.device:
        """Where its models live."""


def plain_contexts(host: TextHost, prompts: Sequence[str]) -> Contexts:
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
    host: TextHost, prompt: str, personas: Mapping[str, Persona], timesteps: Sequence[int]
) -> StagedContexts:
    """Contexts of one prompt for a whole schedule; several personas share the stages of the first.

    Args:
        host: the text encoder and its tokenizer.
        prompt: with each persona's placeholder exactly once.
        personas: by placeholder.
        timesteps: the schedule.

    Raises:
        LikenessError: a placeholder is missing or doubled, or a persona belongs to another base.
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


def persona_token_map(tokenizer: Tokenizer, prompt: str, personas: Mapping[str, Persona]) -> Tensor | None:
    """Shares of the plain prompt's tokens in those that are spoken; see :func:`word_shares`."""
    plain = tokenizer.pieces(supercategory_prompt(prompt, personas))
    marks = {name: (p.tokens, len(tokenizer.pieces(p.supercategory))) for name, p in personas.items()}
    spoken: list[int | str] = []
    for text, is_placeholder in split_prompt(prompt, list(personas)):
        spoken += [text] * marks[text][0] if is_placeholder else tokenizer.pieces(text)
    words, own = ([Word(token, i + 1, True) for i, token in enumerate(tokens)] for tokens in (spoken, plain))
    return word_shares(words, own, marks, (tokenizer.length, tokenizer.length), tokenizer.length)


@dataclass(frozen=True)
class StagedConditioning:
    """A persona's prompt: another conditioning at every timestep of the dynamic stage.

    Attributes:
        staged: the contexts.
        added: SDXL's further conditions, of the plain prompt.
        token_map: see :class:`Conditioning`; they hold where the persona's words are spoken.
    """

    staged: StagedContexts
    added: Mapping[str, Tensor] = field(default_factory=dict)
    token_map: Tensor | None = None

    def at(self, timestep: float) -> Conditioning:
        """The conditioning of a timestep."""
        key, value = self.staged.at(timestep)
        speaks = self.staged.index(timestep) is not None
        return Conditioning(key, self.added, value, self.token_map if speaks else None)
