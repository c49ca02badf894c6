"""Makes the pack importable as ``likeness`` outside ComfyUI.

ComfyUI imports a pack by path under a module name of its own, so the pack uses relative imports only. The headless
commands and the tests need one stable name instead; this registers it without running the root ``__init__.py``
(which needs ComfyUI) and without putting the root on ``sys.path`` (its folder names would shadow a host's).
"""

from __future__ import annotations

import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

ALIAS = "likeness"
ROOT = Path(__file__).resolve().parent


def register(alias: str = ALIAS) -> types.ModuleType:
    """Register the repository root as package ``alias`` and return it; a second call returns the same module."""
    if alias in sys.modules:
        return sys.modules[alias]
    package = types.ModuleType(alias)
    package.__path__ = [str(ROOT)]
    package.__package__ = alias
    package.__spec__ = ModuleSpec(alias, None, is_package=True)
    package.__spec__.submodule_search_locations = package.__path__
    sys.modules[alias] = package
    return package
