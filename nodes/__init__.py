"""Collects the node classes of the topic files (``*_nodes.py`` in this folder).

Each topic file ends with ``NODES``, the list of its node classes. A topic that cannot be imported, mostly because an
optional package is not installed, is left out with a line in the log that says why; the other topics load as usual.
"""

from __future__ import annotations

import importlib
import logging
import pkgutil

log = logging.getLogger("likeness")


def collect() -> list[type]:
    """Return the node classes of every topic that can be imported here; what cannot is named in the log."""
    topics = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name.endswith("_nodes"))
    return [node for topic in topics for node in _topic_nodes(topic)]


def _topic_nodes(topic: str) -> list[type]:
    try:
        return list(importlib.import_module(f".{topic}", __name__).NODES)
    except ImportError as error:
        if _is_foreign(error):
            log.warning(
                "Likeness: the nodes of %s are not available because the Python package '%s' is not installed. "
                "Install it into ComfyUI's Python (see requirements.txt) and restart.",
                topic,
                error.name,
            )
        else:
            log.exception("Likeness: the nodes of %s are not available; please report this", topic)
        return []


def _is_foreign(error: ImportError) -> bool:
    """Whether a package of its own is missing, not a part of this pack or of ComfyUI."""
    pack = __name__.removesuffix(".nodes")
    ours = (pack, "comfy", "comfy_api", "folder_paths", "latent_preview")
    return isinstance(error, ModuleNotFoundError) and not any(
        error.name == name or (error.name or "").startswith(f"{name}.") for name in ours
    )
