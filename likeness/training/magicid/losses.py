"""The losses of MMF (Eq. 2-4), and what tells whether attention collapsed under them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.blocks import BlockId
from ...core.masks import Grid

Features = Mapping[BlockId, tuple[Grid, Tensor]]


def weighted_error(predicted: Tensor, noise: Tensor, weights: Tensor | None = None) -> Tensor:
    """Eq. 3 of each picture: squared error, mean over ``4 h w``, cells weighed by ``B 1 h w``; ``B``."""
    squares = F.mse_loss(predicted.float(), noise, reduction="none").mean(dim=1, keepdim=True)
    if weights is None:
        return squares.mean(dim=(1, 2, 3))
    return (weights * squares).sum(dim=(1, 2, 3)) / weights.sum(dim=(1, 2, 3))


def face_window(boxes: Tensor, grid: Grid) -> Tensor:
    """G of Eq. 2 where M_1 is 1: ``B 4`` boxes as shares of the picture -> ``B h w``, zero outside the box.

    A Gaussian of the box's size, a quarter of its sides as standard deviations; cells count as far as the box covers
    them, so that faces smaller than a cell keep a weight.
    """
    ys, xs = (torch.arange(side, device=boxes.device, dtype=boxes.dtype) for side in grid)
    x0, y0, x1, y1 = boxes.unbind(1)
    down = _profile(ys, y0 * grid[0], y1 * grid[0])  # B h, in cells
    across = _profile(xs, x0 * grid[1], x1 * grid[1])  # B w
    return down[:, :, None] * across[:, None]


def _profile(cells: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """``n``, ``B``, ``B`` -> ``B n``: coverage of each cell by ``low..high`` times a Gaussian round the middle."""
    covered = (torch.minimum(cells + 1, high[:, None]) - torch.maximum(cells, low[:, None])).clamp(min=0)
    spread = ((high - low) / 4).clamp(min=0.5)[:, None]
    return covered * torch.exp(-0.5 * ((cells + 0.5 - ((low + high) / 2)[:, None]) / spread).square())


def watched(features: Features, least: int) -> dict[BlockId, tuple[Grid, Tensor]]:
    """The features whose grid is finer than ``least`` a side; where a network has none, those of its finest."""
    fine = {block: kept for block, kept in features.items() if min(kept[0]) > least}
    if fine or not features:
        return fine
    finest = max(grid[0] * grid[1] for grid, _ in features.values())
    return {block: kept for block, kept in features.items() if kept[0][0] * kept[0][1] == finest}


def clone_face_loss(features: Features, boxes: Tensor, least: int = 32) -> tuple[Tensor, dict[str, Tensor]]:
    """``L_cfa`` of Eq. 2 on pictures that show the same half twice, side by side.

    The mean over cells (weighed by G squared), channels, blocks and pictures, not the sum: lambda then means the same
    at every resolution.

    Args:
        features: per block the token grid of the doubled picture and ``B T C``.
        boxes: ``B 4``, the face in the left half, as shares of that half.
        least: see :func:`watched`.

    Returns:
        The loss, and for the log: ``power`` (mean square of the features in the face), ``relative`` (loss / power) and
        ``variation`` (share of the power that differs between cells of one face). A loss that falls with ``variation``
        means that attention became constant in the face.
    """
    losses, powers, variations = [], [], []
    for (rows, columns), kept in watched(features, least).values():
        left, right = kept.float().unflatten(1, (rows, 2, columns // 2)).unbind(2)  # B h w C
        window = face_window(boxes, (rows, columns // 2)).square()[..., None]  # B h w 1
        total = window.sum(dim=(1, 2)).clamp(min=1e-6)  # B 1
        mean = (window * left).sum(dim=(1, 2)) / total  # B C
        losses.append((((left - right).square() * window).sum(dim=(1, 2)) / total).mean())
        powers.append(((left.square() * window).sum(dim=(1, 2)) / total).mean())
        spread = (left - mean[:, None, None]).square()
        variations.append(((spread * window).sum(dim=(1, 2)) / total).mean())
    loss, power, variation = (torch.stack(parts).mean() for parts in (losses, powers, variations))
    known = {"cfa": loss, "power": power, "relative": loss / power, "variation": variation / power}
    return loss, {name: value.detach() for name, value in known.items()}


class Balance:
    """Weights that give every noise level the same say: the error relative to its running mean at like timesteps.

    Noise prediction errs many times more at little noise than at much; unbalanced, what is decided at much noise (who
    it is) is learnt last. After Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models"
    (2024), appendix B. The same on every process: it is told the errors of all.
    """

    def __init__(self, timesteps: int, bands: int = 20, slowest: float = 0.05) -> None:
        self.mean, self.seen = torch.ones(bands), torch.zeros(bands)
        self.width, self.slowest = timesteps / bands, slowest

    def weights(self, timesteps: Tensor) -> Tensor:
        """``B`` timesteps -> ``B`` factors on their errors, from what was seen before."""
        mean = self.mean.to(timesteps.device)
        return mean.mean() / mean[self._band(timesteps)]

    def update(self, errors: Tensor, timesteps: Tensor) -> None:
        """Take in the errors of a step, ``B``."""
        for band, error in zip(self._band(timesteps).tolist(), errors.detach().float().tolist(), strict=True):
            self.seen[band] += 1
            self.mean[band] += max(self.slowest, 1 / float(self.seen[band])) * (error - float(self.mean[band]))

    def _band(self, timesteps: Tensor) -> Tensor:
        return (timesteps / self.width).long().clamp(max=len(self.mean) - 1)
