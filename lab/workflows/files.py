"""The files of ``workflows/``. The front end shows a template under its file's name, so that is a title in words."""

from __future__ import annotations

from pathlib import Path

from lab.workflows.discovery import ROOT

FOLDER = ROOT / "workflows"
#: how the names of those begin that run as they are, on the miniature
DEMO = "Demo - "


def workflow_file(name: str) -> Path:
    """The graph called ``name``; its picture lies beside it."""
    return FOLDER / f"{name}.json"


def is_demo(file: Path) -> bool:
    """Whether a workflow needs nothing of the user's."""
    return file.stem.startswith(DEMO)


FILES = sorted(FOLDER.glob("*.json"))
DEMOS = [file for file in FILES if is_demo(file)]
USERS = [file for file in FILES if not is_demo(file)]
