"""Where a noise level stands in a sampling schedule."""

from __future__ import annotations

from collections.abc import Sequence

from .errors import bad_input

TOLERANCE = 1e-4  # relative; hosts compute the same sigma in different precisions


class Schedule:
    """A sampler's noise levels, by which any sampler is followed, however often it calls the model.

    Args:
        sigmas: VE noise levels of the run, first to last; T steps have T + 1 levels, the last usually 0.
    """

    def __init__(self, sigmas: Sequence[float]) -> None:
        levels = [float(s) for s in sigmas]
        if len(levels) < 2 or any(not s >= 0 for s in levels):
            raise bad_input(
                "sampling schedule", f"{len(levels)} noise levels", "at least two, none negative", "Sample >= 1 step."
            )
        self.sigmas = tuple(sorted(levels, reverse=True))

    @property
    def steps(self) -> int:
        """Number of steps T."""
        return len(self.sigmas) - 1

    def step(self, sigma: float) -> int:
        """Index 0..T-1 of the step a noise level belongs to: from its own level down to above the next one."""
        reached = sum(level * (1 + TOLERANCE) >= sigma for level in self.sigmas[:-1])
        return max(0, reached - 1)

    def before(self, sigma: float, share: float) -> bool:
        """Whether ``sigma`` lies in the first ``share`` of the steps (share 0: never, 1: always)."""
        return self.step(sigma) < share * self.steps - 1e-9


def same_sigma(a: float | None, b: float | None) -> bool:
    """Whether two noise levels are the same but for rounding."""
    if a is None or b is None:
        return a is b
    return abs(a - b) <= TOLERANCE * 0.01 * max(abs(a), abs(b))
