"""What is known of a drawn picture: the miniature's exact answers, where a picture says which of its world it is."""

from __future__ import annotations

import functools
import random

import numpy as np
import torch
from torch import Tensor

from likeness.faces.interface import Face
from likeness.faces.keypoints import FACE, Person, Pose
from likeness.miniature.world import Picture, sample_picture

from .reading import Photo


def drawn(seed: int) -> Picture:
    """The picture of the world of a seed: one person most often, nobody or several now and then."""
    return sample_picture(random.Random(seed))


@functools.lru_cache(maxsize=2)
def _truth(seed: int, side: int) -> tuple:
    from likeness.miniature.world.render import ground_truth  # needs skia

    return tuple(ground_truth(drawn(seed), side))


def truths(photo: Photo) -> tuple | None:
    """The ``FigureTruth`` of everybody in a drawn picture; None for any other."""
    return None if photo.world is None else _truth(photo.world[0], photo.image.width)


def caption(photo: Photo) -> str:
    """The caption of a drawn picture; empty for any other."""
    return "" if photo.world is None else drawn(photo.world[0]).caption


def faces(photo: Photo) -> tuple[Face, ...] | None:
    """The faces of a drawn picture with 5 and 68 landmarks; None for any other."""
    found = truths(photo)
    if found is None:
        return None
    return tuple(Face(one.box, 1.0, _points(one.five), _points(one.dense)) for one in found)


def pose(photo: Photo) -> Pose | None:
    """The people of a drawn picture, as far as they lie in it; None for any other."""
    found = truths(photo)
    if found is None:
        return None
    from lab.people import body_of  # needs skia

    size = (photo.image.width, photo.image.height)
    people = tuple(Person(_inside(body_of(one), size), _inside(_face(one), size)) for one in found)
    return Pose(people, photo.image.height, photo.image.width)


def head(photo: Photo, face: Face) -> Tensor | None:
    """The visible head of a face, ``H W`` of 0 and 1: that of the figure whose face's middle lies nearest."""
    found = truths(photo)
    if not found:
        return None
    x, y = face.centre
    nearest = min(found, key=lambda one: (one.five[:, 0].mean() - x) ** 2 + (one.five[:, 1].mean() - y) ** 2)
    return torch.from_numpy(nearest.face).float()


def _points(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def _face(one: object) -> Tensor:
    """iBUG's 68 points and the pupils."""
    return torch.cat([_points(one.dense), _points(one.five[:2])])[:FACE]


def _inside(points: Tensor, size: tuple[int, int]) -> Tensor:
    """The points that lie in the picture; NaN for others."""
    outside = ((points < 0) | (points > torch.tensor(size))).any(dim=1)
    return torch.where(outside[:, None], torch.nan, points)
