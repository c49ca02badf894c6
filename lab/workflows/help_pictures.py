"""Makes the picture of each help page: the node as the front end shows it, and below it what it drew in a demo.

Run by hand when a node's inputs or the thumbnails change, with a ComfyUI (``COMFYUI_PATH``, ``COMFYUI_PYTHON``) and a
Chromium::

    python run.py dev help [node ...]
"""

from __future__ import annotations

import io
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from lab.workflows.browser import READY, SETTINGS, Page, find_chromium
from lab.workflows.discovery import ROOT, hosts, why_none
from lab.workflows.files import workflow_file
from lab.workflows.server import Server

FOLDER = ROOT / "js" / "docs"
WIDTH, MARGIN, QUALITY = 340, 16, 80
#: no badge with the folder's name
PLAIN = {**SETTINGS, "Comfy.VueNodes.Enabled": True, "Comfy.NodeBadge.NodeSourceBadgeMode": "None"}
#: node -> demo whose thumbnail shows what it does
DEMOS = {
    "LikenessMiniatureLoader": "Demo - first pictures",
    "LikenessMagicFaceReference": "Demo - MagicFace, person and scarf",
    "LikenessMagicFaceApply": "Demo - MagicFace, one person",
    "LikenessMagicFacePreview": "Demo - MagicFace, two people",
    "LikenessPersonaTrain": "Demo - PersonaMagic, learn a person",
    "LikenessPersonaApply": "Demo - PersonaMagic with MagicFace",
    "LikenessLoadIdentityWeights": "Demo - MagicID, one person",
    "LikenessMagicIdIdentity": "Demo - MagicID, one person",
    "LikenessMagicIdApply": "Demo - MagicID, one person",
    "LikenessMagicIdRegions": "Demo - MagicID, two people",
    "LikenessDiirFaceRepair": "Demo - DIIR, a small face repaired",
    "LikenessDetectFaces": "Demo - DIIR, faces of two people",
}
_ALONE = """window.app.loadGraphData({nodes: [], links: [], version: 0.4}).then(() => {
  const node = window.LiteGraph.createNode("%s");
  node.pos = [0, 0];
  window.app.graph.add(node);
  node.setSize([%d, node.computeSize()[1]]);
  window.app.canvas.ds.scale = 1;
  window.app.canvas.ds.offset = [160, 160];
  window.app.canvas.setDirty(true, true);
})"""
_BOX = """(() => {
  const box = document.querySelector(".lg-node")?.getBoundingClientRect();
  return box ? [box.x, box.y, box.width, box.height] : null;
})()"""


def picture_file(node: str) -> Path:
    """The picture of a node's help, of both languages."""
    return FOLDER / node / "node.jpg"


def main(names: list[str]) -> None:
    """Write the pictures of the named nodes, or of all of them."""
    if not hosts() or not find_chromium():
        sys.exit(why_none() if not hosts() else "no Chromium: install one or set CHROMIUM")
    nodes = names or sorted(file.stem for file in FOLDER.glob("*.md"))
    with tempfile.TemporaryDirectory() as folder, Server(hosts()[0], Path(folder) / "base") as server:
        server.post("/settings", PLAIN)
        with Page(find_chromium(), Path(folder) / "profile", (1000, 1600)) as page:
            page.open(server.url)
            page.wait_for(READY, 600)
            time.sleep(3)
            for node in nodes:
                file = picture_file(node)
                composed(alone(page, node), DEMOS.get(node)).save(file, quality=QUALITY, optimize=True)
                print(file.relative_to(ROOT), file.stat().st_size)


def alone(page: Page, node: str) -> Image.Image:
    """The node by itself, as the Vue renderer draws it, with a margin of the canvas."""
    page.run(_ALONE % (node, WIDTH))
    page.wait_for(_BOX, 60)
    time.sleep(1)  # fonts and widgets come a moment after the box
    x, y, width, height = page.run(_BOX)
    shown = Image.open(io.BytesIO(page.shot())).convert("RGB")
    box = (x - MARGIN, y - MARGIN, x + width + MARGIN, y + height + MARGIN)
    return shown.crop(tuple(round(edge) for edge in box))


def composed(node: Image.Image, demo: str | None) -> Image.Image:
    """The node, and below it the demo's thumbnail: as wide as the front end's help is at first."""
    if demo is None:
        return node
    side = node.width - 2 * MARGIN
    thumbnail = Image.open(workflow_file(demo).with_suffix(".jpg")).resize((side, side), Image.Resampling.LANCZOS)
    sheet = Image.new("RGB", (node.width, node.height + side + MARGIN), node.getpixel((1, 1)))
    sheet.paste(node)
    sheet.paste(thumbnail, (MARGIN, node.height))
    return sheet
