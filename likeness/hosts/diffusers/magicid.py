"""MagicID on diffusers: identities in the cross-attention of a UNet and of an Identity ControlNet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from diffusers import ControlNetModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...core.attention import attend
from ...core.blocks import BlockId
from ...core.magicid.projections import IdentityAttention
from ...core.magicid.run import MagicIdRun, PlacedIdentity, project
from ...core.schedule import schedule_sigmas, timestep_sigma
from ...formats.magicid import MagicIdWeights
from ...training.magicid.attention import TrainingCall
from .common import transformer_blocks, unet_layout
from .pipeline import Pipeline
from .sampling import Conditioning, Denoiser, PlainSession, Rows, Session, guided_denoiser, sample

#: Pixels of a latent's side; pose pictures are folded by it.
FOLD = 8
PLAIN = (AttnProcessor, AttnProcessor2_0)


class Call(Protocol):
    """The identities' part in one model call."""

    def add(self, block: BlockId, q: Tensor, attended: Tensor, heads: int) -> Tensor:
        """``B T C`` queries and the text's attention -> ``B T C`` with the identities."""


@dataclass(eq=False)
class Slot:
    """What the processors of one network look up: the call in progress, None for the text alone."""

    call: Call | None = None


class _Processor:
    """Cross-attention of one block: text, and whatever the slot's call adds."""

    def __init__(self, slot: Slot, block: BlockId, original: Any) -> None:
        self.slot, self.block, self.original = slot, block, original

    def __call__(
        self, attn: nn.Module, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *args: Any,
        **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        call = self.slot.call
        if call is None:
            return self.original(attn, hidden_states, encoder_hidden_states, *args, **kwargs)
        q = attn.to_q(hidden_states)
        text = attend(q, attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states), attn.heads)
        return attn.to_out[1](attn.to_out[0](call.add(self.block, q, text, attn.heads)))


@contextmanager
def identities(network: nn.Module, blocks: Sequence[BlockId]) -> Iterator[Slot]:
    """Let identities into some cross-attentions of a UNet or ControlNet; put back when the block is left."""
    slot, originals = Slot(), dict(network.attn_processors)
    ours = dict(originals)
    for path, block in transformer_blocks(network):
        if block in blocks:
            name = f"{path}.attn2.processor"
            ours[name] = _Processor(slot, block, originals[name])
    network.set_attn_processor(ours)
    try:
        yield slot
    finally:
        network.set_attn_processor(originals)


# --- what is made afresh ----------------------------------------------------------------------------------------------


def new_attention(network: nn.Module, context_width: int) -> IdentityAttention:
    """Untrained identity attention of all cross-attentions: keys as the text's, values zero, so nothing changes."""
    found = {block: network.get_submodule(f"{path}.attn2") for path, block in transformer_blocks(network)}
    made = IdentityAttention({block: attn.to_k.out_features for block, attn in found.items()}, context_width)
    made.start_from_text({block: attn.to_k.weight.detach() for block, attn in found.items()})
    return made


def new_control(unet: nn.Module, width: int | None = None) -> ControlNetModel:
    """A ControlNet that starts from the UNet's encoder and changes nothing yet.

    The pose picture is folded into the latent grid (PixelUnshuffle) instead of brought there by strided convolutions:
    as cheap as two convolutions, and at once as fine as the picture.
    """
    control = ControlNetModel.from_unet(unet)
    control.controlnet_cond_embedding = pose_embedding(unet.config.block_out_channels[0], width)
    return control


def pose_embedding(out: int, width: int | None = None) -> nn.Sequential:
    """``B 3 8h 8w`` -> ``B out h w``."""
    width = width or out
    return nn.Sequential(
        nn.PixelUnshuffle(FOLD), nn.Conv2d(3 * FOLD**2, width, 3, padding=1), nn.SiLU(),
        nn.Conv2d(width, out, 3, padding=1),
    )  # fmt: skip


def load_control(unet: nn.Module, weights: MagicIdWeights) -> ControlNetModel:
    """The Identity ControlNet of trained weights, float32 where the UNet is."""
    width = weights.control["controlnet_cond_embedding.1.weight"].shape[0]
    control = nn.Module.to(new_control(unet, width), unet.device, unet.dtype)  # diffusers' own warns for nothing
    control.load_state_dict(weights.control)
    return control.eval().requires_grad_(False)


# --- training ---------------------------------------------------------------------------------------------------------


class DiffusersTrainingHost:
    """The frozen UNet for :mod:`likeness.training.magicid`; inside :func:`training_host`."""

    def __init__(self, unet: nn.Module, alphas_cumprod: Tensor, slots: Mapping[str, Slot]) -> None:
        self.unet, self.alphas_cumprod, self.slots = unet, alphas_cumprod, slots

    def predict(
        self, noisy: Tensor, timesteps: Tensor, text: Tensor, calls: Mapping[str, TrainingCall],
        control: nn.Module | None = None, pose: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """See :class:`likeness.training.magicid.request.TrainingHost`."""
        for place, slot in self.slots.items():
            slot.call = calls.get(place)
        try:
            residuals = {} if control is None else _residuals(control, noisy, timesteps, text, pose)
            return self.unet(noisy, timesteps, encoder_hidden_states=text, **residuals).sample
        finally:
            for slot in self.slots.values():
                slot.call = None


@contextmanager
def training_host(
    unet: nn.Module, alphas_cumprod: Tensor, control: nn.Module | None = None, checkpointing: bool = False
) -> Iterator[DiffusersTrainingHost]:
    """The UNet frozen and open for identities, and the ControlNet, if any; put back when the block is left."""
    networks = {"unet": unet} | ({} if control is None else {"control": control})
    learning = {id(p): p.requires_grad for p in unet.parameters()}
    with ExitStack() as stack:
        slots = {p: stack.enter_context(identities(n, unet_layout(n).blocks)) for p, n in networks.items()}
        unet.requires_grad_(False)
        for place, network in networks.items():
            if checkpointing:
                network.enable_gradient_checkpointing(_checkpoint_in(slots[place]))
            else:
                network.disable_gradient_checkpointing()
        try:
            yield DiffusersTrainingHost(unet, alphas_cumprod.to(unet.device), slots)
        finally:
            unet.disable_gradient_checkpointing()
            for parameter in unet.parameters():
                parameter.requires_grad_(learning[id(parameter)])


def _checkpoint_in(slot: Slot) -> Callable[..., Any]:
    """Gradient checkpointing of a network's blocks. They are recomputed in the backward pass, when the slot is empty
    again, so each takes the call of its forward pass along."""

    def run(module: nn.Module, *args: Any) -> Any:
        contexts = partial(_contexts, slot, slot.call)
        return checkpoint(module.__call__, *args, use_reentrant=False, context_fn=contexts)

    return run


def _contexts(slot: Slot, call: Call | None) -> tuple[AbstractContextManager, AbstractContextManager]:
    """For the forward pass and for its repetition."""
    return nullcontext(), _calling(slot, call)


@contextmanager
def _calling(slot: Slot, call: Call | None) -> Iterator[None]:
    was, slot.call = slot.call, call
    try:
        yield
    finally:
        slot.call = was


def _residuals(
    control: nn.Module, noisy: Tensor, timesteps: Tensor, text: Tensor, pose: Tensor, scale: float = 1.0
) -> dict[str, Any]:
    down, mid = control(
        noisy, timesteps, encoder_hidden_states=text, controlnet_cond=pose, conditioning_scale=scale, return_dict=False
    )
    return {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}


# --- sampling ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MagicIdRequest:
    """People in a picture.

    Attributes:
        people: with ``tokens`` by the weights' encoder. places: whose cross-attention knows them.
        unet_scale, control_scale: factors on the identities in each place.
        pose: ``3 H W`` in [0, 1] of the picture's size; None runs no ControlNet.
        pose_scale: strength of the ControlNet.
        overlap: see :class:`likeness.core.magicid.masks.RegionMasks`.
    """

    people: Sequence[PlacedIdentity] = ()
    places: tuple[str, ...] = ("unet", "control")
    unet_scale: float = 1.0
    control_scale: float = 1.0
    pose: Tensor | None = None
    pose_scale: float = 1.0
    overlap: str = "add"

    def size(self, side: int) -> tuple[int, int]:
        """Height and width in pixels: the pose picture's, without one a square."""
        return (side, side) if self.pose is None else tuple(self.pose.shape[-2:])


@contextmanager
def introduced(
    network: nn.Module, attention: IdentityAttention, people: Sequence[PlacedIdentity], sigmas: Sequence[float],
    overlap: str = "add", scale: float = 1.0,
) -> Iterator[tuple[Slot, MagicIdRun]]:  # fmt: skip
    """People in a network's cross-attentions for one sampling run; put back when the block is left.

    Args:
        attention: the network's identity layers.
        people, sigmas, overlap, scale: see :class:`MagicIdRun`.
    """
    layers = project(attention.to(network.device, torch.float32), people)
    run = MagicIdRun(layers, people, unet_layout(network), sigmas, overlap, scale)
    with identities(network, attention.blocks) as slot:
        try:
            yield slot, run
        finally:
            run.close()


class IdentitySession:
    """A session in whose model calls the networks know the people.

    Args:
        session: what else follows the run. places: of :func:`introduced`, one a network.
        alphas: ``T``, cumulative, of the training schedule.
    """

    def __init__(self, session: Session, places: Sequence[tuple[Slot, MagicIdRun]], alphas: Tensor) -> None:
        self.session, self.places, self.alphas = session, places, alphas
        self.guide = session.guide

    @contextmanager
    def call(
        self, timestep: Tensor, conditional: Sequence[bool], latents: Tensor, rows: Rows | None = None
    ) -> Iterator[None]:
        """The session's own, then the people's: what the session runs by itself (references) knows nobody."""
        sigma = timestep_sigma(self.alphas, float(timestep))
        with self.session.call(timestep, conditional, latents, rows):
            for slot, run in self.places:
                slot.call = run.begin(sigma, conditional, tuple(latents.shape[-2:]))
            try:
                yield
            finally:
                for slot, _ in self.places:
                    slot.call = None


@dataclass(frozen=True, eq=False)
class Posed:
    """A UNet with the residuals of a ControlNet on a pose picture, ``3 H W`` in [0, 1] of the picture's size."""

    unet: nn.Module
    control: nn.Module
    pose: Tensor
    scale: float

    @property
    def dtype(self) -> torch.dtype:
        """Of the UNet, for the denoiser that takes this for one."""
        return self.unet.dtype

    def __call__(self, x: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **more: Any) -> Any:
        """The UNet's forward."""
        pose = self.pose.to(x).expand(len(x), -1, -1, -1)
        more |= _residuals(self.control, x, timestep, encoder_hidden_states, pose, self.scale)
        return self.unet(x, timestep, encoder_hidden_states=encoder_hidden_states, **more)


@contextmanager
def denoiser(
    pipeline: Pipeline, weights: MagicIdWeights, prompt: str | Conditioning, request: MagicIdRequest, scheduler: Any,
    control: nn.Module | None = None, scale: float = 5.0, negative: str | Conditioning = "",
) -> Iterator[Denoiser]:  # fmt: skip
    """The model with these people for one sampling run; left as it was when the block ends.

    Args:
        scheduler: of the run, its timesteps set. The other arguments are :func:`generate`'s.
    """
    size = request.size(pipeline.side)
    cond, uncond = (
        text if isinstance(text, Conditioning) else pipeline.conditioning([text], size) for text in (prompt, negative)
    )
    networks, model = {"unet": pipeline.unet}, pipeline.unet
    if control is not None and request.pose is not None:
        networks["control"], model = control, Posed(pipeline.unet, control, request.pose, request.pose_scale)
    scales = {"unet": request.unet_scale, "control": request.control_scale}
    sigmas = schedule_sigmas(pipeline.alphas_cumprod, scheduler.timesteps)
    with ExitStack() as stack:
        places = [
            stack.enter_context(
                introduced(network, weights.attention[place], request.people, sigmas, request.overlap, scales[place])
            )
            for place, network in networks.items()
            if request.people and place in request.places and place in weights.attention
        ]
        session = IdentitySession(PlainSession(), places, pipeline.alphas_cumprod)
        yield guided_denoiser(model, cond, uncond, scale, session)


@torch.no_grad()
def generate(
    pipeline: Pipeline, weights: MagicIdWeights, prompt: str | Conditioning, seeds: Sequence[int],
    request: MagicIdRequest, control: nn.Module | None = None, steps: int = 30, scale: float = 5.0,
    negative: str | Conditioning = "",
) -> Tensor:  # fmt: skip
    """Pictures ``B 3 H W`` in [0, 1] of one prompt with these people, one seed each.

    Args:
        prompt, negative: texts, or what the text encoder made of them.
        control: of :func:`load_control`; needed where the request has a pose.
        steps, scale: of the sampler and the guidance.
    """
    scheduler = pipeline.scheduler(steps)
    with denoiser(pipeline, weights, prompt, request, scheduler, control, scale, negative) as denoise:
        latents = sample(denoise, pipeline.noise(seeds, *request.size(pipeline.side)), scheduler)
    return pipeline.decode(latents)
