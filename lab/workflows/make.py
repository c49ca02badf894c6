"""Writes the files of ``workflows/`` from the prompts below, laid out as the front end saves them.

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
from lab.workflows.discovery import hosts, why_none
from lab.workflows.files import workflow_file
from lab.workflows.layout import node, to_ui
from lab.workflows.server import Server


def text_to_image() -> dict[str, Any]:
    """The miniature as any checkpoint: nothing of the methods in it."""
    from likeness.miniature.models import picture_size

    return {
        "checkpoint": node("LikenessMiniatureLoader"),
        "positive": node(
            "CLIPTextEncode", "Prompt", [400, 160], clip=["checkpoint", 1],
            text="a picture of a woman wearing a red sweater and a hat, smiling, portrait, in the snow",
        ),
        "negative": node("CLIPTextEncode", "Nothing (negative)", [400, 100], clip=["checkpoint", 1], text=""),
        "latent": node("EmptyLatentImage", width=picture_size(), height=picture_size(), batch_size=4),
        "sampler": node(
            "KSampler", model=["checkpoint", 0], positive=["positive", 0], negative=["negative", 0],
            latent_image=["latent", 0], seed=1, steps=20, cfg=6.0, sampler_name="dpmpp_2m", scheduler="karras",
            denoise=1.0,
        ),
        "decode": node("VAEDecode", samples=["sampler", 0], vae=["checkpoint", 2]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="likeness/miniature"),
    }


#: name: (prompt, notes shown above the graph)
WORKFLOWS = {
    "Demo - first pictures": (
        text_to_image,
        (
            "## Miniature: first pictures\nPress **Run**. The small model that comes with the pack draws four people "
            "in some seconds, on any computer.\n\nIt knows the words of its own world; the help of *Load Miniature* "
            "lists them.",
        ),
    ),
}


def main(names: list[str]) -> None:
    """Write the named workflows, or all of them."""
    if not hosts():
        sys.exit(why_none())
    with tempfile.TemporaryDirectory() as folder, Server(hosts()[0], Path(folder)) as server:
        info = server.get("/object_info")
    workflows = {
        **WORKFLOWS, **magicface_workflows.WORKFLOWS, **persona_workflows.WORKFLOWS, **diir_workflows.WORKFLOWS,
        **magicid_workflows.WORKFLOWS,
    }  # fmt: skip
    for name in names or workflows:
        make, notes = workflows[name]
        text = json.dumps(to_ui(make(), info, notes), indent=2, ensure_ascii=False)
        workflow_file(name).write_text(text + "\n", "utf-8")
