"""DIIR on the headless pipeline: faces of pictures repaired, each with its own identity."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...core.diir.features import FeatureCache, FeatureFusion
from ...core.diir.gate import longer_side
from ...core.diir.geometry import Crop, face_crop
from ...core.diir.inversion import Denoise, Progress, Trajectory, invert, noised
from ...core.diir.paste import feathered
from ...core.diir.repair import Place, Repaired, repair
from ...core.diir.request import DiirRequest
from ...core.diir.restore import restore
from ...core.errors import bad_input
from ...core.magicface.cache import ReferenceCache
from ...core.magicface.request import MagicFaceRequest
from ...core.magicid.projections import IdentityAttention
from ...core.magicid.run import PlacedIdentity
from ...core.schedule import schedule_sigmas
from ...faces.interface import Face
from ...faces.masks import head_ellipse, in_crop
from .common import transformer_blocks
from .magicid import IdentitySession, introduced
from .pipeline import Personas, Pipeline
from .sampling import Denoiser, Rows, Session, Text

PROMPT = "a picture of a {word}, portrait"


@dataclass(frozen=True)
class FaceTarget:
    """Who a face is to become.

    Attributes:
        prompt: of the crop: the person's word and the style, never the whole picture's prompt.
        negative: its negative prompt; the inversion's prompt as well.
        request: MagicFace's with the person's references, made for ``prompt``; None is without.
        personas: who stands for which placeholder of ``prompt``.
        identity: MagicID's, without a region: it acts everywhere in the crop; None is without.
        attention: the UNet's identity layers that read it (:attr:`MagicIdWeights.attention`).

    Raises:
        LikenessError: an identity without the layers that read it, or beside personas, whose cross-attention has
            contexts of its own for keys and values here.
    """

    prompt: str = PROMPT.format(word="person")
    negative: str = ""
    request: MagicFaceRequest | None = None
    personas: Personas = field(default_factory=dict)
    identity: PlacedIdentity | None = None
    attention: IdentityAttention | None = None

    def __post_init__(self) -> None:
        if self.identity is not None and self.attention is None:
            raise bad_input("DIIR: identity", "no identity layers", "the UNet's", "Give those of the same weights.")
        if self.identity is not None and self.personas:
            raise bad_input("DIIR: person", "personas and an identity", "one of both", "Leave one of them out.")


#: Repaired without an identity: a cleaner face of nobody in particular.
NOBODY = FaceTarget()


def target_of(
    pipeline: Pipeline,
    images: Sequence[Tensor],
    word: str,
    masks: Sequence[Tensor | None] | None = None,
    prompt: str = PROMPT,
    weight: float = 3.0,
    seed: int = 0,
) -> FaceTarget:
    """A person told by reference pictures through MagicFace, RSA in all steps: there is one face in a crop.

    Args:
        images: ``3 H W`` in [0, 1] each.
        word: what the person is called in the prompt.
        masks: head of each picture, ``h w``; None is the whole picture.
        prompt: of the crop, with ``{word}`` in it.
        weight: w of MagicFace's section 3.2.4.
        seed: of the references' noise.
    """
    text = prompt.format(word=word)
    chosen = masks if masks is not None else [None] * len(images)
    references = tuple(
        pipeline.reference(image, word, text, mask, weight) for image, mask in zip(images, chosen, strict=True)
    )
    return FaceTarget(text, request=MagicFaceRequest(references, alpha=1.0, noise_seed=seed, cache=ReferenceCache()))


@dataclass(frozen=True)
class Repair:
    """One face to repair.

    Attributes:
        picture: number of its picture.
        face: as it was found.
        target: who it becomes.
        mask: the head in its crop (:func:`crop_of`), ``S S`` in [0, 1], not feathered; None is an ellipse round the
            box.
    """

    picture: int
    face: Face
    target: FaceTarget = NOBODY
    mask: Tensor | None = None


def crop_of(face: Face, request: DiirRequest) -> Crop:
    """The square in which a face is repaired."""
    return face_crop(face.box, math.radians(face.tilt), request.frame, request.upright, face.extent)


def head_in_crop(face: Face, request: DiirRequest, side: int) -> Tensor:
    """The head of a face by its box alone, in its crop: ``side side``, 0 or 1."""
    return head_ellipse(in_crop(face, crop_of(face, request), side), side, side)


def small_faces(faces: Sequence[Face], request: DiirRequest) -> list[Face]:
    """The faces that pass the gate: smaller than ``max_face_px``."""
    return [f for f in faces if not request.max_face_px or longer_side(f.box) < request.max_face_px]


def repair_faces(
    pipeline: Pipeline,
    pictures: Sequence[Tensor],
    repairs: Sequence[Repair],
    request: DiirRequest | None = None,
    seed: int = 0,
    rows: int | None = None,
    progress: Progress | None = None,
) -> Repaired:
    """Repair faces and touch nothing else.

    Args:
        pipeline: the model.
        pictures: ``C H W`` in [0, 1] each, of any size; alpha is not touched.
        repairs: which faces, and who each becomes.
        request: how; the defaults.
        seed: of the fast mode's noise; each face has its own, by its place in its picture's order.
        rows: faces in a chunk; None takes all at once.
        progress: told after every step of a chunk; may raise to stop.
    """
    request = request or DiirRequest()
    if request.start == request.steps:  # a strength of nothing
        repairs = ()
    places = [_place(one, request, pipeline.side) for one in repairs]
    model = _Run(pipeline, repairs, request, seed, progress)
    return repair(pictures, places, model, pipeline.side, rows)


def _place(one: Repair, request: DiirRequest, side: int) -> Place:
    hard = one.mask if one.mask is not None else head_in_crop(one.face, request, side)
    return Place(one.picture, crop_of(one.face, request), feathered(hard, request.feather))


class _Run:
    """The model of :func:`likeness.core.diir.repair.repair` for one call of :func:`repair_faces`."""

    def __init__(
        self, pipeline: Pipeline, repairs: Sequence[Repair], request: DiirRequest, seed: int, progress: Progress | None
    ) -> None:
        self.pipeline, self.repairs, self.request = pipeline, repairs, request
        self.seed, self.progress = seed, progress
        self.scheduler = pipeline.scheduler(request.steps)
        levels = schedule_sigmas(self.scheduler.alphas_cumprod, self.scheduler.timesteps)
        self.sigmas = tuple(levels)
        self._timesteps = dict(zip(levels, self.scheduler.timesteps, strict=False))

    def encode(self, crops: Tensor) -> Tensor:
        """Crops to latents, by the posterior's mode."""
        return self.pipeline.encode(crops)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to crops."""
        return self.pipeline.decode(latents)

    def restore(self, latents: Tensor, masks: Tensor, faces: Sequence[int]) -> Tensor:
        """A chunk of faces; those of one person share a run, and with it the references."""
        groups: dict[int, list[int]] = {}
        for row, face in enumerate(faces):
            groups.setdefault(id(self.repairs[face].target), []).append(row)
        result = latents.float().clone()
        for rows in groups.values():
            chosen = [faces[row] for row in rows]
            result[rows] = self._target(latents[rows], masks[rows], chosen)
        return result

    def _target(self, latents: Tensor, masks: Tensor, faces: Sequence[int]) -> Tensor:
        request, target = self.request, self.repairs[faces[0]].target
        with ExitStack() as stack:
            listener, plain, features = None, None, None
            if request.keep_style == "paper":
                listener = stack.enter_context(listening(self.pipeline.unet, len(faces)))
            denoise = stack.enter_context(self._identified(target, listener))
            if request.mode == "exact":
                plain = stack.enter_context(self._plain(target, listener))
            if listener is not None:
                features = listener.fusion = FeatureFusion(masks, plain, FeatureCache(request.cache))
            path = self._trajectory(latents, plain, faces, features)
            return restore(denoise, path, masks, request.start, request.keep_style != "off", features, self.progress)

    def _trajectory(
        self, latents: Tensor, plain: Denoise | None, faces: Sequence[int], features: FeatureFusion | None
    ) -> Trajectory:
        if plain is None:
            return noised(latents, self.sigmas, self.noise(latents, faces))
        record = features.recording if features is not None else None
        return invert(plain, latents, self.sigmas, self.request.corrections, self.progress, record)

    def noise(self, latents: Tensor, faces: Sequence[int]) -> Tensor:
        """Noise of every face by its picture and its place there, the same in every batch and on every device."""
        draws = []
        for face in faces:
            one = self.repairs[face]
            before = sum(other.picture == one.picture for other in self.repairs[:face])
            generator = torch.Generator().manual_seed(self.seed + 1000 * one.picture + before)
            draws.append(torch.randn(latents.shape[1:], generator=generator))
        return torch.stack(draws).to(latents.device)

    def _text(self, target: FaceTarget) -> Text:
        if not target.personas:
            return self.pipeline.conditioning([target.prompt])
        return self.pipeline.persona_conditioning(target.prompt, target.personas, self.scheduler.timesteps.tolist())

    @contextmanager
    def _plain(self, target: FaceTarget, listener: Listener | None) -> Iterator[Denoise]:
        """The model without guidance and without identity, inside of :meth:`_identified`."""
        text = self.pipeline.conditioning([target.negative])
        if target.personas:  # the cross-attention takes keys' and values' contexts then
            text = replace(text, values=text.context)
        with self.pipeline.denoiser(text, None, 1.0, self.scheduler, around=around(listener)) as denoiser:
            yield self._in_ve(denoiser)

    @contextmanager
    def _identified(self, target: FaceTarget, listener: Listener | None) -> Iterator[Denoise]:
        """The model with guidance and the person."""
        guided = self.request.guidance != 1
        negative = self.pipeline.conditioning([target.negative]) if guided else None
        with ExitStack() as stack:
            places = []
            if target.identity is not None:
                known = introduced(self.pipeline.unet, target.attention, [target.identity], self.sigmas)
                places.append(stack.enter_context(known))

            def told(session: Session) -> Session:
                return around(listener)(IdentitySession(session, places, self.pipeline.alphas_cumprod))

            denoiser = self.pipeline.denoiser(
                self._text(target), negative, self.request.guidance, self.scheduler, target.request,
                self.request.start, around=told,
            )  # fmt: skip
            yield self._in_ve(stack.enter_context(denoiser))

    def _in_ve(self, denoiser: Denoiser) -> Denoise:
        def denoise(x: Tensor, sigma: float) -> Tensor:
            scale = math.sqrt(1 + sigma**2)
            out = denoiser(x / scale, self._timesteps[sigma])
            if self.pipeline.prediction == "v_prediction":
                return x / scale**2 - out * (sigma / scale)
            return x - sigma * out

        return denoise


class Listener:
    """Shows a UNet's self-attention outputs to a :class:`FeatureFusion`, and tells it which face each row is.

    Args:
        count: faces in the chunk. A model call of the headless loop holds all of them once, or once a guidance part.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.fusion: FeatureFusion | None = None
        self._faces: list[int] | None = None

    @contextmanager
    def rows(self, count: int) -> Iterator[None]:
        """Round one model call of ``count`` rows; what else runs through the model (references) is nobody's."""
        self._faces = [row % self.count for row in range(count)]
        try:
            yield
        finally:
            self._faces = None

    def hook(self, block: Hashable) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
        """A forward hook for the self-attention of a block."""

        def after(module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
            if self.fusion is None or self._faces is None:
                return None
            return self.fusion.output(block, output, self._faces)

        return after


class _Around:
    """A session within which a listener knows the rows."""

    def __init__(self, session: Session, listener: Listener) -> None:
        self.session, self.listener = session, listener
        self.guide = session.guide

    @contextmanager
    def call(
        self, timestep: Tensor, conditional: Sequence[bool], latents: Tensor, rows: Rows | None = None
    ) -> Iterator[None]:
        """The session's own, then the listener's: the references have run by then."""
        with self.session.call(timestep, conditional, latents, rows), self.listener.rows(len(conditional)):
            yield


def around(listener: Listener | None) -> Callable[[Session], Session]:
    """How a run's session is wrapped so that a listener knows the rows; without a listener not at all."""
    return (lambda session: session) if listener is None else lambda session: _Around(session, listener)


@contextmanager
def listening(unet: nn.Module, count: int) -> Iterator[Listener]:
    """A listener on every self-attention of a UNet inside the block; after it the UNet is as it was."""
    listener = Listener(count)
    handles = [
        unet.get_submodule(f"{path}.attn1").register_forward_hook(listener.hook(block))
        for path, block in transformer_blocks(unet)
    ]
    try:
        yield listener
    finally:
        for handle in handles:
            handle.remove()
