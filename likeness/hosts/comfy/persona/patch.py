"""The cross-attention patch through which a persona speaks: keys from one context, values from another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ....core.persona.text import Contexts


def with_contexts(options: Mapping[str, Any], contexts: Contexts) -> dict[str, Any]:
    """A copy of the options in which our cross-attention patch comes before those that are there."""
    patches = dict(options.get("patches", {}))
    patches["attn2_patch"] = [split_patch(contexts), *patches.get("attn2_patch", [])]
    return {**options, "patches": patches}


def split_patch(contexts: Contexts) -> Callable:
    """The host's ``attn2_patch``: keys from one context, values from the other."""
    ready: dict[torch.dtype, Contexts] = {}

    def patch(n: torch.Tensor, context: torch.Tensor, value: torch.Tensor, extra: Mapping[str, Any]) -> tuple:
        if context.shape[0] != contexts.key.shape[0]:
            return n, context, value  # another patch has changed the rows: they are not ours any more
        if context.dtype not in ready:
            ready[context.dtype] = Contexts(*(c.to(context.device, context.dtype, non_blocking=True) for c in contexts))
        return n, *ready[context.dtype]

    return patch
