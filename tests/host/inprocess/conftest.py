"""Fixtures of the tests that run inside ComfyUI's Python."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="module")
def parts() -> Any:
    """A tiny SD1.5-shaped checkpoint with random weights and an empty negative prompt."""
    from likeness.hosts.comfy.text import encode
    from likeness.tests.host.support import tiny
    from likeness.tests.host.support.magicface import Parts

    clip = tiny.clip()
    return Parts(tiny.model(), clip, tiny.vae(), encode(clip, "").conditioning)
