"""Runs the files of ``inprocess/`` on every host, those of one subject (``test_<subject>_....py``) in one process."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import pytest
from support.comfy.inprocess import run_files

from lab.workflows.discovery import Host


def subject(file: Path) -> str:
    """The word behind ``test_``."""
    return file.stem.split("_")[1]


ALL = sorted((Path(__file__).parent / "inprocess").glob("test_*.py"))
FILES = {name: list(files) for name, files in groupby(ALL, subject)}


@pytest.mark.parametrize("name", FILES)
def test_files_pass_on_host(host: Host, name: str) -> None:
    done = run_files(host, FILES[name])
    assert done.returncode == 0, f"{name} on {host.name}:\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
