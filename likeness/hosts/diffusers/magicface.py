"""MagicFace on a diffusers UNet2DConditionModel, through its attention processors."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from ...core.attention import attend
from ...core.blocks import BlockId
from ...core.digest import digest
from ...core.errors import bad_input
from ...core.magicface.call import MagicFaceCall
from ...core.magicface.references import Capture, ReferenceBatch
from ...core.magicface.request import MagicFaceRequest, Reference
from ...core.magicface.run import MagicFaceRun, check_layout
from ...core.schedule import schedule_sigmas, timestep_sigma
from .common import model_digest, processor_names, unet_layout
from .sampling import Conditioning, Denoiser, PlainSession, Rows, Text, guided_denoiser, sample, unet_forward

PLAIN_PROCESSORS = (AttnProcessor, AttnProcessor2_0)


class _WithoutOutput:
    """An attention module seen without its output projection, to get a processor's result before it."""

    def __init__(self, attn: torch.nn.Module) -> None:
        self._attn = attn
        self.to_out = (torch.nn.Identity(), torch.nn.Identity())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._attn, name)


class _Processor:
    """Stands where an attention processor stood and passes on to it whatever MagicFace does not concern."""

    def __init__(self, session: MagicFaceSession, block: BlockId, cross: bool, original: Any) -> None:
        self.session = session
        self.block = block
        self.cross = cross
        self.original = original
        self._clean = AttnProcessor2_0()

    def __call__(
        self,
        attn: torch.nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        rest = (encoder_hidden_states, attention_mask, *args)
        if self.session.capture is not None:
            return self._capture(attn, hidden_states, rest)
        call = self.session.active
        if call is None or self.block not in (call.cross_blocks if self.cross else call.self_blocks):
            return self.original(attn, hidden_states, *rest, **kwargs)
        if self.cross:
            return self._observe(call, attn, hidden_states, rest, kwargs)
        return self._attend(call, attn, hidden_states, rest, kwargs)

    def _capture(self, attn: torch.nn.Module, x: torch.Tensor, rest: tuple[Any, ...]) -> torch.Tensor:
        capture = self.session.capture
        if self.cross or self.block not in capture.blocks:
            return self._clean(attn, x, *rest)
        capture.store(self.block, attn.to_k(x), attn.to_v(x))
        return self._clean(attn, x, *rest)

    def _attend(
        self, call: MagicFaceCall, attn: torch.nn.Module, x: torch.Tensor, rest: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> torch.Tensor:
        other_patch = None
        if not isinstance(self.original, PLAIN_PROCESSORS):
            other_patch = lambda: self.original(_WithoutOutput(attn), x, *rest, **kwargs)  # noqa: E731
        q, k, v = attn.to_q(x), attn.to_k(x), attn.to_v(x)  # B N C
        return _project(attn, call.self_attention(self.block, q, k, v, attn.heads, other_patch))

    def _observe(
        self, call: MagicFaceCall, attn: torch.nn.Module, x: torch.Tensor, rest: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> torch.Tensor:
        context, mask = rest[0], rest[1]
        if isinstance(context, tuple):  # adapters append their own tokens
            context = context[0]
        rows = self.session.rows
        if rows is not None and rows.split:
            context = context.chunk(2, dim=1)[0]
        q, k = attn.to_q(x), attn.to_k(context)  # B N C, B T C
        call.cross_attention(self.block, q, k, attn.heads, None if rows is None else rows.token_maps)
        if mask is not None or not isinstance(self.original, PLAIN_PROCESSORS):
            return self.original(attn, x, *rest, **kwargs)
        return _project(attn, attend(q, k, attn.to_v(context), attn.heads))


def _project(attn: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    return attn.to_out[1](attn.to_out[0](x))


class MagicFaceSession:
    """One sampling run on one UNet; made by :func:`magicface`.

    Attributes:
        run: the method's state.
        active: the model call in progress.
        rows: its conditioning.
        capture: set while references run through the UNet.
    """

    def __init__(
        self,
        unet: torch.nn.Module,
        request: MagicFaceRequest,
        scheduler: Any,
        model_key: Hashable | None = None,
        start: int = 0,
    ) -> None:
        self.unet = unet
        self.request = request
        self.active: MagicFaceCall | None = None
        self.rows: Rows | None = None
        self.capture: Capture | None = None
        self._alphas = scheduler.alphas_cumprod
        self._timestep: torch.Tensor | None = None
        layout = unet_layout(unet)
        check_layout(layout)
        for reference in request.references:
            check_reference(reference, unet)
        self.run = MagicFaceRun(
            request,
            layout,
            schedule_sigmas(self._alphas, scheduler.timesteps[start:]),
            model_key if model_key is not None or not request.references else model_digest(unet),
            self._run_references,
            device=unet.device,
        )

    @contextmanager
    def call(
        self, timestep: torch.Tensor, conditional: Sequence[bool], latents: torch.Tensor, rows: Rows | None = None
    ) -> Iterator[None]:
        """Round one UNet forward (see :class:`Session`)."""
        if not self.run.enabled:
            yield
            return
        self._timestep = timestep
        sigma = timestep_sigma(self._alphas, float(timestep))
        with self.run.begin_call(sigma, conditional, tuple(latents.shape[-2:])) as call:
            self.active, self.rows = call, rows
            try:
                yield
            finally:
                self.active = self.rows = None

    def guide(self, cond: torch.Tensor, uncond: torch.Tensor, scale: float) -> torch.Tensor:
        """Guidance: S-CFG where the request asks for it."""
        if self.request.scfg and self.run.enabled:
            return self.run.guide(cond, uncond, scale)
        return PlainSession().guide(cond, uncond, scale)

    def _run_references(self, batch: ReferenceBatch, capture: Capture) -> None:
        rows = Rows.of([reference.context for reference in batch.references])
        latents = batch.latents.to(device=self.unet.device, dtype=self.unet.dtype) / (1 + batch.sigma**2) ** 0.5
        self.capture = capture
        try:
            unet_forward(self.unet, latents, self._timestep, rows)
        finally:
            self.capture = None


def make_reference(
    name: str,
    latent: torch.Tensor,
    conditioning: Conditioning,
    positions: tuple[int, ...],
    mask: torch.Tensor | None = None,
    weight: float = 3.0,
    region: torch.Tensor | None = None,
) -> Reference:
    """A :class:`Reference` whose context is a :class:`Conditioning` of one row, with its keys filled in."""
    key = digest(conditioning.context, *(conditioning.added[name] for name in sorted(conditioning.added)))
    length = conditioning.context.shape[1]
    return Reference(name, latent, conditioning, key, tuple(positions), mask, weight, batch_key=length, region=region)


def check_reference(reference: Reference, unet: torch.nn.Module) -> None:
    """Raise a :class:`LikenessError` when a reference was prepared for another base model."""
    name = f"MagicFace reference '{reference.name}'"
    channels, expected = reference.latent.shape[1], unet.config.in_channels
    if channels != expected:
        raise bad_input(
            f"{name}: latent",
            f"{channels} channels",
            f"{expected}, as this model takes",
            "Encode the reference with the VAE of the model it is applied to (inpainting models are not supported).",
        )
    dim = unet.config.cross_attention_dim
    widths = {dim} if isinstance(dim, int) else set(dim)
    width = reference.context.context.shape[-1]
    if width not in widths:
        raise bad_input(
            f"{name}: prompt",
            f"a text context {width} wide",
            f"{' or '.join(map(str, sorted(widths)))}, as this model takes",
            "Encode the reference's prompt with the text encoder of the model it is applied to.",
        )


@contextmanager
def magicface(
    unet: torch.nn.Module,
    request: MagicFaceRequest,
    scheduler: Any,
    model_key: Hashable | None = None,
    start: int = 0,
) -> Iterator[MagicFaceSession]:
    """Apply a request to a UNet for one sampling run; on leaving, the UNet is as it was.

    Args:
        unet: UNet2DConditionModel.
        request: what to do. Its references' ``context`` is a :class:`Conditioning` of one row.
        scheduler: the scheduler of the run, timesteps already set.
        model_key: stands for the UNet's weights in the cache's keys; None computes a digest of them.
        start: index of the first timestep to run; alpha counts from there.

    Yields:
        The session for :func:`guided_denoiser`.
    """
    session = MagicFaceSession(unet, request, scheduler, model_key, start)
    if not session.run.enabled:
        yield session
        return
    originals = dict(unet.attn_processors)
    ours = dict(originals)
    for name, (block, cross) in processor_names(unet).items():
        ours[name] = _Processor(session, block, cross, originals[name])
    unet.set_attn_processor(ours)
    try:
        yield session
    finally:
        unet.set_attn_processor(originals)
        session.run.close()


def sample_magicface(
    unet: torch.nn.Module,
    request: MagicFaceRequest,
    scheduler: Any,
    latents: torch.Tensor,
    cond: Text,
    uncond: Text | None,
    scale: float = 7.5,
    split: bool = False,
    start: int = 0,
    **options: Any,
) -> torch.Tensor:
    """Sample one picture batch with MagicFace.

    Args:
        unet: UNet2DConditionModel.
        request: the references and settings.
        scheduler: a diffusers scheduler with its timesteps set (the paper: DDIM, 50 steps).
        latents: unit Gaussian noise ``B 4 h w`` (with ``start``: see :func:`sample`).
        cond, uncond, scale, split: see :func:`guided_denoiser`.
        start: index of the first timestep to run.
        options: callback and generator of :func:`sample`.

    Returns:
        Clean latents ``B 4 h w``.
    """
    with magicface(unet, request, scheduler, start=start) as session:
        denoiser: Denoiser = guided_denoiser(unet, cond, uncond, scale, session, split)
        return sample(denoiser, latents, scheduler, start=start, **options)
