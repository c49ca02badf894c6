"""Restoration of faces from their trajectory (Alg. 2, lines 3-8)."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from ..errors import bad_input
from .features import FeatureFusion
from .fusion import fuse_latents
from .inversion import Denoise, Progress, Trajectory, ddim_step


@torch.no_grad()
def restore(
    denoise: Denoise,
    trajectory: Trajectory,
    mask: Tensor,
    start: int = 0,
    keep_style: bool = False,
    features: FeatureFusion | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """DDIM from ``Z_T = Z^_T``, the latents fused with the trajectory's after every step.

    The last step blends with ``Z^_0`` itself, so that outside the mask the clean latents are the draft's own.

    Args:
        denoise: the model with guidance, identity and landmarks.
        trajectory: of the inversion (:func:`.inversion.invert`), or of noise (:func:`.inversion.noised`).
        mask: ``M_p``, ``B 1 h w`` in [0, 1].
        start: first step to run, 0..T; a later one begins at the trajectory's own level and keeps more of the draft.
        keep_style: whether latents take the draft's statistics inside the mask (Eq. 5).
        features: fuses self-attention outputs as well (the paper's mode).
        progress: told after every step.

    Returns:
        Clean latents ``B C h w``, float32.
    """
    sigmas, total = trajectory.sigmas, trajectory.steps
    if not 0 <= start <= total:
        raise bad_input("DIIR: first step", start, f"0 to {total}", "Use a strength between 0 and 1.")
    z = trajectory.latents[start]
    for step in range(start, total):
        with features.fusing(step, trajectory) if features is not None else nullcontext():
            clean = denoise(z, sigmas[step]).to(z)
        z = ddim_step(z, clean, sigmas[step], sigmas[step + 1])
        z = fuse_latents(z, trajectory.latents[step + 1], mask, keep_style)
        if progress is not None:
            progress("restoration", step + 1 - start, total - start, clean)
    return z
