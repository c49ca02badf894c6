"""Registers the pack as ``likeness`` so that tests import it without ComfyUI."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_spec = importlib.util.spec_from_file_location("_likeness_bootstrap", Path(__file__).parents[1] / "bootstrap.py")
_bootstrap = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_bootstrap)
_bootstrap.register()
