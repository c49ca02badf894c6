"""Measures how much room each node takes in the front end's two renderers, for :mod:`lab.workflows.layout`.

Run by hand when a node's inputs change, with a ComfyUI (``COMFYUI_PATH``, ``COMFYUI_PYTHON``) and a Chromium::

    python run.py dev sizes
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lab.workflows.browser import READY, SETTINGS, Page, find_chromium
from lab.workflows.discovery import hosts, why_none
from lab.workflows.make import every_prompt
from lab.workflows.server import Server

FILE = Path(__file__).with_name("node_sizes.json")
WIDTH, STEP = 340, 1600
CANVAS = """window.app.graph.nodes.map((node) => {
  return [node.type, Math.max(node.computeSize()[1], node.size[1])];
})"""
VUE = """window.app.graph.nodes.map((node) => {
  const box = document.querySelector(`[data-node-id="${node.id}"]`);
  return [node.type, (box?.offsetHeight ?? 0) - window.LiteGraph.NODE_TITLE_HEIGHT];
})"""


def main(names: list[str]) -> None:
    """Write what both renderers say."""
    if names:
        sys.exit("run.py dev sizes takes no arguments")
    if not hosts() or not find_chromium():
        sys.exit(why_none() if not hosts() else "no Chromium: install one or set CHROMIUM")
    kinds = sorted({node["class_type"] for prompt, _ in every_prompt().values() for node in prompt.values()})
    with tempfile.TemporaryDirectory() as folder, Server(hosts()[0], Path(folder) / "base") as server:
        canvas = shown(server, Path(folder) / "canvas", kinds, vue=False)
        vue = shown(server, Path(folder) / "vue", kinds, vue=True)
    sizes = {kind: {"canvas": canvas[kind], "vue": vue[kind]} for kind in kinds}
    lines = ",\n".join(f"  {json.dumps(kind)}: {json.dumps(size)}" for kind, size in sizes.items())
    FILE.write_text(f"{{\n{lines}\n}}\n", "utf-8")


def shown(server: Server, profile: Path, kinds: list[str], *, vue: bool) -> dict[str, int]:
    """Kind -> height below the title that a renderer gives a node that asks for hardly any."""
    server.post("/settings", {**SETTINGS, "Comfy.VueNodes.Enabled": vue})
    with Page(find_chromium(), profile) as page:
        page.open(server.url)
        page.wait_for(READY, 240)
        page.run(f"window.app.loadGraphData({{nodes: [], links: [], version: 0.4}}).then(() => {json.dumps(kinds)}"
                 f".forEach((kind, i) => {_ADD % {'width': WIDTH, 'step': STEP}}))")
        page.run("(window.app.extensionManager?.command?.execute('Comfy.Canvas.FitView'), true)")
        time.sleep(8)
        measured: list[list[Any]] = page.run(VUE if vue else CANVAS)
    return {kind: round(height) for kind, height in measured}


_ADD = """{
  const node = window.LiteGraph.createNode(kind);
  node.pos = [i %% 8 * %(step)d, Math.floor(i / 8) * %(step)d];
  window.app.graph.add(node);
  node.setSize([%(width)d, 10]);
}"""
