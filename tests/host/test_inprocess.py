"""Runs every file of ``inprocess/`` on every host."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.comfy.inprocess import run_file

from lab.workflows.discovery import Host

FILES = sorted((Path(__file__).parent / "inprocess").glob("test_*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_file_passes_on_host(host: Host, file: Path) -> None:
    done = run_file(host, file)
    assert done.returncode == 0, f"{file.name} on {host.name}:\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
