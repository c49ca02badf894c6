"""The host's part in a repair: crops encoded, restored by person, decoded; progress, memory, interrupts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management as management
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from ....core.diir.geometry import cut
from ....core.diir.repair import Place
from ....core.diir.request import DiirRequest
from ....core.errors import bad_input
from .. import images
from ..unet import native_side
from .choose import NODE
from .conditioning import Cut, plain, recut
from .identity import Identified
from .sampling import Chunk, rows_that_fit, run

log = logging.getLogger("likeness")


@dataclass(frozen=True, eq=False)
class Subject:
    """What crops of one person are restored with.

    Attributes:
        identified: the model with the person on it, and the positive CONDITIONING.
        recut: whether that was made for the whole picture and has to be cut to the crops.
    """

    identified: Identified
    recut: bool


class HostModel:
    """A chunk of crops on the host's model: the core's ``Model``.

    Args:
        model, vae: the host's. request: the method's settings. places: every face, with its mask.
        subjects: per face what it is restored with; faces with the same object share runs.
        negative: CONDITIONING, and whether it was made for the whole picture; its text is the inversion's as well.
        seeds: one a face. picture_size: height and width.
        control: puts a landmark ControlNet on positive and negative for the named faces; None where there is none.

    Attributes:
        notes: what the report should tell.
    """

    def __init__(
        self,
        model: Any,
        vae: Any,
        request: DiirRequest,
        places: Sequence[Place],
        subjects: Sequence[Subject],
        negative: tuple[list, bool],
        seeds: Sequence[int],
        picture_size: tuple[int, int],
        control: Any = None,
    ) -> None:
        self.model, self.vae, self.request, self.places = model, vae, request, places
        self.subjects, self.negative, self.seeds = subjects, negative, seeds
        self.picture_size, self.control = picture_size, control
        self.notes: dict[str, None] = {}
        self.failed: dict[int, str] = {}
        self.size = native_side(model)
        self._bar = _Bar(model, len(places) * steps_a_face(request))

    def rows(self, most: int) -> int:
        """Faces that one chunk may hold, by memory."""
        channels = self.model.model.latent_format.latent_channels
        return rows_that_fit(self.model, (channels, self.size // 8, self.size // 8), min(most, len(self.places)))

    def encode(self, crops: Tensor) -> Tensor:
        """``B 3 S S`` in [0, 1] to latents in the VAE's own scale; the host's VAE gives the posterior's mode."""
        management.throw_exception_if_processing_interrupted()
        latents = self.vae.encode(images.to_comfy(crops))
        wanted = self.model.model.latent_format.latent_channels
        if latents.ndim != 4 or latents.shape[1] != wanted:
            raise bad_input(
                f"{NODE}: vae",
                f"latents of shape {tuple(latents.shape)}",
                f"the model's {wanted} channels",
                "Connect the VAE that belongs to the model.",
            )
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Back to ``B 3 S S`` in [0, 1]."""
        management.throw_exception_if_processing_interrupted()
        return images.to_torch(self.vae.decode(latents))

    def restore(self, latents: Tensor, masks: Tensor, faces: Sequence[int]) -> Tensor:
        """Every face of the chunk by its own person, those of one person together; ``B C h w``."""
        restored = torch.empty_like(latents)
        for subject in dict.fromkeys(self.subjects[face] for face in faces):
            rows = [row for row, face in enumerate(faces) if self.subjects[face] is subject]
            restored[rows] = self._restore(subject, latents[rows], masks[rows], [faces[row] for row in rows])
        return restored

    def _restore(self, subject: Subject, latents: Tensor, masks: Tensor, faces: list[int]) -> Tensor:
        """In halves where the memory does not suffice; a face for which even that is too much is left alone."""
        before = self._bar.done
        try:
            return self._run(subject, latents, masks, faces).to(latents)
        except Exception as error:
            if not _out_of_memory(error):
                raise
        management.soft_empty_cache()
        self._bar.done = before
        if len(faces) == 1:
            self.failed[faces[0]] = "out of memory"
            return torch.full_like(latents, float("nan"))
        log.info("%s: out of memory with %d crops at once; going on with half as many", NODE, len(faces))
        half = len(faces) // 2
        parts = (slice(None, half), slice(half, None))
        return torch.cat([self._restore(subject, latents[part], masks[part], faces[part]) for part in parts])

    def _run(self, subject: Subject, latents: Tensor, masks: Tensor, faces: list[int]) -> Tensor:
        cut_here = self._cut(faces)
        positive = self._conditioning(subject.identified.positive, subject.recut, cut_here)
        negative = self._conditioning(self.negative[0], self.negative[1], cut_here)
        if self.control is not None:
            positive, negative = self.control(positive, negative, faces)
        seeds = [self.seeds[face] for face in faces]
        chunk = Chunk(latents, masks, positive, negative, plain(self.negative[0]), seeds)
        model, tick = subject.identified.model, lambda *step: self._bar.step(step[3], len(faces))
        return run(model, chunk, self.request, tick, lambda note: self.notes.setdefault(note))

    def _conditioning(self, conditioning: list, whole: bool, cut_here: Cut) -> list:
        if not whole:
            return conditioning
        made, notes = recut(conditioning, cut_here, self.picture_size)
        self.notes |= dict.fromkeys(notes)
        return made

    def _cut(self, faces: Sequence[int]) -> Cut:
        """Cuts planes over whole pictures, of any size, where these faces are."""

        def cut_planes(planes: Tensor) -> Tensor:
            height, width = self.picture_size
            if tuple(planes.shape[-2:]) != (height, width):
                planes = comfy.utils.common_upscale(planes, width, height, "bilinear", "disabled")
            places = [self.places[face] for face in faces]
            return torch.stack([cut(planes[min(p.picture, len(planes) - 1)], p.crop, self.size) for p in places])

        return cut_planes


class _Bar:
    """The node's progress bar, counted in steps of faces, with a preview of the crop in work."""

    def __init__(self, model: Any, total: int) -> None:
        self.total, self.done = total, 0
        self.bar = comfy.utils.ProgressBar(total)
        self.previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)

    def step(self, clean: Tensor, faces: int) -> None:
        """A step of ``faces`` crops is done; raises where the user has cancelled the run."""
        management.throw_exception_if_processing_interrupted()
        self.done += faces
        shown = self.previewer.decode_latent_to_preview_image("JPEG", clean[:1]) if self.previewer else None
        self.bar.update_absolute(self.done, self.total, shown)


def steps_a_face(request: DiirRequest) -> int:
    """Steps of inversion and restoration."""
    return request.steps - request.start + (request.steps if request.mode == "exact" else 0)


def _out_of_memory(error: Exception) -> bool:
    told = getattr(management, "is_oom", None)
    return told(error) if told is not None else isinstance(error, torch.OutOfMemoryError)
