"""One model call of a MagicFace run: what its self-attention returns and what its cross-attention tells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType

import torch

from ..blocks import BlockId
from ..masks import FULL_FRAME, Grid, token_grid
from .injection import Groups, ReferenceKeys, group_tokens, rba, rsa
from .maps import SemanticMap, cross_probabilities, prompt_columns
from .record import RunRecorder, finest_shown, reference_share
from .run_maps import RunMaps, View
from .setting import RBA, RSA, RunSetting

OtherPatch = Callable[[], torch.Tensor]
TokenMaps = Sequence[torch.Tensor | None]


def take_rows(x: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """Rows of a batch; a view when they are consecutive."""
    if rows and list(rows) == list(range(rows[0], rows[0] + len(rows))):
        return x[rows[0] : rows[0] + len(rows)]
    return x[list(rows)]


def first_per_view(rows: Sequence[int], views: Sequence[View], wanted: set[View]) -> tuple[int, ...]:
    """The first of ``rows`` for every wanted view, in the views' order of appearance."""
    first: dict[View, int] = {}
    for row in rows:
        if views[row] in wanted:
            first.setdefault(views[row], row)
    return tuple(first.values())


@dataclass
class MagicFaceCall:
    """Made by :meth:`MagicFaceRun.begin_call`; used in a ``with`` statement round the host's forward.

    Attributes:
        setting: of the run; None in a call that changes and sees nothing.
        conditional, is_prompt_row, grid: see :meth:`MagicFaceRun.begin_call`. views: per row.
        keys: of every block with reference attention, per concept. maps: of the run.
        observes: whether attention is collected for a map. keeps: whether the method itself needs that map.
        self_blocks: blocks whose self-attention goes through :meth:`self_attention`; leave all others alone.
        cross_blocks: blocks whose cross-attention is shown to :meth:`cross_attention`.
    """

    setting: RunSetting | None
    sigma: float
    stage: str
    conditional: tuple[bool, ...]
    views: tuple[View, ...]
    is_prompt_row: tuple[bool, ...]
    grid: Grid
    keys: dict[BlockId, list[ReferenceKeys]]
    maps: RunMaps
    observes: bool = False
    keeps: bool = False
    recorder: RunRecorder | None = None
    self_blocks: frozenset[BlockId] = field(init=False, default=frozenset())
    cross_blocks: frozenset[BlockId] = field(init=False, default=frozenset())

    @classmethod
    def idle(cls) -> MagicFaceCall:
        """A call that changes and sees nothing."""
        return cls(None, 0.0, "", (), (), (), (0, 0), {}, RunMaps())

    def __post_init__(self) -> None:
        rows = range(len(self.conditional))
        self._cond = tuple(i for i in rows if self.conditional[i])
        self._uncond = tuple(i for i in rows if not self.conditional[i])
        self._seen: dict[BlockId, tuple[torch.Tensor, torch.Tensor]] = {}
        if self.setting is None:
            return
        self._watch_cond = self._watch_uncond = ()
        if self.observes:
            prompts = [row for row in self._cond if self.is_prompt_row[row]]
            self._watch_cond = self._first_unseen(prompts, True)
            self._watch_uncond = self._first_unseen(self._uncond, False) if self.setting.needs_foreground else ()
        self._builder = self.setting.new_builder(self.grid)
        if self._watch_cond or self._watch_uncond:
            self.cross_blocks = self.setting.map_blocks
        self.self_blocks = frozenset(self.keys) | self.cross_blocks
        self._shown = self._shown_blocks()

    def _first_unseen(self, rows: Sequence[int], conditional: bool) -> tuple[int, ...]:
        return first_per_view(rows, self.views, self.maps.unseen({self.views[row] for row in rows}, conditional))

    def _shown_blocks(self) -> frozenset[BlockId]:
        """Blocks whose attention to the references the recorder looks at in this call."""
        wanted = self.recorder is not None and self.recorder.wants(self.step)
        self._shown_row = next((row for row in self._cond if self.views[row] == (0, FULL_FRAME)), None)
        if not wanted or not self.keys or self._shown_row is None:
            return frozenset()
        factor = self.setting.layout.factor
        shown = finest_shown({factor(block) for block in self.keys}, self.grid)
        return frozenset(block for block in self.keys if factor(block) == shown)

    @property
    def step(self) -> int:
        """Index of the call's step in the schedule."""
        return self.setting.schedule.step(self.sigma)

    # -- attention -----------------------------------------------------------------------------------------------

    def self_attention(
        self,
        block: BlockId,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        heads: int,
        other_patch: OtherPatch | None = None,
    ) -> torch.Tensor:
        """The block's self-attention, before the output projection.

        Args:
            block: which block.
            q, k, v: ``B N C``, rows as in ``conditional``.
            heads: heads merged in C.
            other_patch: another patch's self-attention of all rows, computed when called; its result takes the place
                of the plain attention over the picture's own keys.

        Returns:
            ``B N C``.
        """
        if block in self.cross_blocks:
            self._watch(block, q, k)
        if block not in self.keys:
            return other_patch() if other_patch else self.setting.attention(q, k, v, heads)
        theirs = other_patch() if other_patch else None
        self._record(block, q, k, heads)
        inject = take_rows(theirs, self._cond) if other_patch else None
        mine = self._inject(block, *(take_rows(x, self._cond) for x in (q, k, v)), heads, inject)
        if not self._uncond:
            return mine
        out = torch.empty_like(q)
        out[list(self._cond)] = mine.to(out.dtype)
        plain = self._uncond
        others = theirs if other_patch else self.setting.attention(*(take_rows(x, plain) for x in (q, k, v)), heads)
        out[list(plain)] = take_rows(others, plain) if other_patch else others
        return out

    def _inject(
        self,
        block: BlockId,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        heads: int,
        other_patch: torch.Tensor | None,
    ) -> torch.Tensor:
        keys = self.keys[block]
        if self.stage == RSA:
            return rsa(q, k, v, heads, keys, other_patch)
        return rba(q, k, v, heads, keys, self._groups(block, q), other_patch)

    def _groups(self, block: BlockId, q: torch.Tensor) -> list[Groups]:
        """Per conditional row its token groups at a block."""
        grid = token_grid(self.grid, self.setting.layout.factor(block), q.shape[1])
        return [self._view_groups(self.views[row], grid, q.device) for row in self._cond]

    def _view_groups(self, view: View, grid: Grid, device: torch.device) -> Groups:
        """Token groups of one view, kept as long as the maps are."""
        if (view, grid) not in self.maps.derived:
            labels = self.labels(self.maps.current([view]), view, grid)
            self.maps.derived[view, grid] = group_tokens(labels.to(device).flatten())
        return self.maps.derived[view, grid]

    def labels(self, semantic: SemanticMap | None, view: View, grid: Grid) -> torch.Tensor:
        """Where each concept is drawn in a view, ``h w``; a view of unknown part is all background."""
        frame = view[1]
        if frame is None:
            return torch.zeros(grid, dtype=torch.int64)
        return self.setting.placement.labels(semantic, grid, frame)[0]

    # -- observation ---------------------------------------------------------------------------------------------

    def _watch(self, block: BlockId, q: torch.Tensor, k: torch.Tensor) -> None:
        rows = (*self._watch_cond, *self._watch_uncond)
        self._seen[block] = (take_rows(q, rows), take_rows(k, rows))

    def cross_attention(
        self, block: BlockId, q: torch.Tensor, k: torch.Tensor, heads: int, token_maps: TokenMaps | None = None
    ) -> None:
        """Look at a block's cross-attention, after its self-attention; changes nothing.

        Args:
            block: which block.
            q: ``B N C``. k: ``B T C``, both projected.
            heads: heads merged in C.
            token_maps: per row how its text's tokens stand for those of the prompt, see :func:`maps.prompt_columns`;
                None: every text is the prompt's.
        """
        seen = self._seen.pop(block, None)
        if block not in self.cross_blocks or seen is None:
            return
        self_q, self_k = seen
        grid = token_grid(self.grid, self.setting.layout.factor(block), q.shape[1])
        count = len(self._watch_cond)
        if count:
            cross = cross_probabilities(take_rows(q, self._watch_cond), take_rows(k, self._watch_cond), heads)
            if token_maps is not None:
                cross = prompt_columns(cross, [token_maps[row] for row in self._watch_cond])
            self._builder.add_conditional(self_q[:count], self_k[:count], cross, heads, grid)
        if self._watch_uncond:
            cross = cross_probabilities(take_rows(q, self._watch_uncond), take_rows(k, self._watch_uncond), heads)
            self._builder.add_unconditional(self_q[count:], self_k[count:], cross, heads, grid)

    def _record(self, block: BlockId, q: torch.Tensor, k: torch.Tensor, heads: int) -> None:
        if block not in self._shown:
            return
        row, keys = self._shown_row, self.keys[block]
        grid = token_grid(self.grid, self.setting.layout.factor(block), q.shape[1])
        allowed = None
        if self.stage == RBA:
            view = self.views[row]
            label = self.labels(self.maps.current([view]), view, grid).flatten().to(q.device)  # N
            concept = torch.cat([torch.full_like(item.bias, i) for i, item in enumerate(keys, 1)])  # M
            allowed = label[:, None] == concept[None, :]
        share = reference_share(q[row], k[row], heads, ReferenceKeys.join(keys), allowed)
        self.recorder.look(share, grid, self.setting.key_tokens(block))

    # -- life ----------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """The forward ended well: what was observed counts."""
        if self.setting is None:
            return
        cond, uncond = ([self.views[row] for row in rows] for rows in (self._watch_cond, self._watch_uncond))
        self.maps.collect(self._builder, cond, uncond, self.keeps)
        if self.recorder is not None:
            self.recorder.write(self.step, self.sigma, self.stage, self._recorded_labels())

    def _recorded_labels(self) -> torch.Tensor | None:
        """Where the concepts are in all whole pictures seen at this noise level, ``B h w``."""
        views = self.maps.present_pictures()
        if not views or not self.recorder.wants_map(self.step):
            return None
        maps = [self.maps.present([view]) for view in views]
        return torch.stack([self.labels(m, v, m.winner.shape[-2:]) for m, v in zip(maps, views, strict=True)])

    def __enter__(self) -> MagicFaceCall:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._seen.clear()
        if kind is None:
            self.finish()
        self.keys = {}
