"""Records a run for previews: semantic maps, correspondences (Fig. 5a, 14) and attention of patches (Fig. 5b)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..attention import split_heads
from ..blocks import BlockId
from ..masks import token_grid
from .record import Correspondence, PatchAttention, Recorder, StepRecord

if TYPE_CHECKING:
    from .call import MagicFaceCall
    from .injection import ReferenceKeys
    from .run import MagicFaceRun

MOST_TOKENS = 4096  # correspondences are taken at the finest level with at most this many tokens
QUERY_CHUNK = 128


def reference_share(
    q: torch.Tensor,
    k: torch.Tensor,
    heads: int,
    keys: ReferenceKeys,
    allowed: torch.Tensor | None = None,
) -> torch.Tensor:
    """Head-mean attention of one picture's tokens over the references' keys, in chunks of queries.

    Args:
        q, k: ``N C``.
        heads: heads merged in C.
        keys: all references' keys, M of them.
        allowed: ``N M`` bool, which queries see which key (RBA); None is all (RSA).

    Returns:
        ``N M`` float32; with the own keys' share a row sums to 1.
    """
    own = k.shape[0]
    k4 = split_heads(torch.cat([k, keys.k.to(k)])[None], heads).float()[0]  # H N+M D
    q4 = split_heads(q[None], heads).float()[0]  # H N D
    bias = torch.cat([keys.bias.new_zeros(own), keys.bias]).float()
    shares = []
    for start in range(0, q.shape[0], QUERY_CHUNK):
        rows = slice(start, start + QUERY_CHUNK)
        logits = q4[:, rows] @ k4.transpose(1, 2) * q4.shape[-1] ** -0.5 + bias  # H n N+M
        if allowed is not None:
            logits[..., own:].masked_fill_(~allowed[rows], -torch.inf)
        shares.append(logits.softmax(dim=-1)[..., own:].mean(dim=0))
    return torch.cat(shares)


class RunRecorder:
    """Feeds a :class:`Recorder` during one run.

    Args:
        recorder: what the caller reads afterwards; cleared here.
        run: the run it belongs to.
    """

    def __init__(self, recorder: Recorder, run: MagicFaceRun) -> None:
        recorder.clear()
        self.recorder = recorder
        self.run = run
        self._steps = recorder.wanted_steps(run.schedule.steps)
        self._share: torch.Tensor | None = None
        self._count = 0
        self._block: BlockId | None = None
        self._grid = (0, 0)

    def wants(self, call: MagicFaceCall, block: BlockId) -> bool:
        """Whether this block's attention is to be looked at in this call."""
        if self.run.schedule.step(call.sigma) not in self._steps or 0 not in call.samples:
            return False
        return self.run.layout.factor(block) == self._factor(call)

    def _factor(self, call: MagicFaceCall) -> int:
        factors = sorted({self.run.layout.factor(block) for block in self.run.blocks})
        area = call.grid[0] * call.grid[1]
        return next((f for f in factors if area <= MOST_TOKENS * f * f), factors[-1])

    def look(self, call: MagicFaceCall, block: BlockId, q: torch.Tensor, k: torch.Tensor, heads: int) -> None:
        """Add one block's attention of the first picture (``N C``)."""
        keys = call.keys[block]
        joined = type(keys[0]).join(keys)
        self._grid = token_grid(call.grid, self.run.layout.factor(block), q.shape[0])
        allowed = None
        if call.stage == "rba":
            label = call.labels(self._grid)[0].flatten().to(joined.bias.device)  # N
            concept = torch.cat([torch.full_like(s.bias, i + 1) for i, s in enumerate(keys)])  # M
            allowed = label[:, None] == concept[None, :]
        share = reference_share(q, k, heads, joined, allowed)
        self._share = share if self._share is None else self._share + share
        self._count += 1
        self._block = block

    def commit(self, call: MagicFaceCall) -> None:
        """A call ended well: write what it showed."""
        step = self.run.schedule.step(call.sigma)
        self._write_map(call, step)
        if self._share is not None:
            self._write_share(step, self._share / self._count)
            self._share, self._count = None, 0

    def _write_map(self, call: MagicFaceCall, step: int) -> None:
        semantic = call.builder.finish() if call.builder else None
        labels = None
        if semantic is not None:
            grid = tuple(semantic.winner.shape[-2:])
            labels = self.run.placement.labels(semantic, call.batch, grid, call.whole).cpu()
        if labels is not None or not any(record.step == step for record in self.recorder.steps):
            kept = [record for record in self.recorder.steps if record.step != step]
            self.recorder.steps[:] = [*kept, StepRecord(call.sigma, step, call.stage, labels)]

    def _write_share(self, step: int, share: torch.Tensor) -> None:
        share = share.cpu()
        number, pixel = self._key_places()
        real = pixel >= 0
        share, number, pixel = share[:, real], number[real], pixel[real]
        r = self.recorder
        r.correspondence[:] = [c for c in r.correspondence if c.step != step] + [
            self._correspondence(step, share, number, pixel)
        ]
        r.patches_seen[:] = [p for p in r.patches_seen if p.step != step] + [
            self._patch(step, patch, share, number, pixel) for patch in r.patches
        ]

    def _key_places(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of every key, in the keys' order: its reference's number (from 1) and its token in it (-1: none)."""
        numbers, pixels = [], []
        for concept in self.run.placement.concepts:
            for path in (self.run.paths[index] for index in concept.members):
                places = path.places(self._block).cpu()
                pixels.append(places)
                numbers.append(torch.full_like(places, path.index + 1))
        return torch.cat(numbers), torch.cat(pixels)

    def _grids(self) -> dict[int, tuple[int, int]]:
        return {path.index + 1: path.grid(self._block) for path in self.run.paths}

    def _correspondence(
        self, step: int, share: torch.Tensor, number: torch.Tensor, pixel: torch.Tensor
    ) -> Correspondence:
        grid = self._grid
        best = share.argmax(dim=1)
        mass = share.sum(dim=1)
        grids = self._grids()
        heights = torch.tensor([grids[int(n)][0] for n in number[best]])
        widths = torch.tensor([grids[int(n)][1] for n in number[best]])
        y = (pixel[best] // widths + 0.5) / heights
        x = (pixel[best] % widths + 0.5) / widths
        looked = torch.where(mass > 0, number[best], torch.zeros_like(best))
        return Correspondence(step, grid, looked.view(grid), y.view(grid), x.view(grid), mass.view(grid))

    def _patch(
        self, step: int, patch: tuple[float, float], share: torch.Tensor, number: torch.Tensor, pixel: torch.Tensor
    ) -> PatchAttention:
        height, width = self._grid
        row = min(height - 1, int(patch[0] * height)) * width + min(width - 1, int(patch[1] * width))
        maps = []
        for n, (h, w) in self._grids().items():
            plane = torch.zeros(h * w)
            plane[pixel[number == n]] = share[row, number == n]
            maps.append(plane.view(h, w))
        return PatchAttention(step, patch, tuple(maps))
