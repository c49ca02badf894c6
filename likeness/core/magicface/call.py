"""One model call of a MagicFace run: what its self-attention returns and what its cross-attention tells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType

import torch

from ..attention import propagate
from ..blocks import BlockId
from ..masks import FULL_FRAME, Grid, token_grid
from .constants import Rows
from .injection import BlockKeys, Groups, rba, rsa
from .maps import MapBuilder
from .record import RunRecorder, finest_shown, reference_share
from .regions import Regions
from .run_maps import RunMaps, View
from .setting import RBA, RSA, RunSetting

OtherPatch = Callable[[], torch.Tensor]
TokenMaps = Sequence[torch.Tensor | None]


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
        keys: of every block with reference attention. maps: of the run. regions: where the concepts are.
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
    keys: Mapping[BlockId, BlockKeys]
    maps: RunMaps
    regions: Regions | None = None
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
        self._watched: tuple[int, ...] = ()
        if self.setting is None:
            return
        constants = self.setting.constants
        self._mine, self._others = Rows(self._cond, constants), Rows(self._uncond, constants)
        if self.observes:
            self._watched = tuple(sorted(self._to_watch()))
        self._looked_at = Rows(self._watched, constants)
        if self._watched:
            self.cross_blocks = self.setting.map_blocks
            self._builder: MapBuilder = self.setting.new_builder(
                self.grid, [self.conditional[row] for row in self._watched]
            )
        self.self_blocks = frozenset(self.keys) | self.cross_blocks
        self._shown = self._shown_blocks()

    def _to_watch(self) -> tuple[int, ...]:
        prompts = [row for row in self._cond if self.is_prompt_row[row]]
        background = self._first_unseen(self._uncond, False) if self.setting.needs_foreground else ()
        return (*self._first_unseen(prompts, True), *background)

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
            self._seen[block] = self._looked_at.take(q), self._looked_at.take(k)
        if block not in self.keys:
            return other_patch() if other_patch else self.setting.attention(q, k, v, heads)
        theirs = other_patch() if other_patch else None
        self._record(block, q, k, heads)
        inject = self._mine.take(theirs) if other_patch else None
        mine = self._inject(block, *(self._mine.take(x) for x in (q, k, v)), heads, inject)
        if not self._uncond:
            return mine
        if other_patch:
            others = self._others.take(theirs).to(mine.dtype)
        else:
            others = self.setting.attention(*(self._others.take(x) for x in (q, k, v)), heads)
        return self._mine.put(mine, others)

    def _inject(
        self,
        block: BlockId,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        heads: int,
        other_patch: torch.Tensor | None,
    ) -> torch.Tensor:
        if self.stage == RSA:
            return rsa(q, k, v, heads, self.keys[block], other_patch)
        return rba(q, k, v, heads, self.keys[block], self._groups(block, q.shape[1]), other_patch)

    def _groups(self, block: BlockId, tokens: int) -> Groups:
        """Which tokens of the conditional rows look at which concept at a block."""
        grid = token_grid(self.grid, self.setting.layout.factor(block), tokens)
        return self.regions.groups([self.views[row] for row in self._cond], [grid])[grid]

    # -- observation ---------------------------------------------------------------------------------------------

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
        grid = token_grid(self.grid, self.setting.layout.factor(block), q.shape[1])
        known = [None if token_maps is None else token_maps[row] for row in self._watched]
        columns = self._builder.columns(q, k.shape[1], known)  # R T J
        cross = propagate(self._looked_at.take(q), self._looked_at.take(k), columns, heads, q.dtype)  # R N J, Eq. 4
        self._builder.add(*seen, cross, heads, grid)

    def _record(self, block: BlockId, q: torch.Tensor, k: torch.Tensor, heads: int) -> None:
        if block not in self._shown:
            return
        row, keys = self._shown_row, self.keys[block]
        tokens = self.setting.key_tokens(block)
        factor = self.setting.layout.factor(block)
        grid = token_grid(self.grid, factor, q.shape[1])
        allowed = None
        if self.stage == RBA:
            label = self.regions.labels([self.views[row]], grid).flatten()  # N
            concept = self.setting.constants.get(("concepts of keys", factor), lambda: tokens.concept, label.device)
            allowed = label[:, None] == concept[None, :]
        share = reference_share(q[row], k[row], heads, keys.in_order, allowed)
        self.recorder.look(share, grid, tokens)

    # -- life ----------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """The forward ended well: what was observed counts."""
        if self.setting is None:
            return
        if self._watched:
            kinds = [(self.views[row], self.conditional[row]) for row in self._watched]
            cond, uncond = ([view for view, mine in kinds if mine == wanted] for wanted in (True, False))
            self.maps.collect(self._builder, cond, uncond, self.keeps)
        if self.recorder is not None:
            self.recorder.write(self.step, self.sigma, self.stage, self._recorded_labels())

    def _recorded_labels(self) -> torch.Tensor | None:
        """Where the concepts are in all whole pictures seen at this noise level, ``B h w``."""
        views = self.maps.present_pictures()
        if not views or not self.recorder.wants_map(self.step):
            return None
        maps = self.maps.present(views)
        return self.setting.placement.labels(maps, maps.winner.shape[-2:])

    def __enter__(self) -> MagicFaceCall:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._seen.clear()
        if kind is None:
            self.finish()
        self.keys = {}
