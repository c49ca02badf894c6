"""Trains the miniature's UNet and text encoder from a seed; resumable, logged, checkpointed.

Latents are drawn and encoded as training goes on, so no picture is seen twice. A part of the batches shows pairs: the
same person (or accessory) in two pictures side by side, as character sheets and diptychs do on the web; from them the
self-attention learns to look an appearance up elsewhere. Another part shows one scene with one thing changed: from
them the words of small things are learnt.
"""

from __future__ import annotations

import json
import logging
import random
import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from lab.miniature.loop import Checkpoint, Log, cosine, device
from likeness.core.schedule import stable_diffusion_alphas
from likeness.hosts.diffusers.miniature import load_text_weights, new_text_encoder, new_unet
from likeness.hosts.diffusers.tokenizer import tokenize
from likeness.miniature import models
from likeness.miniature.models import TOKEN_TABLE, UNET_FILES, WEIGHTS, seeded_table
from likeness.miniature.world import Picture, pair_caption, sample_pair, sample_picture, sample_variants
from likeness.miniature.world.render import details, render
from likeness.miniature.world.spec import VARIANTS, sample_count

log = logging.getLogger("likeness")

DECODER_KEYS = ("up_blocks.", "conv_norm_out.", "conv_out.")


@dataclass(frozen=True)
class Config:
    """``size``: picture side in pixels (128 or 256); ``minutes``: wall-clock budget the schedule spans.

    ``pairs_from``, ``pairs_to``: share of batches that show pairs, at the start and at the end; ``group``: share of
    pairs whose second picture shows the person beside someone else. ``two``: share of other pictures with two people.
    ``variants``: share of batches, falling to none at the end, in which pictures differ in one told thing alone.
    ``details``: weight of accessories, eyes and mouths above the rest of the picture's. ``text``: how many times as
    fast the text's path (text encoder and cross-attention) learns as the rest.
    ``warm_start``: begin from the shipped weights when there is no checkpoint.
    """

    seed: int = 0
    minutes: float = 90.0
    size: int = 128
    batch: int = 16
    lr: float = 1e-3
    pairs_from: float = 0.3
    pairs_to: float = 0.6
    group: float = 0.35
    two: float = 0.3
    variants: float = 0.3
    details: float = 4.0
    text: float = 1.0
    empty: float = 0.1
    bands: int = 20
    ema: float = 0.998
    bf16: int = 0
    warm_start: int = 0


class Diffuser(nn.Module):
    """UNet and text encoder together, and the moving average of both."""

    def __init__(self) -> None:
        super().__init__()
        self.unet, self.text = new_unet(), new_text_encoder()
        self.average_unet = new_unet().requires_grad_(False)
        self.average_text = new_text_encoder().requires_grad_(False)
        self.reset_average()

    def reset_average(self) -> None:
        """Start the averages at the current weights."""
        self.average_unet.load_state_dict(self.unet.state_dict())
        self.average_text.load_state_dict(self.text.state_dict())

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """Move the averages towards the weights."""
        for average, model in ((self.average_unet, self.unet), (self.average_text, self.text)):
            targets = list(average.parameters())
            torch._foreach_lerp_(targets, list(model.parameters()), 1 - decay)

    def predict(self, noisy: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """Predicted noise ``B 4 h w``."""
        return self.unet(noisy, t, self.text(input_ids=ids).last_hidden_state).sample


#: How far apart latents (of variance 1) are where variants differ.
DIFFERENT = 0.5
#: Least timestep of variants: below, the noisy picture shows by itself what the word would tell.
NOISY = 250


@dataclass(frozen=True)
class Batch:
    """Latents ``B 4 h w``, weights of the loss ``B 1 h w`` and token ids ``B 77``.

    ``alike`` rows in a row get the same noise at the same timestep.
    """

    latents: Tensor
    weights: Tensor
    ids: Tensor
    alike: int = 1


class Batches:
    """Draws, encodes and captions; ``rng`` fixes every picture."""

    def __init__(self, config: Config, seed: int) -> None:
        self.config, self.rng = config, random.Random(seed)
        self.encoder = models.load_autoencoder().to(device()).to(memory_format=torch.channels_last)

    @torch.no_grad()
    def _encode(self, rows: list[tuple[Picture, ...]]) -> tuple[Tensor, Tensor]:
        """Rows of pictures side by side to latents ``B 4 h w`` and the loss's weights ``B 1 h w``."""
        drawn = [[(p, render(p, self.config.size)) for p in row] for row in rows]
        images = np.stack([np.concatenate([image for _, image in row], 1) for row in drawn])
        small = np.stack([np.concatenate([details(p, image) for p, image in row], 1) for row in drawn])
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        x = x.to(device()).to(memory_format=torch.channels_last)
        latents = (self.encoder.encode(x) * self.encoder.scaling_factor).contiguous()
        cell = small.shape[1] // latents.shape[2]
        weights = 1 + self.config.details * F.max_pool2d(torch.from_numpy(small)[:, None].float(), cell)
        return latents, weights.to(latents.device)

    def _ids(self, captions: list[str]) -> Tensor:
        """Token ids ``B 77``; some captions are left out, for guidance."""
        kept = ["" if self.rng.random() < self.config.empty else caption for caption in captions]
        return tokenize(kept).to(device())

    def singles(self) -> Batch:
        """Pictures of their own."""
        counts = [sample_count(self.rng, self.config.two) for _ in range(self.config.batch)]
        pictures = [sample_picture(self.rng, people=count) for count in counts]
        return Batch(*self._encode([(p,) for p in pictures]), self._ids([p.caption for p in pictures]))

    def pairs(self) -> Batch:
        """Two pictures side by side: latents ``B/2 4 h 2h``."""
        pairs = [sample_pair(self.rng, group=self.config.group) for _ in range(self.config.batch // 2)]
        return Batch(*self._encode(pairs), self._ids([pair_caption(a, b) for a, b in pairs]))

    def variants(self) -> Batch:
        """Scenes drawn four times with one thing changed, and with it a word of the caption; that thing weighs more.

        With the same noise all else that moves the gradient is the same in the four, and what the word means stands
        out.
        """
        pictures = [p for _ in range(max(self.config.batch // VARIANTS, 1)) for p in sample_variants(self.rng)]
        latents, weights = self._encode([(p,) for p in pictures])
        scenes = latents.unflatten(0, (-1, VARIANTS))
        changed = ((scenes.amax(1) - scenes.amin(1)).amax(1, keepdim=True) > DIFFERENT).repeat_interleave(VARIANTS, 0)
        weights = torch.where(changed, 1 + self.config.details, weights)
        return Batch(latents, weights, tokenize([p.caption for p in pictures]).to(device()), VARIANTS)

    def next(self, progress: float) -> Batch:
        """A batch of variants, of pairs or of singles."""
        if self.rng.random() < self.config.variants * (1 - progress):
            return self.variants()
        share = self.config.pairs_from + (self.config.pairs_to - self.config.pairs_from) * progress
        return self.pairs() if self.rng.random() < share else self.singles()


class Balance:
    """Gives every noise level the same say: the error relative to its running mean at like timesteps.

    The noise-prediction error is thirty times larger at little noise than at much; unbalanced, what is decided at much
    noise (the layout, and so what the caption says) is learnt last. Same idea as the uncertainty weighting of Karras et
    al., "Analyzing and Improving the Training Dynamics of Diffusion Models" (2024), appendix B.
    """

    def __init__(self, bands: int, timesteps: int, device: torch.device) -> None:
        self.mean = torch.zeros(bands, device=device)
        self.width = timesteps // bands

    def __call__(self, error: Tensor, t: Tensor) -> Tensor:
        """``B`` errors at ``B`` timesteps to one loss, near 1 times the mean error."""
        band = t // self.width
        for b, e in zip(band.tolist(), error.detach(), strict=True):
            self.mean[b] = e if self.mean[b] == 0 else torch.lerp(self.mean[b], e, 0.05)
        return (error / self.mean[band]).mean() * self.mean.mean()


def diffusion_loss(model: Diffuser, batch: Batch, alphas: Tensor, balance: Balance, bf16: bool) -> Tensor:
    """Noise-prediction error, weighted mean over the picture, balanced over noise levels."""
    latents = batch.latents
    scenes = len(latents) // batch.alike
    least = NOISY if batch.alike > 1 else 0
    t = torch.randint(least, len(alphas), (scenes,), device=latents.device).repeat_interleave(batch.alike)
    noise = torch.randn_like(latents[:scenes]).repeat_interleave(batch.alike, dim=0)
    alpha = alphas[t].reshape(-1, 1, 1, 1)
    with torch.autocast(latents.device.type, torch.bfloat16, enabled=bf16):
        predicted = model.predict(alpha.sqrt() * latents + (1 - alpha).sqrt() * noise, t, batch.ids)
    squares = F.mse_loss(predicted.float(), noise, reduction="none").mean(dim=1, keepdim=True)
    error = (batch.weights * squares).sum(dim=(1, 2, 3)) / batch.weights.sum(dim=(1, 2, 3))
    return balance(error, t)


def _optimizer(model: Diffuser, config: Config) -> torch.optim.Optimizer:
    table = model.text.get_input_embeddings().weight  # rows never seen must stay as seeded: no decay there
    text = [p for p in model.text.parameters() if p is not table]
    text += [p for name, p in model.unet.named_parameters() if ".attn2." in name]
    rest = [p for name, p in model.unet.named_parameters() if ".attn2." not in name]
    groups = [{"params": rest, "weight_decay": 1e-3}, {"params": text, "weight_decay": 1e-3},
              {"params": [table], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.99), foreach=True)


def export(model: Diffuser, config: Config, step: int) -> None:
    """Write the averaged weights where the loaders look for them."""
    save_unet(model.average_unet.state_dict(), config.size, steps=step)
    save_text_encoder(model.average_text.state_dict())


def train(config: Config, state: Checkpoint, record: Log) -> Diffuser:
    """Train until the budget is spent, going on from the checkpoint where there is one; exports at every checkpoint."""
    torch.manual_seed(config.seed)
    model = Diffuser()
    if config.warm_start:
        model.unet.load_state_dict(models.unet_weights())
        load_text_weights(model.text, models.text_encoder_weights())
        model.reset_average()
    model.to(device()).to(memory_format=torch.channels_last)
    optimizer = _optimizer(model, config)
    spent, step = state.restore(model, optimizer)
    batches = Batches(config, config.seed + step)
    alphas = stable_diffusion_alphas().float().to(device())
    balance = Balance(config.bands, len(alphas), alphas.device)
    started, losses = time.monotonic() - spent, []
    while (spent := time.monotonic() - started) < config.minutes * 60:
        progress = spent / (config.minutes * 60)
        for group, rate in zip(optimizer.param_groups, (1.0, config.text, config.text), strict=True):
            group["lr"] = config.lr * rate * cosine(progress)
        loss = diffusion_loss(model, batches.next(progress), alphas, balance, bool(config.bf16))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        model.update_average(min(config.ema, (1 + step) / (10 + step)))
        losses.append(loss.item())
        if step % 20 == 0:
            record.write(step=step, seconds=spent, loss=float(np.mean(losses)), progress=progress)
            losses.clear()
        if state.maybe_save(model, optimizer, spent, step):
            export(model, config, step)
    state.save(model, optimizer, spent, step)
    export(model, config, step)
    return model


def save_unet(weights: dict[str, Tensor], size: int, **metadata: object) -> None:
    """Write UNet weights as fp16 with the picture size they were trained at."""
    WEIGHTS.mkdir(exist_ok=True)
    meta = {"picture_size": str(size), **{k: json.dumps(v) for k, v in metadata.items()}}
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in UNET_FILES}
    for key, value in weights.items():
        parts[UNET_FILES[key.startswith(DECODER_KEYS)]][key] = value.detach().cpu().half().contiguous()
    for name, part in parts.items():
        save_file(part, WEIGHTS / f"{name}.safetensors", meta)


def save_text_encoder(weights: dict[str, Tensor]) -> None:
    """Write text encoder weights as fp16; of the embedding table only the rows that differ from the seeded ones."""
    WEIGHTS.mkdir(exist_ok=True)
    keyed = {f"text_model.{k.removeprefix('text_model.')}": v.detach().cpu() for k, v in weights.items()}
    keyed = {k: v for k, v in keyed.items() if not k.endswith("position_ids")}
    table = keyed.pop(TOKEN_TABLE)
    rows = (table - seeded_table()).abs().amax(dim=1).gt(1e-6).nonzero().flatten()
    out = {k: v.half().contiguous() for k, v in keyed.items()}
    out |= {"rows": rows.int(), "row_values": table[rows].half().contiguous()}
    save_file(out, WEIGHTS / "text_encoder.safetensors")
