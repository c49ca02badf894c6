"""``python run.py dev``: what developers of the pack run by hand; most verbs need a ComfyUI."""

from __future__ import annotations

from collections.abc import Sequence

from lab.verbs import elsewhere, run_verb

VERBS = {
    "workflows": (elsewhere("lab.workflows.make"), "write the files of workflows/ and subgraphs/"),
    "sizes": (elsewhere("lab.workflows.measure"), "measure the nodes in the front end, for the layout of workflows/"),
    "locales": (elsewhere("lab.workflows.locales"), "write the files of locales/"),
    "thumbnails": (elsewhere("lab.workflows.thumbnails"), "make the pictures beside them"),
    "help": (elsewhere("lab.workflows.help_pictures"), "make the pictures of the help pages"),
    "samples": (elsewhere("lab.workflows.samples"), "draw the pictures that templates load (needs no ComfyUI)"),
    "hero": (elsewhere("lab.hero"), "draw the pictures at the head of README.md (needs no ComfyUI)"),
    "requirements": (elsewhere("lab.requirements"), "write requirements.txt from pyproject.toml (needs no ComfyUI)"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_verb("dev", "For developers; COMFYUI_PATH names a ComfyUI.", VERBS, argv)
