"""The data engine's tests need its extra: ``pip install "ray[data]" webdataset imagehash``."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from lab.idzoom.command import EXTRA

MISSING = [name for name in EXTRA if importlib.util.find_spec(name) is None]
collect_ignore_glob = ["test_*.py"] if MISSING else []


def pytest_terminal_summary(terminalreporter) -> None:
    if MISSING:
        terminalreporter.write_line(f"NOT RUN: the data engine's tests, for lack of {', '.join(MISSING)}", yellow=True)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 drawn pictures of 256 pixels."""
    from lab.idzoom.draw import draw

    folder = tmp_path_factory.mktemp("world")
    draw(folder, 24)
    return folder
