"""Pictures of the miniature's drawn world as ComfyUI's IMAGE and MASK."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ....core.errors import bad_input
from ....miniature.world import Figure, Item, Picture, numbered_identity
from ....miniature.world.spec import sample_figure

NOTHING = "none"


@dataclass(frozen=True)
class SampleRequest:
    """One drawn person: who it is (``identity``, a seed) and everything else the picture shows.

    ``held_out`` draws one of the people the miniature was never trained on. ``layout`` is the seed of what is not
    asked for: place, tilt and the scene's details. Names are those of ``miniature.world.spec``.
    """

    identity: int
    held_out: bool
    shot: str
    scene: str
    style: str
    garment: str
    garment_colour: str
    accessory: str
    accessory_colour: str
    expression: str
    layout: int
    size: int


@dataclass(frozen=True)
class Sample:
    """``image``: ``1 H W 3`` in [0, 1]; ``person``, ``face``, ``accessory``: masks ``1 H W``; ``caption``: in words."""

    image: Tensor
    person: Tensor
    face: Tensor
    accessory: Tensor
    caption: str


def compose(request: SampleRequest) -> Picture:
    """The picture's description, fixed by the request alone."""
    identity = numbered_identity(request.identity, request.held_out)
    layout = random.Random(f"layout {request.layout}")
    item = None if request.accessory == NOTHING else Item(request.accessory, request.accessory_colour)
    figure: Figure = replace(
        sample_figure(layout, request.shot, identity),
        garment=request.garment,
        colour=request.garment_colour,
        item=item,
        expression="" if request.expression == NOTHING else request.expression,
        action="standing",
        word=identity.gender,
        told="",
    )
    return Picture((figure,), request.shot, request.scene, request.style, seed=request.layout)


def draw(request: SampleRequest) -> Sample:
    """Draw the requested picture with its exact masks.

    Raises:
        LikenessError: skia, with which the world is drawn, is not installed.
    """
    try:
        from ....miniature.world.render import ground_truth, render
    except ImportError as cause:
        raise bad_input(
            "Miniature Sample", f"no Python package skia ({cause})", "skia-python in ComfyUI's Python",
            "Install it with: pip install skia-python",
        ) from cause
    picture = compose(request)
    truth = ground_truth(picture, request.size)[0]
    image = torch.from_numpy(render(picture, request.size)).float().div(255)[None]  # 1 H W 3
    return Sample(image, _mask(truth.person), _mask(truth.face), _mask(truth.accessory), picture.caption)


def _mask(mask: np.ndarray) -> Tensor:
    return torch.from_numpy(mask).float()[None]  # 1 H W
