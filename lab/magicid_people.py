"""MagicID's training set of drawn people: pictures with everything that frozen models say of them, made once."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from lab.people import body_of
from likeness.core.masks import area_to_grid
from likeness.drawing.pose import INSTANTID, OPENPOSE, draw_faces, draw_people
from likeness.faces.geometry import crop_square
from likeness.faces.interface import Face
from likeness.faces.keypoints import FACE, Person
from likeness.faces.masks import head_ellipse
from likeness.hosts.diffusers.pipeline import Pipeline
from likeness.miniature.faces import MiniatureEmbedder
from likeness.miniature.world import Identity, Picture, sample_picture
from likeness.miniature.world.placed import recast, sample_placed
from likeness.miniature.world.render import FigureTruth, face_box, ground_truth, render
from likeness.training.magicid.samples import Sample

log = logging.getLogger("likeness")

MODES = LANDMARKS, SKELETON = ("landmarks", "skeleton")
REFERENCES = 2
ALIKE = 4  # pictures of one scene
CHUNK = 32
#: how many times their side pose pictures are drawn
TIMES = (2, 4)
#: weight of a face in the loss beside 1 of the rest
FACE_WEIGHT = 3.0


@dataclass(frozen=True)
class Size:
    """How much is drawn: scenes of :data:`ALIKE` pictures with other people in each, and pictures of their own."""

    scenes: int = 500
    singles: int = 1400


def pose_picture(truths: Sequence[FigureTruth], side: int, mode: str, times: int = 2, five: bool = False) -> Tensor:
    """A pose as ControlNets are given it, ``3 side side`` in [0, 1].

    Args:
        mode: one of :data:`MODES`.
        times: drawn at so many times the side and made smaller: the lines of the preprocessors have a width of their
            own, which a small picture has no room for.
        five: landmarks as InstantID's five points instead of OpenPose's eyes and nose.
    """
    size = side * times
    if mode == SKELETON:
        nowhere = torch.full((FACE, 2), torch.nan)
        drawn = draw_people([Person(body_of(t) * times, nowhere) for t in truths], size, size, OPENPOSE)
    else:
        faces = [Face(t.box, 1.0, torch.from_numpy(t.five).float() * times) for t in truths]
        drawn = draw_faces(faces, size, size, INSTANTID if five else OPENPOSE)
    return F.avg_pool2d(drawn, times)


def region_of(rng: random.Random, truth: FigureTruth, side: int) -> Tensor:
    """Where a face is, ``side side``: exactly, as an ellipse round its box, or as a generous box."""
    kind = rng.randrange(3)
    if kind == 0:
        return torch.from_numpy(truth.face).float()
    if kind == 1:
        return head_ellipse(Face(truth.box, 1.0), side, side)
    x0, y0, x1, y1 = truth.box
    grown = rng.uniform(0.0, 0.25) * (y1 - y0)
    out = torch.zeros(side, side)
    bounds = [max(0, round(value)) for value in (y0 - grown, y1 + grown, x0 - grown, x1 + grown)]
    out[bounds[0] : bounds[1], bounds[2] : bounds[3]] = 1
    return out


class Painter:
    """Draws people and asks the frozen models about them.

    Args:
        pipeline: the miniature. seed: of everything drawn. held_out: people never trained on.
    """

    def __init__(self, pipeline: Pipeline, seed: int, held_out: bool = False) -> None:
        self.pipeline, self.rng, self.held_out = pipeline, random.Random(seed), held_out
        self.embedder, self.side = MiniatureEmbedder(), pipeline.side

    def pictures(self, size: Size) -> list[tuple[Picture, int]]:
        """Pictures and the numbers of their scenes (-1: its own)."""
        out = [(self._single(), -1) for _ in range(size.singles)]
        for scene in range(size.scenes):
            out += [(p, scene) for p in recast(self.rng, self._single(), ALIKE, self.held_out)]
        return out

    def _single(self) -> Picture:
        if self.rng.random() < 0.5:
            return sample_placed(self.rng, held_out=self.held_out)
        count = self.rng.choices((1, 2, 3), (0.7, 0.25, 0.05))[0]
        drawn = sample_picture(self.rng, held_out=self.held_out, people=count)
        return replace(drawn, figures=tuple(replace(f, told="") for f in drawn.figures))

    def samples(self, size: Size, quiet: bool = False) -> list[Sample]:
        """The training set."""
        drawn = self.pictures(size)
        chunks = [drawn[i : i + CHUNK] for i in range(0, len(drawn), CHUNK)]
        return [s for chunk in tqdm(chunks, desc="pictures", disable=quiet) for s in self._chunk(chunk)]

    @torch.no_grad()
    def _chunk(self, drawn: Sequence[tuple[Picture, int]]) -> list[Sample]:
        images = to_tensor([render(picture, self.side) for picture, _ in drawn])
        latents = self.pipeline.encode(images)
        texts = self.pipeline.conditioning([picture.caption for picture, _ in drawn]).context.half()
        people = [figure.identity for picture, _ in drawn for figure in picture.figures]
        vectors = iter(self.references(people))
        return [
            self._sample(picture, scene, latent, text, torch.stack([next(vectors) for _ in picture.figures]))
            for (picture, scene), latent, text in zip(drawn, latents, texts, strict=True)
        ]

    def references(self, people: Sequence[Identity]) -> Tensor:
        """Vectors ``P R E`` of people in portraits of their own."""
        shown = [
            sample_picture(self.rng, who, held_out=self.held_out, shot="portrait", people=1)
            for who in people for _ in range(REFERENCES)
        ]  # fmt: skip
        boxes = torch.tensor([face_box(picture.figures[0], self.side) for picture in shown])
        crops = crop_square(to_tensor([render(p, self.side) for p in shown]), boxes, self.embedder.size)
        return torch.cat([self.embedder.embed(part) for part in crops.split(64)]).unflatten(0, (-1, REFERENCES))

    def _sample(self, picture: Picture, scene: int, latent: Tensor, text: Tensor, vectors: Tensor) -> Sample:
        truths, grid = ground_truth(picture, self.side), tuple(latent.shape[-2:])
        faces = torch.from_numpy(np.logical_or.reduce([t.face for t in truths])).float()
        poses = {
            mode: pose_picture(truths, self.side, mode, self.rng.choice(TIMES), self.rng.random() < 0.5)
            for mode in MODES
        }
        regions = [area_to_grid(region_of(self.rng, truth, self.side), grid) for truth in truths]
        return Sample(
            latent=latent, text=text, vectors=vectors, regions=torch.stack(regions),
            boxes=torch.tensor([t.box for t in truths]) / self.side,
            poses={mode: (drawn * 255).round().byte() for mode, drawn in poses.items()},
            weights=1 + FACE_WEIGHT * area_to_grid(faces, grid)[None], scene=scene,
        )  # fmt: skip


def cached(pipeline: Pipeline, size: Size, seed: int, file: Path, held_out: bool = False) -> list[Sample]:
    """The samples of a seed, made once and kept in ``file``."""
    if not file.is_file():
        samples = Painter(pipeline, seed, held_out).samples(size)
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save([vars(sample) for sample in samples], file)
    return [Sample(**kept) for kept in torch.load(file, weights_only=True)]


def to_tensor(images: Sequence[np.ndarray]) -> Tensor:
    """``H W 3`` uint8 pictures -> ``B 3 H W`` in [0, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
