"""MagicFace as published code does it: every attention map materialised, every reference row computed.

The yardstick of the benchmark, never used by the pack: references run as conditional and unconditional rows beside the
picture's, in the same UNet call; RSA and RBA build the full probability matrix; the head-mean self-attention map of the
map layers is kept and multiplied with the cross-attention map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from likeness.core.blocks import UNetLayout
from likeness.hosts.diffusers.common import processor_names, unet_layout


class NaiveMagicFace:
    """Runs RSA or RBA on rows ``[uncond refs, uncond picture, cond refs, cond picture]`` of one UNet call.

    Args:
        unet: UNet2DConditionModel.
        masks: one bool mask ``h w`` a reference, at latent resolution.
        weight: added to the logits inside the mask.
        token: position of the concept's token, for the map.
    """

    def __init__(self, unet: torch.nn.Module, masks: Sequence[Tensor], weight: float = 3.0, token: int = 2) -> None:
        self.unet, self.masks, self.weight, self.token = unet, masks, weight, token
        self.layout: UNetLayout = unet_layout(unet)
        self.layers = self.layout.select("")
        self.regions: Tensor | None = None
        self.self_maps: dict = {}
        self.cross_maps: list[Tensor] = []

    def __enter__(self) -> NaiveMagicFace:
        self._saved = dict(self.unet.attn_processors)
        names = processor_names(self.unet)
        self.unet.set_attn_processor({name: _Naive(self, *names[name]) for name in self._saved})
        return self

    def __exit__(self, *_: object) -> None:
        self.unet.set_attn_processor(self._saved)

    def end_step(self, grid: tuple[int, int]) -> None:
        """Turn the step's maps into regions: a token's map averaged over layers, above its mean."""
        maps = [torch.nn.functional.interpolate(m[None, None], grid, mode="bilinear")[0, 0] for m in self.cross_maps]
        mean = torch.stack(maps).mean(0)
        self.regions = mean > mean.mean()
        self.self_maps.clear()
        self.cross_maps.clear()


class _Naive:
    """Attention with materialised probabilities."""

    def __init__(self, run: NaiveMagicFace, block: object, cross: bool) -> None:
        self.run, self.block, self.cross = run, block, cross

    def __call__(
        self, attn: torch.nn.Module, x: Tensor, encoder_hidden_states: Tensor | None = None, *_: object, **__: object
    ) -> Tensor:
        source = x if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (_heads(t, attn.heads) for t in (attn.to_q(x), attn.to_k(source), attn.to_v(source)))
        probabilities = (q @ k.transpose(-1, -2) * attn.scale).softmax(-1)  # B H N M
        out = probabilities @ v
        self._observe(probabilities)
        if not self.cross and self.block in self.run.layers:
            out[-1] = self._referenced(q[-1], k, v, attn.scale)
        return attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))

    def _observe(self, probabilities: Tensor) -> None:
        if self.run.layout.factor(self.block) not in (2, 4, 8):
            return
        mean = probabilities[-1].mean(0)  # N M
        if not self.cross:
            self.run.self_maps[self.block] = mean
            return
        completed = self.run.self_maps[self.block] @ mean
        side = round(completed.shape[0] ** 0.5)
        self.run.cross_maps.append(completed[:, self.run.token].reshape(side, -1))

    def _referenced(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        count, half = len(self.run.masks), k.shape[0] // 2
        rows = slice(half, half + count)  # the conditional reference rows
        side = round(q.shape[1] ** 0.5)
        masks = [_resize(m, side) for m in self.run.masks]
        bias = torch.cat([torch.where(m, self.run.weight, -torch.inf) for m in masks])  # R*N
        keys = torch.cat([k[-1], *k[rows]], dim=1)  # H (1+R)N D
        values = torch.cat([v[-1], *v[rows]], dim=1)
        logits = q @ keys.transpose(-1, -2) * scale
        logits[..., q.shape[1] :] += bias
        out = logits.softmax(-1) @ values
        if self.run.regions is None:
            return out
        region = _resize(self.run.regions, side)
        plain = (q @ k[-1].transpose(-1, -2) * scale).softmax(-1) @ v[-1]
        return torch.where(region[:, None], out, plain)


def _resize(mask: Tensor, side: int) -> Tensor:
    """A mask ``h w`` at ``side x side``, flat and bool."""
    return torch.nn.functional.interpolate(mask[None, None].float(), (side, side)).flatten() > 0.5


def _heads(x: Tensor, heads: int) -> Tensor:
    """``B N C`` to ``B H N D``."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)
