"""One model call of a MagicFace run: what its self-attention returns and what its cross-attention tells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType

import torch

from ..blocks import BlockId
from ..masks import Grid, token_grid
from .injection import Groups, ReferenceKeys, group_tokens, rba, rsa
from .maps import AreaMaps, MapBuilder, cross_probabilities, prompt_columns
from .record import RunRecorder, finest_shown, reference_share
from .setting import RBA, RSA, RunSetting

OtherPatch = Callable[[], torch.Tensor]
TokenMaps = Sequence[torch.Tensor | None]


def take_rows(x: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """Rows of a batch; a view when they are consecutive."""
    if rows and list(rows) == list(range(rows[0], rows[0] + len(rows))):
        return x[rows[0] : rows[0] + len(rows)]
    return x[list(rows)]


def first_per_image(rows: Sequence[int], image_index: Sequence[int]) -> tuple[int, ...]:
    """The first of ``rows`` for every picture of the batch, in the pictures' order."""
    first: dict[int, int] = {}
    for row in rows:
        first.setdefault(image_index[row], row)
    return tuple(first[image] for image in sorted(first))


@dataclass
class MagicFaceCall:
    """Made by :meth:`MagicFaceRun.begin_call`; used in a ``with`` statement round the host's forward.

    Attributes:
        setting: of the run; None in a call that changes and sees nothing.
        conditional, image_index, is_prompt_row, grid: see :meth:`MagicFaceRun.begin_call`.
        full_frame: whether the call covers the whole picture.
        keys: of every block with reference attention, per concept. maps: of the area that the call covers.
        builder: where observed attention goes; None observes nothing.
        self_blocks: blocks whose self-attention goes through :meth:`self_attention`; leave all others alone.
        cross_blocks: blocks whose cross-attention is shown to :meth:`cross_attention`.
    """

    setting: RunSetting | None
    sigma: float
    stage: str
    conditional: tuple[bool, ...]
    image_index: tuple[int, ...]
    is_prompt_row: tuple[bool, ...]
    grid: Grid
    full_frame: bool
    keys: dict[BlockId, list[ReferenceKeys]]
    maps: AreaMaps | None
    builder: MapBuilder | None
    recorder: RunRecorder | None = None
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
        self._seen: dict[BlockId, tuple[torch.Tensor, torch.Tensor]] = {}
        if self.setting is None:
            return
        self._watch_cond = first_per_image([row for row in self._cond if self.is_prompt_row[row]], self.image_index)
        self._watch_uncond = first_per_image(self._uncond, self.image_index) if self.setting.needs_foreground else ()
        if self.builder is not None and (self._watch_cond or self._watch_uncond):
            self.cross_blocks = self.setting.map_blocks
        self.self_blocks = frozenset(self.keys) | self.cross_blocks
        self._shown = self._shown_blocks()

    def _shown_blocks(self) -> frozenset[BlockId]:
        """Blocks whose attention to the references the recorder looks at in this call."""
        wanted = self.recorder is not None and self.recorder.wants(self.step)
        if not wanted or not self.keys or not self._watch_cond or self.image_index[self._watch_cond[0]] != 0:
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
        groups = self._groups(block, q)
        return rba(q, k, v, heads, keys, [groups[self.image_index[row]] for row in self._cond], other_patch)

    def _groups(self, block: BlockId, q: torch.Tensor) -> list[Groups]:
        """Per picture its token groups at a block, kept as long as the map is."""
        grid = token_grid(self.grid, self.setting.layout.factor(block), q.shape[1])
        key = (grid, self.batch)
        if key not in self.maps.groups:
            self.maps.groups[key] = [group_tokens(row) for row in self.labels(grid).to(q.device).flatten(1)]  # B N
        return self.maps.groups[key]

    @property
    def batch(self) -> int:
        """Number of pictures."""
        return max(self.image_index) + 1

    def labels(self, grid: Grid) -> torch.Tensor:
        """Where each concept is drawn, ``B h w``; see :meth:`Placement.labels`."""
        return self.setting.placement.labels(self.maps.current, self.batch, grid, self.full_frame)

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
            self.builder.add_conditional(self_q[:count], self_k[:count], cross, heads, grid)
        if self._watch_uncond:
            cross = cross_probabilities(take_rows(q, self._watch_uncond), take_rows(k, self._watch_uncond), heads)
            self.builder.add_unconditional(self_q[count:], self_k[count:], cross, heads, grid)

    def _record(self, block: BlockId, q: torch.Tensor, k: torch.Tensor, heads: int) -> None:
        if block not in self._shown:
            return
        row, keys = self._watch_cond[0], self.keys[block]
        grid = token_grid(self.grid, self.setting.layout.factor(block), q.shape[1])
        allowed = None
        if self.stage == RBA:
            label = self.labels(grid)[0].flatten().to(q.device)  # N
            concept = torch.cat([torch.full_like(item.bias, i) for i, item in enumerate(keys, 1)])  # M
            allowed = label[:, None] == concept[None, :]
        share = reference_share(q[row], k[row], heads, ReferenceKeys.join(keys), allowed)
        self.recorder.look(share, grid, self.setting.key_tokens(block))

    # -- life ----------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """The forward ended well: what was observed counts."""
        if self.recorder is None:
            return
        labels, semantic = None, None
        if self.builder is not None and self.recorder.wants_map(self.step):
            semantic = self.builder.finish()
        if semantic is not None:
            grid = tuple(semantic.winner.shape[-2:])
            labels = self.setting.placement.labels(semantic, self.batch, grid, self.full_frame)
        self.recorder.write(self.step, self.sigma, self.stage, labels)

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
