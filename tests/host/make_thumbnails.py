"""Makes the picture beside each file of ``workflows/``: what the miniature drew, or how the graph looks.

Run by hand when the weights or a workflow change, with a ComfyUI (``COMFYUI_PATH``, ``COMFYUI_PYTHON``)::

    python run.py thumbnails [name ...]
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image, ImageOps

from .support.browser import Page, find_chromium
from .support.discovery import ROOT, hosts, why_none
from .support.server import Server
from .support.workflow import to_api

SIDE, GAP = 256, 4
WIDTH, HEIGHT = 768, 480


def main(names: list[str]) -> None:
    """Write the thumbnails of the named workflows, or of all of them."""
    files = [ROOT / "workflows" / f"{name}.json" for name in names] or sorted((ROOT / "workflows").glob("*.json"))
    if not hosts() or not find_chromium():
        sys.exit(why_none() if not hosts() else "no Chromium: install one or set CHROMIUM")
    with tempfile.TemporaryDirectory() as folder, Server(hosts()[0], Path(folder) / "base") as server:
        for file in (file for file in files if file.stem.startswith("miniature_")):
            _save(drawn(server, file), file)
        server.post("/settings", {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False})
        with Page(find_chromium(), Path(folder) / "profile") as page:
            page.open(server.url)
            page.wait_for("window.app?.graph && window.LiteGraph?.registered_node_types?.KSampler", 240)
            for file in (file for file in files if not file.stem.startswith("miniature_")):
                _save(graph(page, file, Path(folder) / "shot.png"), file)


def drawn(server: Server, file: Path) -> Image.Image:
    """Run a workflow of the miniature; its pictures side by side, those that are saved first."""
    prompt = to_api(json.loads(file.read_text("utf-8")), server.get("/object_info"))
    outputs = server.run_prompt(prompt).outputs
    order = sorted(outputs, key=lambda key: prompt[key]["class_type"] != "SaveImage")
    pictures = [server.picture(entry) for key in order for entry in outputs[key].get("images", [])][:6]
    columns = min(len(pictures), 3)
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (SIDE + GAP) - GAP, rows * (SIDE + GAP) - GAP), "white")
    for i, picture in enumerate(pictures):
        tile = ImageOps.pad(Image.fromarray(picture).convert("RGB"), (SIDE, SIDE), Image.Resampling.LANCZOS, "white")
        sheet.paste(tile, (i % columns * (SIDE + GAP), i // columns * (SIDE + GAP)))
    return sheet


def graph(page: Page, file: Path, shot: Path) -> Image.Image:
    """Open a workflow in the front end and cut the graph out of a screenshot."""
    page.run(f"window.app.loadGraphData({file.read_text('utf-8')}, true, true).then(() => true)")
    time.sleep(2)
    page.run("(window.app.extensionManager.command.execute('Comfy.Canvas.FitView'), true)")
    time.sleep(3)
    page.screenshot(shot)
    with Image.open(shot) as picture:
        width, height = picture.size
        canvas = picture.convert("RGB").crop((int(width * 0.04), int(height * 0.1), int(width * 0.98), height))
    canvas.thumbnail((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    return canvas


def _save(picture: Image.Image, file: Path) -> None:
    picture.save(file.with_suffix(".jpg"), quality=88)
    print(file.with_suffix(".jpg").relative_to(ROOT), picture.size)
