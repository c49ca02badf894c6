"""The miniature as a text-to-image pipeline on the diffusers host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel

from ..hosts.diffusers.sampling import Callback, Conditioning, Session, guided_denoiser, sample
from . import models
from .autoencoder import Autoencoder


@dataclass
class Miniature:
    """UNet, text encoder and autoencoder, and the picture size in pixels they work at."""

    unet: UNet2DConditionModel
    text: CLIPTextModel
    autoencoder: Autoencoder
    size: int

    @classmethod
    def load(cls) -> Miniature:
        """The shipped weights."""
        return cls(models.load_unet(), models.load_text_encoder(), models.load_autoencoder(), models.picture_size())

    @torch.no_grad()
    def condition(self, captions: Sequence[str]) -> Conditioning:
        """Captions to conditioning, context ``B 77 C``."""
        ids = models.tokenize(list(captions)).to(self.unet.device)
        return Conditioning(self.text(input_ids=ids).last_hidden_state)

    @torch.no_grad()
    def encode(self, images: np.ndarray) -> Tensor:
        """uint8 ``B H W 3`` to scaled latents ``B 4 H/8 W/8``."""
        x = torch.from_numpy(images).to(self.unet.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        return self.autoencoder.encode(x) * self.autoencoder.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Scaled latents ``B 4 h w`` to uint8 ``B 8h 8w 3``."""
        x = self.autoencoder.decode(latents / self.autoencoder.scaling_factor)
        return ((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()

    def noise(self, seeds: Sequence[int], height: int | None = None, width: int | None = None) -> Tensor:
        """Starting noise ``B 4 h w``, one seed a picture, so that a picture does not depend on its batch."""
        shape = (4, (height or self.size) // 8, (width or self.size) // 8)
        rows = [torch.randn(shape, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds]
        return torch.stack(rows).to(self.unet.device)

    def generate(
        self,
        captions: Sequence[str],
        seeds: Sequence[int],
        steps: int = 30,
        scale: float = 4.0,
        session: Session | None = None,
        callback: Callback | None = None,
        negative: str = "",
    ) -> np.ndarray:
        """Sample with DDIM and classifier-free guidance: uint8 ``B H W 3``."""
        scheduler = models.scheduler()
        scheduler.set_timesteps(steps)
        cond, uncond = self.condition(captions), self.condition([negative] * len(captions))
        denoiser = guided_denoiser(self.unet, cond, uncond, scale, session)
        return self.decode(sample(denoiser, self.noise(seeds), scheduler, callback))
