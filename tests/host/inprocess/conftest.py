"""Fixtures of the tests that run inside ComfyUI's Python."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="module")
def parts() -> Any:
    """A tiny SD1.5-shaped checkpoint with random weights and an empty negative prompt."""
    from support.comfy import tiny
    from support.comfy.magicface import Parts

    from likeness.hosts.comfy.text import encode

    clip = tiny.clip()
    return Parts(tiny.model(), clip, tiny.vae(), encode(clip, "").conditioning)
