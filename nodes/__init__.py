"""Collects the node classes of the topic files (``*_nodes.py`` in this folder).

Each topic file ends with ``NODES``, the list of its node classes. A topic whose optional dependency is not installed
is left out with a warning that names it; the other topics load as usual.
"""

from __future__ import annotations

import importlib
import logging
import pkgutil

log = logging.getLogger("likeness")


def collect() -> list[type]:
    """Return the node classes of every topic that can be imported here.

    Raises:
        ImportError: a module of the pack itself is missing, which is a broken installation.
    """
    topics = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name.endswith("_nodes"))
    return [node for topic in topics for node in _topic_nodes(topic)]


def _topic_nodes(topic: str) -> list[type]:
    try:
        return list(importlib.import_module(f".{topic}", __name__).NODES)
    except ModuleNotFoundError as error:
        root = __name__.removesuffix(".nodes")
        if error.name is None or error.name.startswith(root):
            raise
        log.warning(
            "Likeness: the nodes of %s are not available because the Python package '%s' is not installed. "
            "Install it into ComfyUI's Python (see requirements.txt) and restart.",
            topic,
            error.name,
        )
        return []
