"""Faces of any number of pictures repaired, in chunks of rows: cut, encode, restore, decode, paste."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .fusion import mask_to_latent
from .geometry import Crop, cut
from .paste import Patch, paste


@dataclass(frozen=True)
class Place:
    """One face to repair.

    Attributes:
        picture: number of its picture.
        crop: where.
        mask: the head in the crop, soft (:func:`.paste.feathered`), ``S S`` in [0, 1].
    """

    picture: int
    crop: Crop
    mask: Tensor


class Model(Protocol):
    """What a host does for a chunk of faces; ``faces`` are their numbers among all places."""

    def encode(self, crops: Tensor) -> Tensor:
        """``B 3 S S`` in [0, 1] to scaled latents ``B C h w``: the posterior's mode, not a sample."""

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents to ``B 3 S S`` in [0, 1]."""

    def restore(self, latents: Tensor, masks: Tensor, faces: Sequence[int]) -> Tensor:
        """``Z0`` and ``M_p`` (``B 1 h w``) to the restored latents: inversion, then restoration."""


@dataclass(frozen=True)
class Repaired:
    """What came out.

    Attributes:
        pictures: as they came in, faces repaired; the very same tensor where there was nothing to do.
        changed: ``H W`` in [0, 1] a picture: how much of each pixel is new.
        before, after: crops ``3 S S`` of every place.
        failed: places whose restored latents held NaN or infinite values; they were left alone.
    """

    pictures: list[Tensor]
    changed: list[Tensor]
    before: list[Tensor]
    after: list[Tensor]
    failed: tuple[int, ...] = ()


def repair(
    pictures: Sequence[Tensor], places: Sequence[Place], model: Model, size: int, rows: int | None = None
) -> Repaired:
    """Repair the faces at ``places``.

    Args:
        pictures: ``C H W`` in [0, 1] each, of any size; channels after the third are not touched.
        places: any number a picture, masks ``size size``.
        model: the host's.
        size: side of the crops in pixels, the model's own picture side.
        rows: faces a chunk, by memory; None takes all at once.
    """
    before, after, failed = [], [], []
    numbers = list(range(len(places)))
    step = max(1, rows or len(places))
    for chunk in (numbers[i : i + step] for i in range(0, len(numbers), step)):
        crops = torch.stack([cut(pictures[places[n].picture][:3], places[n].crop, size) for n in chunk])
        repaired = _chunk(crops, [places[n] for n in chunk], model, chunk)
        for n, old, new in zip(chunk, crops, repaired, strict=True):
            fine = bool(torch.isfinite(new).all())
            failed += [] if fine else [n]
            before.append(old)
            after.append(new if fine else old)
    done = [n for n in numbers if n not in failed]
    results = [
        paste(picture, [Patch(places[n].crop, after[n], places[n].mask) for n in done if places[n].picture == i])
        for i, picture in enumerate(pictures)
    ]
    return Repaired([p for p, _ in results], [c for _, c in results], before, after, tuple(failed))


def _chunk(crops: Tensor, places: Sequence[Place], model: Model, faces: Sequence[int]) -> Tensor:
    latents = model.encode(crops)
    masks = torch.stack([place.mask for place in places]).to(latents.device)
    restored = model.restore(latents, mask_to_latent(masks, tuple(latents.shape[-2:])), faces)
    return model.decode(restored).to(crops.device, torch.float32)
