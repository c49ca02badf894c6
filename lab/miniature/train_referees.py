"""Trains the miniature's referees on drawn pictures from a seed; resumable, logged, checkpointed.

Pictures are drawn once into a pool (part of them also passed through the autoencoder with noise on the latents, as
generated pictures are), then blurred, made noisy, recoloured and moved afresh at every step.
"""

from __future__ import annotations

import io
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from lab.miniature.loop import Checkpoint, Log, cosine
from likeness.faces.geometry import crop_square
from likeness.miniature import models
from likeness.miniature.referees import (
    ATTRIBUTES,
    CLASSIFIER_SIDE,
    DETECTOR_SIDE,
    MODELS,
    accessory_labels,
    attribute_labels,
    cell_middles,
    resize,
    trait_labels,
)
from likeness.miniature.world import Picture, sample_identity, sample_picture
from likeness.miniature.world.render import ground_truth, render
from likeness.miniature.world.spec import SHOTS

log = logging.getLogger("likeness")


@dataclass(frozen=True)
class Config:
    """``steps``: length of training; ``pool``: pictures drawn; ``views``: pictures of one person in a batch.

    ``regenerated``: share of the pictures drawn at 128 pixels that are passed through the autoencoder.
    """

    seed: int = 0
    steps: int = 1000
    batch: int = 32
    pool: int = 6000
    lr: float = 2e-3
    regenerated: float = 0.15
    views: int = 2


@dataclass
class Pool:
    """Drawn examples: pictures ``N 3 S S`` uint8 and what is known of each."""

    images: Tensor
    labels: dict[str, Tensor]


def to_tensor(images: list[np.ndarray] | np.ndarray) -> Tensor:
    """``N H W 3`` uint8 pictures to ``N 3 H W`` in [0, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def compress(image: np.ndarray, quality: int) -> np.ndarray:
    """A picture after JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


class Painter:
    """Draws pictures and gives part of them the look of generated or stored ones."""

    def __init__(self, config: Config) -> None:
        self.config, self.rng = config, random.Random(config.seed)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.autoencoder = models.load_autoencoder().to(memory_format=torch.channels_last)

    def draw(self, picture: Picture) -> np.ndarray:
        """The picture at 128 or, now and then, 192 or 256 pixels, brought to 128: uint8 ``128 128 3``."""
        image = self._regenerate(render(picture, self.rng.choices((128, 192, 256), (0.7, 0.15, 0.15))[0]))
        if self.rng.random() < 0.25:
            image = compress(image, self.rng.randint(25, 90))
        if image.shape[0] != 128:
            image = np.asarray(Image.fromarray(image).resize((128, 128), Image.Resampling.BILINEAR))
        return np.ascontiguousarray(image)

    @torch.no_grad()
    def _regenerate(self, image: np.ndarray) -> np.ndarray:
        if image.shape[0] > 128 or self.rng.random() >= self.config.regenerated:
            return image
        latent = self.autoencoder.encode(to_tensor([image]) * 2 - 1)
        level = self.rng.uniform(0, 0.35) / self.autoencoder.scaling_factor
        latent = latent + level * torch.randn(latent.shape, generator=self.generator)
        out = (self.autoencoder.decode(latent)[0] / 2 + 0.5).clamp(0, 1)
        return (out * 255).round().byte().permute(1, 2, 0).numpy()


def picture_pool(config: Config) -> Pool:
    """Pictures of every kind with face boxes, landmarks (NaN where there is no face), attributes and accessories."""
    painter, images = Painter(config), []
    boxes = torch.full((config.pool, 4, 4), torch.nan)
    points = torch.full((config.pool, 4, 5, 2), torch.nan)
    attributes, accessories = [], []
    for i in range(config.pool):
        picture = _any_picture(painter.rng)
        images.append(painter.draw(picture))
        for j, truth in enumerate(ground_truth(picture, DETECTOR_SIDE)):
            boxes[i, j], points[i, j] = torch.tensor(truth.box), torch.from_numpy(truth.five)
        attributes.append(attribute_labels(picture))
        accessories.append(accessory_labels(picture))
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return Pool(stacked, {"boxes": boxes, "points": points, "attributes": torch.tensor(attributes),
                          "accessories": torch.tensor(accessories)})


def _any_picture(rng: random.Random) -> Picture:
    """A training picture, shots more even than the world draws them."""
    people = rng.choices((0, 1, 2, 3, 4), (0.07, 0.65, 0.2, 0.05, 0.03))[0]
    return sample_picture(rng, shot=rng.choices(SHOTS, (0.5, 0.3, 0.2))[0], people=people)


def face_pool(config: Config) -> Pool:
    """Face crops ``N 3 80 80`` (room for moving them), ``4`` of each person, and their traits ``N 13``."""
    painter, images, traits = Painter(config), [], []
    for _ in range(config.pool // 4):
        identity = sample_identity(painter.rng)
        for _ in range(4):
            shot = painter.rng.choices(("portrait", "half body", "full body"), (0.55, 0.35, 0.1))[0]
            picture = sample_picture(painter.rng, identity, shot=shot)
            box = torch.tensor([ground_truth(picture, 128)[0].box])
            crop = crop_square(to_tensor([painter.draw(picture)]), box, 80, margin=0.25 + 0.1875)
            images.append((crop[0] * 255).round().byte())
            traits.append(trait_labels(identity))
    return Pool(torch.stack(images), {"traits": torch.tensor(traits)})


class Disturb:
    """Blur, noise and colour, drawn afresh for every picture."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Uniform numbers of this shape."""
        return low + (high - low) * torch.rand(shape, generator=self.generator)

    def __call__(self, images: Tensor) -> Tensor:
        """``B 3 S S`` in [0, 1] -> the same, disturbed."""
        count = len(images)
        small = F.avg_pool2d(images, 3, 1, 1, count_include_pad=False)
        mix = self.uniform(-0.2, 1.0, count, 1, 1, 1).clamp(min=0)
        out = images + mix * (small - images)
        gain = self.uniform(0.85, 1.15, count, 1, 1, 1) * self.uniform(0.96, 1.04, count, 3, 1, 1)
        out = (out - 0.5) * gain + 0.5 + self.uniform(-0.06, 0.06, count, 1, 1, 1)
        level = self.uniform(0, 0.05, count, 1, 1, 1)
        return (out + level * torch.randn(out.shape, generator=self.generator)).clamp(0, 1)

    def move(self, images: Tensor, low: float, high: float, shift: float) -> tuple[Tensor, Tensor, Tensor]:
        """Scale by ``low..high`` and shift by up to ``shift`` of the side; borders repeat.

        Returns:
            Pictures, scale ``B`` and shift ``B 2`` in pixels: a point p goes to
            ``(p - side / 2) scale + side / 2 + shift``.
        """
        count, side = len(images), images.shape[-1]
        scale, offset = self.uniform(low, high, count), self.uniform(-shift, shift, count, 2)
        theta = torch.zeros(count, 2, 3)
        theta[:, 0, 0] = theta[:, 1, 1] = 1 / scale
        theta[:, :, 2] = -2 * offset / scale[:, None]
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False), scale, offset * side


Loss = Callable[[nn.Module, Tensor], tuple[Tensor, dict[str, Tensor]]]


def detector_loss(pool: Pool, disturb: Disturb) -> Loss:
    """Focal loss on cells, L1 on boxes and landmarks of the cells near a face's middle."""

    def loss(model: nn.Module, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        images, scale, shift = disturb.move(pool.images[rows].float() / 255, 0.55, 1.15, 0.08)
        middle = DETECTOR_SIDE / 2
        place = lambda p: (p - middle) * scale.view(-1, *[1] * (p.ndim - 1)) + middle + shift.view(  # noqa: E731
            -1, *[1] * (p.ndim - 2), 2)
        boxes = place(pool.labels["boxes"][rows].unflatten(-1, (2, 2))).flatten(-2)  # B 4 4
        points = place(pool.labels["points"][rows])  # B 4 5 2
        return detection_error(model(disturb(images)), boxes, points)

    return loss


def detection_error(output: Tensor, boxes: Tensor, points: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of the detector's output ``B 15 16 16`` against boxes ``B F 4`` and landmarks ``B F 5 2`` (NaN: no face)."""
    cells = cell_middles(output.shape[-1]).reshape(1, -1, 1, 2)  # 1 N 1 2
    size, centre = boxes[..., 2:] - boxes[..., :2], (boxes[..., 2:] + boxes[..., :2]) / 2  # B F 2
    apart = ((cells - centre[:, None]).square().sum(-1).sqrt() / size[:, None, :, 1]).nan_to_num(9.0)  # B N F
    distance, owner = apart.min(dim=2)
    nearest = apart.argmin(dim=1, keepdim=True)  # B 1 F
    positive = (distance < 0.16) | torch.zeros_like(apart).scatter(1, nearest, 1).mul(apart < 2).any(2)
    ignore = (distance < 0.3) & ~positive
    rows = output.flatten(2).transpose(1, 2)  # B N 15
    score = F.binary_cross_entropy_with_logits(rows[..., 0], positive.float(), reduction="none")
    chance = torch.where(positive, 1 - rows[..., 0].sigmoid(), rows[..., 0].sigmoid()).detach()
    score = (score * chance.square() * ~ignore).sum() / positive.sum()
    batch, cell = positive.nonzero(as_tuple=True)
    face, found = owner[batch, cell], rows[batch, cell]
    middle = cells[0, cell, 0]
    target = torch.cat([(centre[batch, face] - middle) / 8, (size[batch, face] / 32).log()], 1)
    box = F.smooth_l1_loss(found[:, 1:5], target, beta=0.2)
    relative = (points[batch, face] - middle[:, None]) / size[batch, face, 1, None, None]
    five = F.smooth_l1_loss(found[:, 5:], relative.flatten(1), beta=0.05)
    return score + box + 4 * five, {"score": score, "box": box, "five": five}


def embedder_loss(pool: Pool, disturb: Disturb, views: int) -> Loss:
    """Traits by classification, and two views of one person drawn together against all others (temperature 0.1)."""

    def loss(model: nn.Module, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        people = rows[: len(rows) // views] // 4
        rows = torch.cat([people * 4 + k for k in torch.randperm(4, generator=disturb.generator)[:views]])
        images, _, _ = disturb.move(pool.images[rows].float() / 255, 0.88, 1.12, 0.05)
        vectors = model(disturb(images[..., 8:-8, 8:-8]))
        labels = pool.labels["traits"][rows]
        errors = [F.cross_entropy(logits, labels[:, i]) for i, logits in enumerate(model.trait_logits(vectors))]
        traits, contrast = torch.stack(errors).mean(), contrastive(F.normalize(vectors, dim=1), people.repeat(views))
        return traits + 0.3 * contrast, {"traits": traits, "contrast": contrast}

    return loss


def contrastive(vectors: Tensor, people: Tensor, temperature: float = 0.1) -> Tensor:
    """Supervised contrastive loss of unit vectors ``B D`` with the person of each ``B``."""
    logits = vectors @ vectors.T / temperature
    itself = torch.eye(len(vectors), dtype=torch.bool)
    same = (people[:, None] == people[None]) & ~itself
    log_share = logits.masked_fill(itself, -torch.inf).log_softmax(dim=1)
    return -log_share[same].mean()


def classifier_loss(pool: Pool, disturb: Disturb) -> Loss:
    """Cross-entropy of every attribute that the picture has, small things counting twice, and of every accessory."""
    weights = torch.tensor([2.0 if name in ("garment", "expression", "gender") else 1.0 for name in ATTRIBUTES])

    def loss(model: nn.Module, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        images, _, _ = disturb.move(pool.images[rows].float() / 255, 0.95, 1.08, 0.04)
        attributes, accessories = model(resize(disturb(images), CLASSIFIER_SIDE))
        labels = pool.labels["attributes"][rows]
        errors = [F.cross_entropy(logits, labels[:, i], ignore_index=-1) for i, logits in enumerate(attributes)]
        kinds = F.binary_cross_entropy_with_logits(accessories, pool.labels["accessories"][rows])
        named = (torch.stack(errors) * weights).sum() / weights.sum()
        return named + 4 * kinds, {"attributes": named, "accessories": kinds}

    return loss


CONFIGS = {
    "detector": Config(steps=700, batch=16, pool=2500),
    "embedder": Config(steps=650, batch=40, pool=5000),
    "classifier": Config(steps=2200, batch=24, pool=8000, seed=1),
}


def make_loss(name: str, config: Config, seed: int) -> tuple[Loss, int]:
    """The referee's loss on a freshly drawn pool, and the pool's size."""
    disturb = Disturb(seed)
    pool = face_pool(config) if name == "embedder" else picture_pool(config)
    if name == "embedder":
        return embedder_loss(pool, disturb, config.views), len(pool.images)
    return {"detector": detector_loss, "classifier": classifier_loss}[name](pool, disturb), len(pool.images)


def train(name: str, config: Config, state: Checkpoint, record: Log) -> nn.Module:
    """Train a referee for ``config.steps`` steps, going on from the checkpoint where there is one."""
    torch.manual_seed(config.seed)
    model = MODELS[name]().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=1e-3)
    spent, first = state.restore(model, optimizer)
    loss_of, count = make_loss(name, config, config.seed + first)
    log.info("%s: %d pictures drawn", name, count)
    picker, started = torch.Generator().manual_seed(config.seed + first), time.monotonic() - spent
    for step in range(first + 1, config.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * cosine(step / config.steps, warmup=0.03)
        loss, parts = loss_of(model, torch.randint(count, (config.batch,), generator=picker))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
        spent = time.monotonic() - started
        if step % 20 == 0:
            record.write(step=step, seconds=spent, loss=loss.detach(), **{k: v.detach() for k, v in parts.items()})
        state.maybe_save(model, optimizer, spent, step)
    state.save(model, optimizer, spent, config.steps)
    return model.eval()
