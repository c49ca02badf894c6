"""Identities in a ControlNet's cross-attention: MagicID's Identity ControlNet (Eq. 1, Alg. 1) and InstantID's.

It stays the host's own kind of CONTROL_NET: the host loads, offloads and chains it. Only its network is called with
options, which its blocks take and the host leaves empty; a replace in them adds the identities.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from comfy.cldm.cldm import ControlNet as ControlNetwork
from comfy.controlnet import ControlNet
from comfy.ldm.modules.diffusionmodules.util import timestep_embedding
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....core.blocks import BlockId
from ....core.magicid.projections import IdentityAttention
from ....core.magicid.run import LayerKeys, MagicIdCall, MagicIdRun, PlacedIdentity, project
from ..rows import rows_of
from ..unet import Replace, UNetBlocks, attention_of, read_control, with_replaces
from .session import NODE, UNTOLD, adding

log = logging.getLogger("likeness")

#: Among the extra arguments of a ControlNet's call: the options for its blocks.
OPTIONS = "likeness_options"


@dataclass(frozen=True, eq=False)
class Placed:
    """What a ControlNet is to know of the identities; it outlives runs unchanged.

    Attributes:
        layers: their keys in the ControlNet's blocks. people: the identities. blocks: its structure.
        overlap, scale: see :class:`MagicIdRun`.
        alone: whether its cross-attention sees identities only (InstantID), or the text beside them (Eq. 1).
    """

    layers: Mapping[BlockId, LayerKeys]
    people: tuple[PlacedIdentity, ...]
    blocks: UNetBlocks
    overlap: str = "add"
    scale: float = 1.0
    alone: bool = False


def with_text(control: ControlNet, attention: IdentityAttention, people: tuple[PlacedIdentity, ...], **how: Any) -> Any:
    """An Identity ControlNet: text, and identities by layers of their own (Eq. 1)."""
    blocks = read_control(control.control_model, f"{NODE}: control_net")
    with torch.no_grad():
        placed = Placed(project(attention, people), people, blocks, **how)
    return IdentityControlNet.around(control, placed)


def identities_alone(control: ControlNet, people: tuple[PlacedIdentity, ...], overlap: str) -> Any:
    """InstantID's ControlNet: its cross-attention reads identities instead of text, each in its own region.

    Strengths do not weigh the identities in it, as in InstantID; those of strength 0 stay out.

    Raises:
        LikenessError: it is of another kind.
    """
    network = getattr(control, "control_model", None)
    blocks = read_control(control if network is None else network, f"{NODE}: control_net")
    people = tuple(replace(one, scale=float(one.scale != 0)) for one in people)
    layers = project(_own_layers(network, blocks), people)
    return IdentityControlNet.around(control, Placed(layers, people, blocks, overlap, alone=True))


@torch.no_grad()
def _own_layers(network: ControlNetwork, blocks: UNetBlocks) -> IdentityAttention:
    """The ControlNet's own cross-attention weights, as they are, for identity tokens."""
    found = {block: attention_of(network, blocks.address[block]) for block in blocks.layout.blocks}
    widths = {block: attention.to_k.weight.shape[0] for block, attention in found.items()}
    layers = IdentityAttention(widths, blocks.context_width)
    for block, attention in found.items():
        layer = layers.layer(block)
        layer.to_k.weight.copy_(attention.to_k.weight)
        layer.to_v.weight.copy_(attention.to_v.weight)
    return layers


class IdentityControlNet(ControlNet):
    """The host's ControlNet with identities in its cross-attention. Made by :meth:`around`."""

    placed: Placed
    _run: MagicIdRun | None = None
    _warned: bool = False

    @classmethod
    def around(cls, control: ControlNet, placed: Placed) -> IdentityControlNet:
        """The same network, hint, strength and range; the given ControlNet is left as it is."""
        made = cls(
            None,
            global_average_pooling=control.global_average_pooling,
            load_device=control.load_device,
            manual_cast_dtype=control.manual_cast_dtype,
        )
        network = control.control_model
        made.control_model = network if isinstance(network, WithOptions) else WithOptions(network)
        made.control_model_wrapped = control.control_model_wrapped
        made.placed = placed
        control.copy_to(made)
        return made

    def copy(self) -> IdentityControlNet:
        """As the host asks for it, once for each conditioning."""
        return self.around(self, self.placed)

    def deepclone_multigpu(self, load_device: Any, autoregister: bool = False) -> IdentityControlNet:
        """A copy whose network is another one, for another device."""
        clone = self.copy()
        network = copy.deepcopy(self.control_model.network)
        clone.control_model = WithOptions(network)
        offload = self.control_model_wrapped.offload_device
        clone.control_model_wrapped = ModelPatcher(network, load_device=load_device, offload_device=offload)
        if autoregister:
            self.multigpu_clones[load_device] = clone
        return clone

    def get_control(self, x_noisy: Tensor, t: Tensor, cond: Mapping, batched_number: int, transformer_options: dict):
        """The host's call, with options for the network's blocks."""
        self.extra_args[OPTIONS] = self._options(x_noisy, t, cond, transformer_options)
        try:
            return super().get_control(x_noisy, t, cond, batched_number, transformer_options)
        finally:
            self.extra_args.pop(OPTIONS, None)

    def cleanup(self) -> None:
        """The run ended: what was made for it goes."""
        if self._run is not None:
            self._run.close()
        self._run, self._warned = None, False
        super().cleanup()

    def _options(self, x: Tensor, t: Tensor, cond: Mapping, options: Mapping[str, Any]) -> dict[str, Any]:
        call, placed = self._begin(x, t, cond, options), self.placed
        make = alone if placed.alone else adding
        if call is None and not placed.alone:
            return {}
        return with_replaces({}, {"attn2": {placed.blocks.address[b]: make(call, b) for b in placed.layers}})

    def _begin(self, x: Tensor, t: Tensor, cond: Mapping, options: Mapping[str, Any]) -> MagicIdCall | None:
        """The identities' part in this call; None where they have none, or where its rows cannot be told."""
        rows = rows_of(options, x, cond.get("c_crossattn"))
        if rows is None:
            if not self._warned:
                log.warning(UNTOLD, x.shape[0])
            self._warned = True
            return None
        if self._run is None:
            p = self.placed
            sigmas = options["sample_sigmas"].tolist()
            self._run = MagicIdRun(p.layers, p.people, p.blocks.layout, sigmas, p.overlap, p.scale)
        told = [row.conditional for row in rows], tuple(x.shape[-2:]), [row.frame for row in rows]
        return self._run.begin(float(t.flatten()[0]), *told)


def alone(call: MagicIdCall | None, block: BlockId) -> Callable[[Replace | None], Replace]:
    """A maker of a replace that knows identities only; where nobody is, the attention is zero."""

    def make(_found: Replace | None) -> Replace:
        def replace_attention(q: Tensor, k: Tensor, v: Tensor, extra: Mapping, *_args: Any, **_more: Any) -> Tensor:
            nothing = torch.zeros_like(q)
            return nothing if call is None else call.add(block, q, nothing, extra["n_heads"])

        return replace_attention

    return make


@dataclass(frozen=True, eq=False)
class WithOptions:
    """A ControlNet's network whose blocks are given options; without them it is called as it is."""

    network: ControlNetwork

    @property
    def dtype(self) -> torch.dtype:
        """Of the network, for the host."""
        return self.network.dtype

    def __call__(
        self, x: Tensor, hint: Tensor, timesteps: Tensor, context: Tensor, y: Tensor | None = None, **more: Any
    ) -> dict[str, list[Tensor]]:
        """``x`` ``B 4 h w``, ``hint`` ``B 3 8h 8w`` -> residuals of the decoder's inputs and of the middle block."""
        options = more.pop(OPTIONS, None)
        if not options:
            return self.network(x=x, hint=hint, timesteps=timesteps, context=context, y=y, **more)
        net = self.network
        emb = net.time_embed(timestep_embedding(timesteps, net.model_channels, repeat_only=False).to(x.dtype))
        if net.num_classes is not None:
            emb = emb + net.label_emb(y)
        residuals = []
        for index, (block, out) in enumerate(zip(net.input_blocks, net.zero_convs, strict=True)):
            x = block(x, emb, context, {**options, "block": ("input", index)})
            if index == 0:
                x = x + net.input_hint_block(hint, emb, context)
            residuals.append(out(x, emb, context))
        x = net.middle_block(x, emb, context, {**options, "block": ("middle", 0)})
        return {"middle": [net.middle_block_out(x, emb, context)], "output": residuals}
