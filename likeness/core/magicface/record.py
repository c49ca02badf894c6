"""What a run tells about itself for previews: semantic maps, correspondences (Fig. 5a), patch attention (Fig. 5b)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class StepRecord:
    """One sigma of a run.

    Attributes:
        sigma: noise level. step: index in the sampler's schedule. stage: ``"rsa"`` or ``"rba"``.
        labels: semantic map, ``B h w`` int64 on the CPU: 0 background, i the i-th reference; None when none was made.
    """

    sigma: float
    step: int
    stage: str
    labels: torch.Tensor | None


@dataclass(frozen=True)
class Correspondence:
    """Which reference pixel each generated pixel looked at most (first picture of the batch).

    Attributes:
        step: index in the schedule. grid: height and width of the attention grid.
        reference: ``h w`` int64, 1-based reference number; 0 where the pixel attended no reference.
        y, x: ``h w`` in [0, 1], centre of the looked-up patch in that reference's picture.
        mass: ``h w`` in [0, 1], share of the pixel's attention that went to references.
    """

    step: int
    grid: tuple[int, int]
    reference: torch.Tensor
    y: torch.Tensor
    x: torch.Tensor
    mass: torch.Tensor


@dataclass(frozen=True)
class PatchAttention:
    """Attention of one generated patch over every reference.

    Attributes:
        step: index in the schedule. patch: (y, x) in [0, 1] of the generated picture.
        maps: per reference ``h w``, attention mass per reference patch; 0 outside the concept's mask.
    """

    step: int
    patch: tuple[float, float]
    maps: tuple[torch.Tensor, ...]


@dataclass
class Recorder:
    """Collects a run's preview data; cleared when a run begins, readable after it ended or was interrupted.

    Attributes:
        patches: generated patches to follow, (y, x) in [0, 1].
        moments: shares of the schedule at which correspondences are taken, in [0, 1]; 1 is the last step.
    """

    patches: tuple[tuple[float, float], ...] = ()
    moments: tuple[float, ...] = (0.38, 1.0)
    steps: list[StepRecord] = field(default_factory=list)
    correspondence: list[Correspondence] = field(default_factory=list)
    patches_seen: list[PatchAttention] = field(default_factory=list)

    def clear(self) -> None:
        """Forget the previous run."""
        self.steps.clear()
        self.correspondence.clear()
        self.patches_seen.clear()

    def wanted_steps(self, total: int) -> frozenset[int]:
        """The schedule indices at which correspondences are taken in a run of ``total`` steps."""
        return frozenset(min(total - 1, int(moment * total)) for moment in self.moments)
