"""What stands beside MGMICA: people drawn into a finished picture one at a time, and MagicFace with the same regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lab.evaluation.magicface import WEIGHT
from lab.people import Case
from likeness.core.magicface.cache import ReferenceCache
from likeness.core.magicface.request import MagicFaceRequest
from likeness.core.masks import area_to_grid
from likeness.hosts.diffusers.magicface import magicface
from likeness.hosts.diffusers.magicid import Posed
from likeness.hosts.diffusers.pipeline import Pipeline
from likeness.hosts.diffusers.sampling import Denoiser, guided_denoiser, sample


@torch.no_grad()
def inpaint(
    pipeline: Pipeline, images: Tensor, noise: Tensor, region: Tensor, denoise: Denoiser, scheduler: Any, start: int = 0
) -> Tensor:  # fmt: skip
    """Pictures drawn again inside a region: outside it, every model call sees the picture itself, noised.

    Args:
        images: ``B 3 H W`` in [0, 1]. noise: ``B 4 h w``. region: ``H W`` in [0, 1].
        denoise: the model. scheduler: of the run, its timesteps set. start: first of them to run; 0 is from noise.

    Returns:
        ``B 3 H W``, outside the region the pictures themselves.
    """
    known = pipeline.encode(images)
    mask = area_to_grid(region, tuple(known.shape[-2:])).to(known)

    def masked(x: Tensor, timestep: Tensor) -> Tensor:
        return denoise(torch.lerp(scheduler.add_noise(known, noise, timestep[None]), x, mask), timestep)

    first = noise if start == 0 else scheduler.add_noise(known, noise, scheduler.timesteps[start : start + 1])
    drawn = sample(masked, first, scheduler, start=start)
    return torch.lerp(images, pipeline.decode(torch.lerp(known, drawn, mask)), region)


@torch.no_grad()
def with_magicface(
    pipeline: Pipeline, case: Case, regions: Sequence[Tensor], seeds: Sequence[int], steps: int, scale: float,
    control: nn.Module | None = None, pose: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Pictures ``B 3 H W`` of a case by MagicFace: each person's reference picture in their region ``H W``.

    Args:
        control: puts the heads where ``pose`` (``3 H W``) has them, in the picture itself; the references are as they
            are. Not used without a pose.
    """
    references = tuple(
        pipeline.reference(person.image, person.word, case.prompt, person.mask, WEIGHT, region=region)
        for person, region in zip(case.people, regions, strict=True)
    )
    model = pipeline.unet if pose is None else Posed(pipeline.unet, control, pose, 1.0)
    cond, uncond = (pipeline.conditioning([text]) for text in (case.prompt, ""))
    scheduler, request = pipeline.scheduler(steps), MagicFaceRequest(references, cache=ReferenceCache())
    with magicface(pipeline.unet, request, scheduler) as session:
        denoise = guided_denoiser(model, cond, uncond, scale, session)
        return pipeline.decode(sample(denoise, pipeline.noise(seeds), scheduler))
