"""What differs between the ComfyUI versions the pack runs on (0.8.0 and later).

The node declarations are written once, with the arguments of a current host; those an older host does not know
yet are left out here. Only arguments named in this file are ever dropped, so a typing error still raises.
"""

from __future__ import annotations

import inspect
from typing import Any

from comfy_api.latest import io

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
