"""What a run tells about itself for previews: semantic maps, correspondences (Fig. 5a), patch attention (Fig. 5b)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from ..attention import split_heads
from ..masks import Grid
from .injection import KeyTokens, ReferenceKeys

MOST_TOKENS = 4096  # correspondences are taken at the finest level with at most this many tokens
QUERY_CHUNK = 128


@dataclass(frozen=True)
class StepRecord:
    """One sigma of a run.

    Attributes:
        sigma: noise level. step: index in the sampler's schedule. stage: ``"rsa"`` or ``"rba"``.
        labels: semantic map, ``B h w`` int64: 0 background, c the c-th concept; None when none was made. On the CPU
            once the run has ended.
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
    grid: Grid
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
        maps: how many steps are recorded at most, evenly spread; the rest of the run costs nothing.
    """

    patches: tuple[tuple[float, float], ...] = ()
    moments: tuple[float, ...] = (0.38, 1.0)
    maps: int = 12
    steps: list[StepRecord] = field(default_factory=list)
    correspondence: list[Correspondence] = field(default_factory=list)
    patches_seen: list[PatchAttention] = field(default_factory=list)

    def clear(self) -> None:
        """Forget the previous run."""
        self.steps.clear()
        self.correspondence.clear()
        self.patches_seen.clear()

    def map_steps(self, total: int) -> frozenset[int]:
        """The schedule indices whose maps are kept in a run of ``total`` steps; the first and the last among them."""
        last, count = total - 1, min(total, self.maps)
        return frozenset(round(i * last / (count - 1)) for i in range(count)) if count > 1 else frozenset({last})

    def wanted_steps(self, total: int) -> frozenset[int]:
        """The schedule indices at which correspondences are taken in a run of ``total`` steps."""
        return frozenset(min(total - 1, int(moment * total)) for moment in self.moments)


def finest_shown(factors: set[int], grid: Grid) -> int:
    """The finest of some resolution factors at which a latent of this size has few enough tokens to be looked at."""
    ordered = sorted(factors)
    return next((f for f in ordered if grid[0] * grid[1] <= MOST_TOKENS * f * f), ordered[-1])


def reference_share(
    q: torch.Tensor,
    k: torch.Tensor,
    heads: int,
    keys: Sequence[ReferenceKeys],
    allowed: torch.Tensor | None = None,
) -> torch.Tensor:
    """Head-mean attention of one picture's tokens over the references' keys, in chunks of queries.

    Args:
        q, k: ``N C``.
        heads: heads merged in C.
        keys: all references', M keys together.
        allowed: ``N M`` bool, which queries see which key (RBA); None is all (RSA).

    Returns:
        ``N M`` float32; with the own keys' share a row sums to 1.
    """
    own = k.shape[0]
    k4 = split_heads(torch.cat([k, *(part.k.to(k) for part in keys)])[None], heads).float()[0]  # H N+M D
    q4 = split_heads(q[None], heads).float()[0]  # H N D
    biases = [torch.full((len(part.k),), part.bias, device=q.device) for part in keys]
    bias = torch.cat([torch.zeros(own, device=q.device), *biases])
    shares = []
    for start in range(0, q.shape[0], QUERY_CHUNK):
        rows = slice(start, start + QUERY_CHUNK)
        logits = q4[:, rows] @ k4.transpose(1, 2) * q4.shape[-1] ** -0.5 + bias  # H n N+M
        if allowed is not None:
            logits[..., own:].masked_fill_(~allowed[rows], -torch.inf)
        shares.append(logits.softmax(dim=-1)[..., own:].mean(dim=0))
    return torch.cat(shares)


@dataclass
class _Look:
    """What one step's blocks have shown: the sum of their shares, and of how many."""

    share: torch.Tensor
    grid: Grid
    tokens: KeyTokens
    count: int = 1


class RunRecorder:
    """Feeds a :class:`Recorder` during one run.

    Args:
        recorder: what the caller reads afterwards; cleared here.
        steps: of the run.
    """

    def __init__(self, recorder: Recorder, steps: int) -> None:
        recorder.clear()
        self.recorder = recorder
        self._steps = recorder.wanted_steps(steps)
        self._map_steps = recorder.map_steps(steps)
        self._look: _Look | None = None

    def wants_map(self, step: int) -> bool:
        """Whether this step's map is kept."""
        return step in self._map_steps

    def wants(self, step: int) -> bool:
        """Whether attention to the references is to be looked at in this step."""
        return step in self._steps

    def look(self, share: torch.Tensor, grid: Grid, tokens: KeyTokens) -> None:
        """Add one block's :func:`reference_share` of the first picture (``N M``)."""
        if self._look is None:
            self._look = _Look(share, grid, tokens)
        elif self._look.share.shape == share.shape:
            self._look.share = self._look.share + share
            self._look.count += 1

    def write(self, step: int, sigma: float, stage: str, labels: torch.Tensor | None) -> None:
        """A call ended well: write what it showed. ``labels``: ``B h w``, or None where no map was made."""
        if self.wants_map(step) and (labels is not None or all(known.step != step for known in self.recorder.steps)):
            kept = [record for record in self.recorder.steps if record.step != step]
            self.recorder.steps[:] = [*kept, StepRecord(sigma, step, stage, labels)]
        if self._look is not None:
            self._write_look(step, self._look)
            self._look = None

    def close(self) -> None:
        """The run ended: bring to the CPU what it has kept on the device, where nothing had to wait for it."""
        steps = self.recorder.steps
        steps[:] = [s if s.labels is None else replace(s, labels=s.labels.cpu()) for s in steps]

    def _write_look(self, step: int, look: _Look) -> None:
        share, tokens = (look.share / look.count).cpu(), look.tokens
        real = tokens.token >= 0
        kinds = (tokens.concept, tokens.reference, tokens.token)
        share, tokens = share[:, real], KeyTokens(*(kind[real] for kind in kinds), tokens.grids)
        r = self.recorder
        r.correspondence[:] = [c for c in r.correspondence if c.step != step]
        r.correspondence.append(_correspondence(step, look.grid, share, tokens))
        r.patches_seen[:] = [p for p in r.patches_seen if p.step != step]
        r.patches_seen += [_patch_attention(step, patch, look.grid, share, tokens) for patch in r.patches]


def _correspondence(step: int, grid: Grid, share: torch.Tensor, tokens: KeyTokens) -> Correspondence:
    best = share.argmax(dim=1)
    mass = share.sum(dim=1)
    number, token = tokens.reference[best], tokens.token[best]
    heights = torch.tensor([tokens.grids[int(n)][0] for n in number])
    widths = torch.tensor([tokens.grids[int(n)][1] for n in number])
    y = (token // widths + 0.5) / heights
    x = (token % widths + 0.5) / widths
    looked = torch.where(mass > 0, number, torch.zeros_like(best))
    return Correspondence(step, grid, looked.view(grid), y.view(grid), x.view(grid), mass.view(grid))


def _patch_attention(
    step: int, patch: tuple[float, float], grid: Grid, share: torch.Tensor, tokens: KeyTokens
) -> PatchAttention:
    height, width = grid
    row = min(height - 1, int(patch[0] * height)) * width + min(width - 1, int(patch[1] * width))
    maps = []
    for n, (h, w) in tokens.grids.items():
        plane = torch.zeros(h * w)
        plane[tokens.token[tokens.reference == n]] = share[row, tokens.reference == n]
        maps.append(plane.view(h, w))
    return PatchAttention(step, patch, tuple(maps))
