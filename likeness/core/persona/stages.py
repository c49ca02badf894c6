"""Stage regulation: where in the schedule the persona speaks.

PersonaMagic splits the denoising into three stages. Early (large t) the plain supercategory word conditions the
picture, so that its layout follows the prompt; in the dynamic stage the mapper's words do, new ones at every step; late
the last dynamic words are kept. The bounds are fixed timesteps, or are read off the IoU between the cross-attention
map of the persona's words and the face mask (Fig. 2): below ``lambda1`` static, above ``lambda2`` static again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import bad_input
from .text import Contexts

DEFAULT_BOUNDS = (400, 800)
EARLY, DYNAMIC, LATE = "supercategory", "dynamic", "held"
LATE_CHOICES = ("held", "supercategory")


@dataclass(frozen=True)
class Stages:
    """The dynamic stage is ``low <= t <= high`` (timesteps of the training schedule).

    Attributes:
        late: what conditions ``t < low``: ``held`` keeps the last dynamic words, ``supercategory`` the plain word.
    """

    low: int = DEFAULT_BOUNDS[0]
    high: int = DEFAULT_BOUNDS[1]
    late: str = "held"

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high or self.late not in LATE_CHOICES:
            raise bad_input(
                "Persona: stages",
                f"low {self.low}, high {self.high}, late {self.late!r}",
                f"0 <= low < high and late one of {LATE_CHOICES}",
                "Correct the bounds.",
            )

    def at(self, timestep: float) -> str:
        """``supercategory``, ``dynamic`` or ``held`` for a timestep."""
        if timestep > self.high:
            return EARLY
        return DYNAMIC if timestep >= self.low else LATE

    def bounded(self, timestep: float) -> int:
        """The dynamic timestep next to a timestep."""
        return int(min(max(timestep, self.low), self.high))


def dynamic_timesteps(timesteps: Sequence[int], stages: Stages, midpoints: bool = False) -> list[int]:
    """The distinct dynamic timesteps of a schedule, descending; ``midpoints`` adds the means of neighbours.

    Two-stage samplers evaluate the model between its levels, near those means.
    """
    ordered = sorted({int(t) for t in timesteps})
    between = [(a + b) // 2 for a, b in itertools.pairwise(ordered)] if midpoints else []
    return sorted({t for t in (*ordered, *between) if stages.at(t) == DYNAMIC}, reverse=True)


def nearest_timestep(timesteps: Sequence[int], stages: Stages) -> int | None:
    """The level next to the stage in a schedule that jumps over it (few steps); None where it does not.

    A schedule that ends above the stage does not: another one goes on from there. Neither does one that begins below.
    """
    levels = [int(t) for t in timesteps]
    jumps = levels and max(levels) > stages.high and min(levels) < stages.low
    if not jumps or any(stages.at(t) == DYNAMIC for t in levels):
        return None
    heard = [t for t in levels if t > 0]  # at timestep 0 the picture is done, no model is asked
    return min(heard, key=lambda t: max(stages.low - t, t - stages.high))


@dataclass(frozen=True)
class StagedContexts:
    """Contexts of a whole schedule, looked up by timestep, never by step index.

    Attributes:
        early: ``1 L C`` contexts of the supercategory prompt.
        dynamic: ``S L C`` contexts, one per timestep in ``timesteps``.
        timesteps: descending dynamic timesteps.
        held: index of the entry that is kept in the late stage.
        nearest: a timestep outside of the stage that speaks like the stage's bound on its side; few steps have one.
    """

    stages: Stages
    early: Contexts
    dynamic: Contexts
    timesteps: tuple[int, ...]
    held: int
    nearest: int | None = None

    def to(self, like: Tensor) -> StagedContexts:
        """The same on the device and in the type of another tensor."""
        early, dynamic = (Contexts(*(x.to(like) for x in pair)) for pair in (self.early, self.dynamic))
        return replace(self, early=early, dynamic=dynamic)

    def index(self, timestep: float) -> int | None:
        """Row of :attr:`dynamic` for a timestep; None stands for :attr:`early`."""
        if timestep == self.nearest:
            timestep = self.stages.bounded(timestep)
        stage = self.stages.at(timestep)
        if stage == EARLY or (stage == LATE and self.stages.late == "supercategory"):
            return None
        if stage == LATE:
            return self.held
        return min(range(len(self.timesteps)), key=lambda i: abs(self.timesteps[i] - timestep))

    def at(self, timestep: float) -> Contexts:
        """``1 L C`` key and value contexts for a timestep."""
        row = self.index(timestep)
        if row is None:
            return self.early
        return Contexts(self.dynamic.key[row : row + 1], self.dynamic.value[row : row + 1])


def precompute(
    encode: Callable[[Tensor], Contexts],
    early: Contexts,
    stages: Stages,
    timesteps: Sequence[int],
    midpoints: bool = False,
) -> StagedContexts:
    """Contexts of every dynamic step of a schedule in one batch of the text encoder.

    Args:
        encode: ``S`` timesteps -> contexts ``S L C``.
        early: contexts of the supercategory prompt.
        timesteps: all timesteps of the schedule; 0 stands for its end, if it comes to one.
    """
    on_schedule = dynamic_timesteps(timesteps, stages)
    nearest = nearest_timestep(timesteps, stages)
    kept = min(on_schedule, default=stages.low)  # a schedule that begins below the stage has its lower bound
    spoken = {*dynamic_timesteps(timesteps, stages, midpoints), kept}
    if nearest is not None:
        spoken.add(stages.bounded(nearest))
    wanted = sorted(spoken, reverse=True)
    return StagedContexts(stages, early, encode(torch.tensor(wanted)), tuple(wanted), wanted.index(kept), nearest)


# --- bounds from attention -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class IouCurve:
    """IoU of attention and mask over the schedule: the data of Fig. 2.

    Attributes:
        timesteps: descending.
        iou: as measured; ``smooth``: smoothed, made monotone, and calibrated (what the thresholds are compared with).
    """

    timesteps: tuple[int, ...]
    iou: tuple[float, ...]
    smooth: tuple[float, ...]


def attention_iou(maps: Tensor, mask: Tensor, threshold: float = 0.5) -> Tensor:
    """IoU of binarised maps and mask.

    Args:
        maps: ``S h w`` attention of the persona's words, any scale (min-max normalised here, each by itself).
        mask: ``H W`` in [0, 1], resized to the maps.

    Returns:
        ``S`` in [0, 1].
    """
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    seen = (maps - low) / (high - low).clamp(min=1e-12) > threshold
    mask = torch.nn.functional.interpolate(mask[None, None].float(), size=maps.shape[1:], mode="area")[0, 0]
    wanted = mask.to(maps.device) > threshold
    union = (seen | wanted).sum(dim=(1, 2))
    return (seen & wanted).sum(dim=(1, 2)) / union.clamp(min=1)


#: A curve that rises by less tells no stage: the words' attention never comes to lie on the mask.
LEAST_RISE = 0.1


def calibrate(iou: Tensor, window: int = 3, paper_range: tuple[float, float] | None = (0.5, 1.0)) -> Tensor:
    """Smooth a curve, make it rise with falling noise, and bring it to the range the paper's thresholds live in.

    The absolute IoU depends on layer, resolution and binarisation, which the paper leaves open; its own curve covers
    0.5 ("unpartitioned" begins there) to 1. ``paper_range`` maps this curve's minimum and maximum to those two, so
    that lambda1 = 0.7 and lambda2 = 0.8 mean 40% and 60% of the way up on any model. A curve that rises by less than
    :data:`LEAST_RISE` stays flat at the minimum: stretched, its noise would look like a stage. None leaves absolute
    values.
    """
    pad = window // 2
    smooth = torch.nn.functional.avg_pool1d(
        torch.nn.functional.pad(iou[None, None].float(), (pad, pad), mode="replicate"), window, stride=1
    )[0, 0]
    rising = smooth.cummax(dim=0).values
    if paper_range is None:
        return rising
    low, high = rising[0], rising[-1]
    if high - low < LEAST_RISE:
        return torch.full_like(rising, paper_range[0])
    return paper_range[0] + (paper_range[1] - paper_range[0]) * (rising - low) / (high - low)


def iou_curve(timesteps: Sequence[int], maps: Tensor, mask: Tensor, calibrated: bool = True) -> IouCurve:
    """The curve of Fig. 2 from ``S h w`` maps at descending timesteps."""
    iou = attention_iou(maps, mask).cpu()
    smooth = calibrate(iou, paper_range=(0.5, 1.0) if calibrated else None)
    return IouCurve(tuple(int(t) for t in timesteps), tuple(iou.tolist()), tuple(smooth.tolist()))


def stages_from_iou(
    curve: IouCurve,
    lambda1: float = 0.7,
    lambda2: float = 0.8,
    late: str = "held",
    fallback: tuple[int, int] = DEFAULT_BOUNDS,
) -> tuple[Stages, bool]:
    """Bounds where the curve crosses the thresholds.

    ``high`` is the largest timestep whose IoU reaches ``lambda1``; ``low`` the smallest whose IoU does not exceed
    ``lambda2``. A curve that starts above lambda1 leaves no early stage, one that never exceeds lambda2 no late one.

    Returns:
        the stages, and False where the curve never reaches lambda1 or leaves no interval (then ``fallback``).
    """
    if not lambda1 < lambda2:
        raise bad_input("Persona: lambda1, lambda2", f"{lambda1}, {lambda2}", "lambda1 < lambda2", "Swap them.")
    inside = [t for t, v in zip(curve.timesteps, curve.smooth, strict=True) if lambda1 <= v <= lambda2]
    above = [t for t, v in zip(curve.timesteps, curve.smooth, strict=True) if v > lambda2]
    if not inside or min(inside) >= max(inside):
        return Stages(*fallback, late=late), False
    low = min(inside) if above else 0
    return Stages(low, max(inside), late), True
