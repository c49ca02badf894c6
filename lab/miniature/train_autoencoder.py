"""Trains the miniature's autoencoder from a seed; resumable, logged, checkpointed."""

from __future__ import annotations

import logging
import random
import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lab.miniature.loop import Checkpoint, Log, autocast, cosine, device
from likeness.miniature.autoencoder import Autoencoder
from likeness.miniature.world import sample_picture
from likeness.miniature.world.render import render
from likeness.miniature.world.spec import Picture

log = logging.getLogger("likeness")


@dataclass(frozen=True)
class Config:
    """``crop``: pixels; ``pool``: pictures kept drawn at a time; ``minutes``: wall-clock budget the schedule spans."""

    seed: int = 0
    minutes: float = 14.0
    batch: int = 24
    crop: int = 64
    pool: int = 900
    lr: float = 2e-3
    noise: float = 0.1
    freeze_encoder: bool = False


class Crops:
    """Random crops from a pool of drawn pictures, half of them at faces; the pool is renewed as training goes on."""

    def __init__(self, config: Config) -> None:
        self.config, self.rng = config, random.Random(config.seed)
        self.pool = [self._picture() for _ in range(config.pool)]

    def _picture(self) -> tuple[np.ndarray, Picture]:
        picture = sample_picture(self.rng)
        return render(picture, 128 if self.rng.random() < 0.7 else 256), picture

    def _crop(self) -> np.ndarray:
        image, picture = self.rng.choice(self.pool)
        side, crop = image.shape[0], self.config.crop
        x, y = self.rng.randint(0, side - crop), self.rng.randint(0, side - crop)
        if picture.figures and self.rng.random() < 0.5:
            figure = self.rng.choice(picture.figures)
            reach = figure.head * side * 0.35
            x = round(figure.centre[0] * side + self.rng.uniform(-reach, reach)) - crop // 2
            y = round(figure.centre[1] * side + self.rng.uniform(-reach, reach)) - crop // 2
        x, y = (min(max(v // 8 * 8, 0), side - crop) for v in (x, y))
        return image[y : y + crop, x : x + crop]

    def batch(self) -> Tensor:
        """``B 3 crop crop`` in [-1, 1]."""
        for _ in range(2):
            self.pool[self.rng.randrange(len(self.pool))] = self._picture()
        crops = np.stack([self._crop() for _ in range(self.config.batch)])
        return torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 127.5 - 1


def reconstruction_loss(output: Tensor, image: Tensor) -> Tensor:
    """L1 of pixels and of their differences, and root mean square, so that edges and small eyes count."""
    error = output - image
    dx, dy = error.diff(dim=3).abs().mean(), error.diff(dim=2).abs().mean()
    return error.abs().mean() + 1.5 * (dx + dy) + (error.square().mean() + 1e-8).sqrt()


def train(config: Config, state: Checkpoint, record: Log) -> Autoencoder:
    """Train until the budget is spent, going on from the checkpoint where there is one."""
    torch.manual_seed(config.seed)
    model = Autoencoder().to(device()).to(memory_format=torch.channels_last)
    if config.freeze_encoder:
        model.encoder.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=config.lr, weight_decay=1e-4)
    spent, step = state.restore(model, optimizer)
    crops, started = Crops(config), time.monotonic() - spent
    while (spent := time.monotonic() - started) < config.minutes * 60:
        for group in optimizer.param_groups:
            group["lr"] = config.lr * cosine(spent / (config.minutes * 60), warmup=0.02)
        image = crops.batch().to(device()).to(memory_format=torch.channels_last)
        with autocast():
            latent = model.encoder(image)
            output = model.decoder(latent + config.noise * torch.randn_like(latent))
        loss = reconstruction_loss(output.float(), image)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 20 == 0:
            mse = F.mse_loss(output.detach().float(), image) / 4
            record.write(step=step, seconds=spent, loss=loss.detach(), psnr=-10 * mse.log10())
        state.maybe_save(model, optimizer, spent, step)
    if not config.freeze_encoder:
        measure_latents(model, crops)
    state.save(model, optimizer, spent, step)
    return model


@torch.no_grad()
def measure_latents(model: Autoencoder, crops: Crops) -> None:
    """Set the latents' mean and standard deviation per channel."""
    latents = torch.cat([model.encoder(crops.batch().to(device())) for _ in range(16)])
    model.mean.copy_(latents.mean(dim=(0, 2, 3), keepdim=True))
    model.std.copy_(latents.std(dim=(0, 2, 3)).reshape(1, 4, 1, 1))
