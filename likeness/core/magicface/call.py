"""One model call of a MagicFace run: what its self-attention returns and what its cross-attention tells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING

import torch

from ..blocks import BlockId
from ..masks import Grid, token_grid
from .injection import Groups, ReferenceKeys, group_tokens, rba, rsa
from .maps import MapBuilder, cross_probabilities, prompt_columns

if TYPE_CHECKING:
    from .maps import _Maps
    from .run import MagicFaceRun

Foreign = Callable[[], torch.Tensor]
Places = Sequence[torch.Tensor | None]


def take_rows(x: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """Rows of a batch; a view when they are consecutive."""
    if rows and list(rows) == list(range(rows[0], rows[0] + len(rows))):
        return x[rows[0] : rows[0] + len(rows)]
    return x[list(rows)]


def first_per_sample(rows: Sequence[int], samples: Sequence[int]) -> tuple[int, ...]:
    """The first of ``rows`` for every picture of the batch, in the pictures' order."""
    first: dict[int, int] = {}
    for row in rows:
        first.setdefault(samples[row], row)
    return tuple(first[sample] for sample in sorted(first))


@dataclass
class MagicFaceCall:
    """Made by :meth:`MagicFaceRun.begin_call`; used in a ``with`` statement round the host's forward.

    Attributes:
        self_blocks: blocks whose self-attention goes through :meth:`self_attention`; leave all others alone.
        cross_blocks: blocks whose cross-attention is shown to :meth:`cross_attention`.
    """

    run: MagicFaceRun | None
    sigma: float
    stage: str
    conditional: tuple[bool, ...]
    samples: tuple[int, ...]
    worded: tuple[bool, ...]
    grid: Grid
    whole: bool
    keys: dict[BlockId, list[ReferenceKeys]]
    maps: _Maps | None
    builder: MapBuilder | None
    self_blocks: frozenset[BlockId] = field(init=False, default=frozenset())
    cross_blocks: frozenset[BlockId] = field(init=False, default=frozenset())

    @classmethod
    def idle(cls) -> MagicFaceCall:
        """A call that changes and sees nothing."""
        return cls(None, 0.0, "", (), (), (), (0, 0), True, {}, None, None)

    def __post_init__(self) -> None:
        rows = range(len(self.conditional))
        self._cond = tuple(i for i in rows if self.conditional[i])
        self._uncond = tuple(i for i in rows if not self.conditional[i])
        self._seen: dict[BlockId, tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]] = {}
        if self.run is None:
            return
        self._watch_cond = first_per_sample([row for row in self._cond if self.worded[row]], self.samples)
        self._watch_uncond = first_per_sample(self._uncond, self.samples) if self.run.needs_foreground else ()
        if self.builder is not None and (self._watch_cond or self._watch_uncond):
            self.cross_blocks = self.run.map_blocks
        self.self_blocks = frozenset(self.keys) | self.cross_blocks

    # -- attention -----------------------------------------------------------------------------------------------

    def self_attention(
        self,
        block: BlockId,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        heads: int,
        foreign: Foreign | None = None,
    ) -> torch.Tensor:
        """The block's self-attention, before the output projection.

        Args:
            block: which block.
            q, k, v: ``B N C``, rows as in ``conditional``.
            heads: heads merged in C.
            foreign: another patch's self-attention of all rows, computed when called; its result takes the place of
                the plain attention over the picture's own keys.

        Returns:
            ``B N C``.
        """
        if block in self.cross_blocks:
            self._watch(block, q, k)
        if block not in self.keys:
            return foreign() if foreign else self.run.attention(q, k, v, heads)
        theirs = foreign() if foreign else None
        self._record(block, q, k, heads)
        inject = take_rows(theirs, self._cond) if foreign else None
        mine = self._inject(block, *(take_rows(x, self._cond) for x in (q, k, v)), heads, inject)
        if not self._uncond:
            return mine
        out = torch.empty_like(q)
        out[list(self._cond)] = mine.to(out.dtype)
        plain = self._uncond
        others = theirs if foreign else self.run.attention(*(take_rows(x, plain) for x in (q, k, v)), heads)
        out[list(plain)] = take_rows(others, plain) if foreign else others
        return out

    def _inject(
        self,
        block: BlockId,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        heads: int,
        foreign: torch.Tensor | None,
    ) -> torch.Tensor:
        keys = self.keys[block]
        if self.stage == "rsa":
            return rsa(q, k, v, heads, keys, foreign)
        groups = self._groups(block, q)
        return rba(q, k, v, heads, keys, [groups[self.samples[row]] for row in self._cond], foreign)

    def _groups(self, block: BlockId, q: torch.Tensor) -> list[Groups]:
        """Per picture its token groups at a block, kept as long as the map is."""
        grid = token_grid(self.grid, self.run.layout.factor(block), q.shape[1])
        key = (grid, self.batch)
        if key not in self.maps.groups:
            self.maps.groups[key] = [group_tokens(row) for row in self.labels(grid).to(q.device).flatten(1)]  # B N
        return self.maps.groups[key]

    @property
    def batch(self) -> int:
        """Number of pictures."""
        return max(self.samples) + 1

    def labels(self, grid: Grid) -> torch.Tensor:
        """Where each concept is drawn, ``B h w``; see :meth:`Placement.labels`."""
        return self.run.placement.labels(self.maps.current, self.batch, grid, self.whole)

    # -- observation ---------------------------------------------------------------------------------------------

    def _watch(self, block: BlockId, q: torch.Tensor, k: torch.Tensor) -> None:
        rows = (*self._watch_cond, *self._watch_uncond)
        self._seen[block] = (take_rows(q, rows), take_rows(k, rows))

    def cross_attention(
        self, block: BlockId, q: torch.Tensor, k: torch.Tensor, heads: int, places: Places | None = None
    ) -> None:
        """Look at a block's cross-attention, after its self-attention; changes nothing.

        Args:
            block: which block.
            q: ``B N C``. k: ``B T C``, both projected.
            heads: heads merged in C.
            places: per row how its text's tokens stand for those of the prompt, see :func:`maps.prompt_columns`;
                None: every text is the prompt's.
        """
        seen = self._seen.pop(block, None)
        if block not in self.cross_blocks or seen is None:
            return
        self_q, self_k = seen
        grid = token_grid(self.grid, self.run.layout.factor(block), q.shape[1])
        count = len(self._watch_cond)
        if count:
            cross = cross_probabilities(take_rows(q, self._watch_cond), take_rows(k, self._watch_cond), heads)
            if places is not None:
                cross = prompt_columns(cross, [places[row] for row in self._watch_cond])
            self.builder.add_conditional(self_q[:count], self_k[:count], cross, heads, grid)
        if self._watch_uncond:
            cross = cross_probabilities(take_rows(q, self._watch_uncond), take_rows(k, self._watch_uncond), heads)
            self.builder.add_unconditional(self_q[count:], self_k[count:], cross, heads, grid)

    def _record(self, block: BlockId, q: torch.Tensor, k: torch.Tensor, heads: int) -> None:
        recorder = self.run.recorder
        if recorder is not None and self._watch_cond and recorder.wants(self, block):
            row = self._watch_cond[0]
            recorder.look(self, block, q[row], k[row], heads)

    # -- life ----------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """The forward ended well: what was observed counts."""
        if self.run is not None:
            self.run.commit(self)

    def __enter__(self) -> MagicFaceCall:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._seen.clear()
        if kind is None:
            self.finish()
        elif self.maps is not None:
            self.maps.builder = None
        self.keys = {}
        self.builder = None
