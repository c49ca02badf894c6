"""What the in-process DIIR tests share: a tiny checkpoint, faces given by hand, and a job."""

from __future__ import annotations

from typing import Any

import torch
from support.comfy.magicface import Parts, picture

from likeness.core.diir.request import DiirRequest
from likeness.faces.interface import Face, Faces
from likeness.hosts.comfy.diir.repair import Job, repair_faces
from likeness.hosts.comfy.diir.report import Outcome
from likeness.hosts.comfy.diir.settings import Options

QUICK = DiirRequest(steps=3)


def pictures(batch: int = 1, height: int = 120, width: int = 136, channels: int = 3) -> torch.Tensor:
    """Pictures of coloured patches, IMAGE; a fourth channel is alpha."""
    colours = torch.cat([picture(seed, height, width) for seed in range(batch)])
    more = torch.rand(batch, height, width, max(0, channels - 3), generator=torch.Generator().manual_seed(9))
    return torch.cat([colours, more], dim=-1)[..., :channels]


def face(x: float = 60, y: float = 50, side: float = 24, number: int = 1, **more: Any) -> Face:
    """A face whose box has its middle at (x, y)."""
    box = (x - side * 0.4, y - side / 2, x + side * 0.4, y + side / 2)
    return Face(box, 1.0, number=number, **more)


def faces_of(image: torch.Tensor, *found: tuple[Face, ...]) -> Faces:
    """Faces of an IMAGE batch, a tuple a picture."""
    return Faces(tuple(found), image.shape[1], image.shape[2], "by hand")


def job(parts: Parts, image: torch.Tensor | None = None, faces: Faces | None = None, **more: Any) -> Job:
    """A quick repair of one face with the tiny checkpoint."""
    image = pictures() if image is None else image
    faces = faces_of(image, *[(face(),)] * len(image)) if faces is None else faces
    options = more.pop("options", Options(request=QUICK))
    return Job(image, more.pop("model", parts.model), parts.clip, parts.vae, faces=faces, options=options, **more)


def repaired(the_job: Job) -> Outcome:
    """Run a job as a node does."""
    with torch.inference_mode():
        return repair_faces(the_job, None)


def same_outside(outcome: Outcome, image: torch.Tensor) -> bool:
    """Whether every pixel that the mask leaves out is the very same."""
    outside = (outcome.mask == 0)[..., None].expand_as(image)
    return bool(torch.equal(outcome.image[outside], image[outside]))
