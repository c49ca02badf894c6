"""An 8x convolutional autoencoder for drawn pictures: RGB in [-1, 1] to 4-channel latents and back.

Small on purpose: convolutions and ReLU, no norms, bounded latents. Latents leave :meth:`Autoencoder.encode` in the
units of Stable Diffusion's own autoencoder (standard deviation near 1 / 0.18215), so every host's SD1.x latent
format and scaling factor hold without a change.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCALING_FACTOR = 0.18215
WIDTHS = (32, 64, 96)


class Residual(nn.Module):
    """Two 3x3 convolutions beside a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(F.relu(self.first(x))))


def _stage(width: int, blocks: int) -> list[nn.Module]:
    return [Residual(width) for _ in range(blocks)]


class Encoder(nn.Module):
    """``B 3 H W`` to ``B 4 H/8 W/8``, bounded to (-1, 1)."""

    def __init__(self, widths: tuple[int, int, int] = WIDTHS) -> None:
        super().__init__()
        a, b, c = widths
        self.layers = nn.Sequential(
            nn.PixelUnshuffle(2), nn.Conv2d(12, a, 3, padding=1), nn.ReLU(), *_stage(a, 1),
            nn.Conv2d(a, b, 3, stride=2, padding=1), nn.ReLU(), *_stage(b, 2),
            nn.Conv2d(b, c, 3, stride=2, padding=1), nn.ReLU(), *_stage(c, 2),
            nn.Conv2d(c, 4, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layers(x) / 3) * 3


class Decoder(nn.Module):
    """``B 4 h w`` to ``B 3 8h 8w``."""

    def __init__(self, widths: tuple[int, int, int] = WIDTHS) -> None:
        super().__init__()
        a, b, c = widths
        self.layers = nn.Sequential(
            nn.Conv2d(4, c, 3, padding=1), nn.ReLU(), *_stage(c, 3),
            nn.Conv2d(c, 4 * b, 3, padding=1), nn.PixelShuffle(2), nn.ReLU(), *_stage(b, 2),
            nn.Conv2d(b, 4 * a, 3, padding=1), nn.PixelShuffle(2), nn.ReLU(), *_stage(a, 2),
            nn.Conv2d(a, 12, 3, padding=1), nn.PixelShuffle(2),
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z)


class Autoencoder(nn.Module):
    """Encoder, decoder and the statistics that bring latents to Stable Diffusion's scale.

    ``mean`` and ``std`` (``1 4 1 1``) are measured on the encoder's raw latents after training.
    """

    scaling_factor = SCALING_FACTOR

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()
        self.register_buffer("mean", torch.zeros(1, 4, 1, 1))
        self.register_buffer("std", torch.ones(1, 4, 1, 1))

    def encode(self, image: Tensor) -> Tensor:
        """RGB ``B 3 H W`` in [-1, 1], sides multiples of 8, to unscaled latents ``B 4 H/8 W/8``."""
        return (self.encoder(image) - self.mean) / self.std / self.scaling_factor

    def decode(self, latent: Tensor) -> Tensor:
        """Latents (unscaled) ``B 4 h w`` to RGB ``B 3 8h 8w``, near [-1, 1] and not clamped."""
        return self.decoder(latent * self.scaling_factor * self.std + self.mean)

    def forward(self, image: Tensor) -> Tensor:
        return self.decode(self.encode(image))
