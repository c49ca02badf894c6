"""Runs pytest files in a process of their own in which the real ComfyUI can be imported."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from lab.workflows.discovery import ROOT, Host

#: Set in the child process to the host's folder; ``tests/host/conftest.py`` then prepares the imports.
HOST_VARIABLE = "LIKENESS_TEST_HOST"


def run_files(host: Host, files: Sequence[Path], timeout: float = 1800) -> subprocess.CompletedProcess[str]:
    """Run ``files`` with pytest in the host's Python, ComfyUI on the path and the CPU as its device."""
    arguments = ["-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml")]
    environment = {**os.environ, HOST_VARIABLE: str(host.path), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [host.python, "-m", "pytest", *map(str, files), *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
