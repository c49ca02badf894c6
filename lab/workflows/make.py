"""Writes the files of ``workflows/`` and ``subgraphs/`` from the prompts below, laid out as the front end saves them.

Run by hand when a node or an example changes, with a ComfyUI (``COMFYUI_PATH``, ``COMFYUI_PYTHON``)::

    python run.py dev workflows [name ...]
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from lab.workflows import diir_workflows, magicface_workflows, magicid_workflows, persona_workflows
from lab.workflows.blueprint import blueprint_file, box
from lab.workflows.blueprints import BLUEPRINTS
from lab.workflows.discovery import hosts, why_none
from lab.workflows.files import workflow_file
from lab.workflows.layout import Prompt, node, to_ui
from lab.workflows.magicface_workflows import Made
from lab.workflows.notes import Note
from lab.workflows.server import Server
from lab.workflows.workflow import ObjectInfo


def text_to_image() -> Prompt:
    """The miniature as any checkpoint: nothing of the methods in it."""
    from likeness.miniature.models import picture_size

    return {
        "checkpoint": node("LikenessMiniatureLoader"),
        "positive": node(
            "CLIPTextEncode", "Prompt", [320, 160], clip=["checkpoint", 1],
            text="a picture of a woman wearing a red sweater and a hat, smiling, portrait, in the snow",
        ),
        "negative": node("CLIPTextEncode", "Nothing (negative)", [320, 110], clip=["checkpoint", 1], text=""),
        "latent": node("EmptyLatentImage", width=picture_size(), height=picture_size(), batch_size=4),
        "sampler": node(
            "KSampler", model=["checkpoint", 0], positive=["positive", 0], negative=["negative", 0],
            latent_image=["latent", 0], seed=1, steps=20, cfg=6.0, sampler_name="dpmpp_2m", scheduler="karras",
            denoise=1.0,
        ),
        "decode": node("VAEDecode", samples=["sampler", 0], vae=["checkpoint", 2]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="likeness/miniature"),
    }


WORKFLOWS: dict[str, Made] = {
    "Demo - first pictures": (
        text_to_image,
        Note(
            "The small model that comes with the pack, as any checkpoint: nothing of the methods in it.",
            "nothing to choose. Press *Run*.",
            "four drawn people in some seconds, on any computer.",
            "It knows the words of its own world; the help of *Load Miniature* lists them.",
        ),
    ),
}


def every_prompt() -> dict[str, tuple[Prompt, str]]:
    """Name of a template -> its prompt and the text of its note."""
    makers = {
        **WORKFLOWS, **magicface_workflows.WORKFLOWS, **persona_workflows.WORKFLOWS, **diir_workflows.WORKFLOWS,
        **magicid_workflows.WORKFLOWS,
    }  # fmt: skip
    prompts = {name: (make(), note) for name, (make, note) in makers.items()}
    return {name: (prompt, note.text(name, prompt)) for name, (prompt, note) in prompts.items()}


def every_file(info: ObjectInfo) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Name of a template or a blueprint -> its file and what is to stand in it."""
    templates = {
        name: (workflow_file(name), to_ui(prompt, info, note)) for name, (prompt, note) in every_prompt().items()
    }
    return templates | {name: (blueprint_file(name), box(name, make(), info)) for name, make in BLUEPRINTS.items()}


def main(names: list[str]) -> None:
    """Write the named templates and blueprints, or all of them."""
    if not hosts():
        sys.exit(why_none())
    with tempfile.TemporaryDirectory() as folder, Server(hosts()[0], Path(folder)) as server:
        files = every_file(server.get("/object_info"))
    for name in names or files:
        file, graph = files[name]
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(graph, indent=2, ensure_ascii=False) + "\n", "utf-8")
