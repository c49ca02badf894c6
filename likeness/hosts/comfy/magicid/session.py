"""MGMICA inside ComfyUI's UNet: identities added to each cross-attention of a run, by wrappers on a cloned model.

For each model call the options are copied and our replace is put before whatever other packs have in that block; it
calls theirs (or the host's attention) for the text and adds the identities.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from comfy.ldm.modules import attention as host_attention

from ....core.blocks import BlockId
from ....core.magicid.run import LayerKeys, MagicIdCall, MagicIdRun, PlacedIdentity
from ..unet import Replace, UNetBlocks, with_replaces
from ..wrappers import ModelCall, RunStart, Session, System

log = logging.getLogger("likeness")

NODE = "MagicID Apply"
UNTOLD = "MagicID leaves a call alone: another patch has made %d rows of it."
UNPLACED = (
    "MagicID: it cannot be told which part of the picture another patch samples; identities with a region stay out."
)
UNFIT = "MagicID is off in %s: another patch (token merging, tiling) has changed the layer's tokens."


@dataclass(eq=False)
class MagicIdSession(Session):
    """One sampling run."""

    run: MagicIdRun
    blocks: UNetBlocks
    warned: set[str] = field(default_factory=set)

    def call(self, call: ModelCall) -> torch.Tensor:
        """One model call with the identities in it."""
        rows = call.rows()
        if rows is None:
            self._warn(UNTOLD, call.x.shape[0])
            return call.forward()
        frames = [row.frame for row in rows]
        if None in frames:
            self._warn(UNPLACED)
        mine = self.run.begin(
            float(call.sigma.flatten()[0]), [row.conditional for row in rows], tuple(call.x.shape[-2:]), frames
        )
        if mine is None:
            return call.forward()
        makers = {self.blocks.address[block]: adding(mine, block) for block in self.run.layers}
        out = call.forward(options=with_replaces(call.options, {"attn2": makers}))
        if self.run.unfit:
            self._warn(UNFIT, ", ".join(sorted(self.run.unfit)))
        return out

    def close(self) -> None:
        """Drop what was made for the run."""
        self.run.close()

    def _warn(self, message: str, *values: Any) -> None:
        if message not in self.warned:
            self.warned.add(message)
            log.warning(message, *values)


def adding(call: MagicIdCall, block: BlockId) -> Callable[[Replace | None], Replace]:
    """A maker (see :func:`..unet.with_replaces`) of a replace that adds the identities to what is found there."""

    def make(found: Replace | None) -> Replace:
        def replace(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra: Mapping, *args: Any, **kwargs: Any):
            heads = extra["n_heads"]
            if found is not None:
                text = found(q, k, v, extra, *args, **kwargs)
            else:
                text = host_attention.optimized_attention(
                    q, k, v, heads, attn_precision=extra.get("attn_precision"), transformer_options=extra
                )
            return call.add(block, q, text, heads)

        return replace

    return make


@dataclass(frozen=True, eq=False)
class MagicIdPatch(System):
    """What the wrappers know; it outlives runs unchanged.

    Attributes:
        layers: the identities' keys in the UNet. people: the identities. blocks: the model's structure.
        overlap, scale: see :class:`MagicIdRun`.
    """

    key = "likeness_magicid"
    node = NODE

    layers: Mapping[BlockId, LayerKeys]
    people: tuple[PlacedIdentity, ...]
    blocks: UNetBlocks
    overlap: str = "add"
    scale: float = 1.0

    def open(self, start: RunStart) -> MagicIdSession | None:
        """The run's session; None where no identity would change anything."""
        sigmas = start.sigmas.tolist()
        if len(sigmas) < 2 or self.scale == 0 or not any(one.scale for one in self.people):
            return None
        layout = self.blocks.layout
        return MagicIdSession(
            MagicIdRun(self.layers, self.people, layout, sigmas, self.overlap, self.scale), self.blocks
        )
