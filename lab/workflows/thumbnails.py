"""Makes the picture beside each file of ``workflows/``: what the miniature drew, or how the graph looks.

Run by hand when the weights or a workflow change, with a ComfyUI (``COMFYUI_PATH``, ``COMFYUI_PYTHON``)::

    python run.py dev thumbnails [name ...]
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from itertools import filterfalse
from pathlib import Path

from PIL import Image, ImageChops, ImageOps

from lab.workflows.browser import Page, find_chromium
from lab.workflows.discovery import ROOT, hosts, why_none
from lab.workflows.files import FILES, is_demo, workflow_file
from lab.workflows.server import Server
from lab.workflows.workflow import to_api
from likeness.miniature.world import sample_picture
from likeness.miniature.world.render import render

SIDE, GAP = 256, 4
WINDOW, SHOWN = (2400, 1500), (1400, 800)
#: what the user's own workflows ask for, by folder of the base directory; the thumbnails need the names only
USERS_FILES = {
    "models/checkpoints": ("v1-5-pruned-emaonly-fp16.safetensors", "sd_xl_base_1.0.safetensors"),
    "models/upscale_models": ("RealESRGAN_x4plus.safetensors",),
    "models/loras": ("my_lora.safetensors",),
    "models/ipadapter": ("ip-adapter-faceid-plusv2_sd15.bin",),
    "models/instantid": ("ip-adapter.bin",),
    "models/controlnet": ("instantid.safetensors",),
    "models/clip_vision": ("CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors",),
    "models/personas": ("my_person.safetensors",),
}
#: no first-start screens, and text at every zoom
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Minimap.Visible": False,
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,
}


def main(names: list[str]) -> None:
    """Write the thumbnails of the named workflows, or of all of them."""
    files = [workflow_file(name) for name in names] or FILES
    if not hosts() or not find_chromium():
        sys.exit(why_none() if not hosts() else "no Chromium: install one or set CHROMIUM")
    with tempfile.TemporaryDirectory() as folder, Server(hosts()[0], Path(folder) / "base") as server:
        for file in filter(is_demo, files):
            _save(drawn(server, file), file)
        _place_users_files(server)
        server.post("/settings", SETTINGS)
        with Page(find_chromium(), Path(folder) / "profile", WINDOW) as page:
            page.open(server.url)
            page.wait_for("window.app?.graph && window.LiteGraph?.registered_node_types?.KSampler", 240)
            for file in filterfalse(is_demo, files):
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


def _place_users_files(server: Server) -> None:
    for folder, names in USERS_FILES.items():
        (server.base / folder).mkdir(parents=True, exist_ok=True)
        for name in names:
            (server.base / folder / name).touch()
    Image.fromarray(render(sample_picture(random.Random(3), shot="portrait", people=1), 512)).save(
        server.base / "input" / "example.png"
    )


def graph(page: Page, file: Path, shot: Path) -> Image.Image:
    """Open a workflow in the front end and cut the graph out of a screenshot."""
    page.run(f"window.app.loadGraphData({file.read_text('utf-8')}, true, true).then(() => true)")
    time.sleep(2)
    page.run("(window.app.extensionManager.command.execute('Comfy.Canvas.FitView'), true)")
    time.sleep(3)
    page.screenshot(shot)
    with Image.open(shot) as picture:
        width, height = picture.size
        canvas = picture.convert("RGB").crop((int(width * 0.05), int(height * 0.1), width, int(height * 0.9)))
    canvas = _trimmed(canvas)
    canvas.thumbnail(SHOWN, Image.Resampling.LANCZOS)
    return canvas


def _trimmed(canvas: Image.Image, margin: int = 24) -> Image.Image:
    """Cut away the empty canvas round the graph."""
    empty = Image.new("RGB", canvas.size, canvas.getpixel((1, 1)))
    box = ImageChops.difference(canvas, empty).convert("L").point(lambda level: 255 * (level > 12)).getbbox()
    left, top, right, bottom = box or (0, 0, *canvas.size)
    right, bottom = min(right + margin, canvas.width), min(bottom + margin, canvas.height)
    return canvas.crop((max(left - margin, 0), max(top - margin, 0), right, bottom))


def _save(picture: Image.Image, file: Path) -> None:
    picture.save(file.with_suffix(".jpg"), quality=88)
    print(file.with_suffix(".jpg").relative_to(ROOT), picture.size)
