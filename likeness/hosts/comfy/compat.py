"""What differs between the ComfyUI versions the pack runs on (0.8.0 and later), and what a host's options forbid.

The node declarations are written once, with the arguments of a current host; those an older host does not know
yet are left out here. Only arguments named in this file are ever dropped, so a typing error still raises.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import sys
from collections.abc import Mapping
from typing import Any

import torch
from comfy_api.latest import io

log = logging.getLogger("likeness")

#: ``io.Schema`` arguments that ComfyUI 0.8.0 lacks; they only help the user find a node.
NEWER_SCHEMA_ARGUMENTS = frozenset({"search_aliases", "essentials_category", "is_dev_only"})


def _accepts(callable_: Any, argument: str) -> bool:
    return argument in inspect.signature(callable_).parameters


def schema(**arguments: Any) -> io.Schema:
    """Build an ``io.Schema``, without those of :data:`NEWER_SCHEMA_ARGUMENTS` that this host does not know."""
    known = {
        name: value
        for name, value in arguments.items()
        if name not in NEWER_SCHEMA_ARGUMENTS or _accepts(io.Schema, name)
    }
    return io.Schema(**known)


#: Spread into an input that most users leave alone: ``io.Float.Input("w", tooltip="...", **ADVANCED)``. The front end
#: folds such inputs away; ComfyUI before 0.10 has no such mark and shows them with the others.
ADVANCED: dict[str, bool] = {"advanced": True} if _accepts(io.Float.Input, "advanced") else {}


def uncompiled(model_options: Mapping[str, Any], who: str) -> contextlib.AbstractContextManager:
    """Run what ``torch.compile`` has made as it was written, while the context is open, and say so.

    Our attention differs from call to call. The host compiles a model without looking at the options that carry it
    (``TorchCompileModel`` drops those guards), so compiled code would go on with the first call's.

    Args:
        model_options: of the model that is sampled. who: the node to name in the log.
    """
    force = getattr(torch.compiler, "set_stance", None)  # PyTorch 2.6 and later
    if force is None or "torch._dynamo" not in sys.modules:
        return contextlib.nullcontext()
    if "torch_compile_kwargs" in model_options:
        log.info("%s: this run goes without torch.compile; the attention differs at every step.", who)
    return force("force_eager")
