"""Private copies of the host's models for training, and what must hold before one is made."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import comfy.model_management as management
import torch
from torch import nn

from ...core.errors import LikenessError, bad_input

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def check_weights(module: nn.Module, source: str) -> None:
    """Only whole floating-point networks can be trained through.

    Raises:
        LikenessError: quantised weights, or weights that are not in memory.
    """
    kinds = {p.dtype for p in module.parameters()} - set(FLOATS)
    if kinds or any(p.device.type == "meta" for p in module.parameters()):
        came = f"weights of type {sorted(map(str, kinds))}" if kinds else "weights that are not loaded"
        raise bad_input(source, came, "fp32, fp16 or bf16 weights", "Load the checkpoint unquantised to train on it.")


def load_whole(source: str, *patchers: Any, memory: float = 0) -> None:
    """Have the host load models completely, patches such as LoRA baked in; others make room for them.

    Args:
        source: names them in errors.
        memory: bytes to keep free for what they compute.

    Raises:
        LikenessError: they do not fit the memory.
    """
    extra = {"force_full_load": True} if _takes(management.load_models_gpu, "force_full_load") else {}
    management.load_models_gpu(list(patchers), memory_required=memory, **extra)
    for patcher in patchers:
        if getattr(patcher, "lowvram_patch_counter", lambda: 0)():
            raise LikenessError(
                f"{source}: it is partly offloaded, there is not enough free memory to train. Close other "
                "programs, use a smaller batch, or start ComfyUI with --highvram."
            )


def _takes(function: Callable, name: str) -> bool:
    return name in inspect.signature(function).parameters


def static_patcher(patcher: Any, source: str) -> Any:
    """A patcher that loads all weights; the host's dynamic ones stream them."""
    if not getattr(patcher, "is_dynamic", lambda: False)():
        return patcher
    try:
        return patcher.clone(disable_dynamic=True)
    except RuntimeError as cause:
        raise bad_input(
            source, f"a model that is streamed ({cause})", "one that can be loaded whole", "Reload it."
        ) from cause


def private_copy(
    module: nn.Module, source: str, dtype: torch.dtype, device: torch.device, without: nn.Module | None = None
) -> nn.Module:
    """A copy outside inference mode, frozen, in the training type, less one part. The original is not touched.

    Weights go straight to ``device``: nothing is kept twice where the original is.
    """
    if module._forward_hooks:
        raise bad_input(source, "a network with hooks on it", "a plain one", "Train without that node.")
    known: dict[int, Any] = {} if without is None else {id(without): nn.Identity()}
    for parameter in module.parameters():
        moved = parameter.detach().to(device, dtype, copy=True)
        known[id(parameter)] = nn.Parameter(moved, requires_grad=False)
    for buffer in module.buffers():
        known[id(buffer)] = buffer.to(device, dtype if buffer.is_floating_point() else buffer.dtype, copy=True)
    return copy.deepcopy(module, known).requires_grad_(False).eval()


def checkpointed(net: nn.Module) -> None:
    """Recompute each residual and attention block in the backward pass; ``net`` is our private copy."""
    from torch.utils.checkpoint import checkpoint

    kinds = ("ResBlock", "SpatialTransformer", "ResnetBlock", "AttnBlock")
    for module in net.modules():
        if type(module).__name__ in kinds:
            forward = module.forward

            def recompute(*args: Any, _forward: Callable = forward, **kwargs: Any) -> Any:
                return checkpoint(_forward, *args, use_reentrant=False, **kwargs)

            module.forward = recompute
