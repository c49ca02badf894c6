"""Makes the picture beside each file of ``workflows/``: square, the result large, what it came from in its corner.

A demo is run. A template for the user's own checkpoint shows the picture of the demo that does the same, marked.

Run by hand when the weights or a workflow change, with a ComfyUI (``COMFYUI_PATH``, ``COMFYUI_PYTHON``)::

    python run.py dev thumbnails [name ...]
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from lab.workflows.discovery import ROOT, hosts, why_none
from lab.workflows.files import FILES, is_demo, workflow_file
from lab.workflows.layout import node
from lab.workflows.magicid_workflows import PLACES_TITLE, POSE_TITLE
from lab.workflows.server import Server
from lab.workflows.workflow import to_api

SIDE, INSET, FRAME = 512, 168, 6
MARK = "your checkpoint"
#: demos whose result shows something at the lower edge: what they came from stands in a column beside it, and smaller
LOW = {"Demo - MagicFace, person and scarf"}
#: user's template -> demo that does the same, and which of its saved pictures is shown
TWINS = {
    "MagicFace - one person": ("Demo - MagicFace, one person", 0),
    "MagicFace - person and scarf": ("Demo - MagicFace, person and scarf", 0),
    "MagicFace - two people": ("Demo - MagicFace, two people", 0),
    "MagicFace - texture of a material": ("Demo - MagicFace, person and scarf", 0),
    "MagicFace - drawing to any style": ("Demo - MagicFace, one person", 0),
    "DIIR - small faces, SD1.5": ("Demo - DIIR, a small face repaired", 0),
    "DIIR - small faces, SDXL": ("Demo - DIIR, faces of two people", 0),
    "DIIR - small faces of a photograph": ("Demo - DIIR, a small face repaired", 0),
    "PersonaMagic - 1 learn a person": ("Demo - PersonaMagic, learn a person", 0),
    "PersonaMagic - 2 new scenes": ("Demo - PersonaMagic, learn a person", 0),
    "PersonaMagic - 3 expressions": ("Demo - PersonaMagic, learn a person", 0),
    "PersonaMagic - 4 with a learnt style": ("Demo - PersonaMagic with MagicFace", 1),
    "PersonaMagic - 5 with a LoRA": ("Demo - PersonaMagic with MagicFace", 1),
    "PersonaMagic - 6 with MagicFace": ("Demo - PersonaMagic with MagicFace", 0),
    "MagicID - one person, SD1.5": ("Demo - MagicID, one person", 0),
    "MagicID - InstantID, SDXL": ("Demo - MagicID, one person", 0),
    "MagicID - two people, SD1.5": ("Demo - MagicID, two people", 0),
}


def main(names: list[str]) -> None:
    """Write the thumbnails of the named workflows, or of all of them."""
    files = [workflow_file(name) for name in names] or FILES
    if not hosts():
        sys.exit(why_none())
    with tempfile.TemporaryDirectory() as folder, Server(hosts()[0], Path(folder) / "base") as server:
        shown = {file.stem: _demo(server, file) for file in demos(files)}
    for file in files:
        _save(_thumbnail(file.stem, shown), file)


def demos(files: list[Path]) -> list[Path]:
    """Demos to run for the thumbnails of these files."""
    wanted = [file.stem if is_demo(file) else TWINS[file.stem][0] for file in files]
    return [workflow_file(name) for name in dict.fromkeys(wanted)]


Shown = tuple[list[Image.Image], list[Image.Image]]


def _thumbnail(name: str, shown: dict[str, Shown]) -> Image.Image:
    if name in shown:
        results, insets = shown[name]
        return composed(results[0], insets, name in LOW)
    twin, number = TWINS[name]
    results, insets = shown[twin]
    return marked(composed(results[number], insets, twin in LOW))


def _demo(server: Server, file: Path) -> Shown:
    """Run a demo: its saved pictures, and what they came from (the picture before, or the references and the places
    where they were put)."""
    prompt = to_api(json.loads(file.read_text("utf-8")), server.get("/object_info"))
    titles = {key: entry.get("_meta", {}).get("title") for key, entry in prompt.items()}
    samples = [key for key in prompt if prompt[key]["class_type"] == "LikenessMiniatureSample"]
    inputs = [key for key in samples if titles.get(key) != POSE_TITLE]
    prompt |= {f"input {key}": node("PreviewImage", images=[key, 0]) for key in inputs}
    outputs = server.run_prompt(prompt).outputs

    def pictures(keys: list[str]) -> list[Image.Image]:
        return [Image.fromarray(server.picture(one)) for key in keys for one in outputs[key].get("images", [])]

    results = [key for key in prompt if prompt[key]["class_type"] == "SaveImage"]
    before, places = ([key for key in titles if titles[key] == title] for title in ("Before", PLACES_TITLE))
    return pictures(results), pictures(before or [*(f"input {key}" for key in inputs), *places])


def composed(result: Image.Image, insets: list[Image.Image], column: bool = False) -> Image.Image:
    """A square with the result, and at most two small framed pictures in its lower left; below a wide result, three."""
    if result.width > result.height:
        return above(result, insets)
    sheet = ImageOps.fit(result.convert("RGB"), (SIDE, SIDE), Image.Resampling.LANCZOS)
    for i, picture in enumerate(insets[:2]):
        inset = INSET * 2 // 3 if column else INSET
        small = ImageOps.fit(picture.convert("RGB"), (inset, inset), Image.Resampling.LANCZOS)
        framed = ImageOps.expand(small, FRAME, "white")
        along = FRAME + i * (framed.width + FRAME)
        x, y = (FRAME, along) if column else (along, FRAME)
        sheet.paste(framed, (x, SIDE - framed.height - y))
    return sheet


def above(result: Image.Image, insets: list[Image.Image]) -> Image.Image:
    """A square with the whole of a wide result, and up to three small pictures in a row below it."""
    sheet = Image.new("RGB", (SIDE, SIDE), "white")
    wide = ImageOps.contain(result.convert("RGB"), (SIDE, SIDE), Image.Resampling.LANCZOS)
    sheet.paste(wide)
    side = min(SIDE - wide.height - 2 * FRAME, (SIDE - 4 * FRAME) // 3)
    gap = (SIDE - side * len(insets[:3])) // (len(insets[:3]) + 1)
    for i, picture in enumerate(insets[:3]):
        small = ImageOps.fit(picture.convert("RGB"), (side, side), Image.Resampling.LANCZOS)
        sheet.paste(small, (gap + i * (side + gap), wide.height + (SIDE - wide.height - side) // 2))
    return sheet


def marked(sheet: Image.Image) -> Image.Image:
    """The thumbnail with the mark that the picture is the demo's and the template asks for a checkpoint."""
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(26)
    left, top, right, bottom = draw.textbbox((0, 0), MARK, font)
    box = (SIDE - (right - left) - 36, 12, SIDE - 12, 12 + (bottom - top) + 22)
    draw.rounded_rectangle(box, 12, fill="#1f6feb")
    draw.text((box[0] + 12, box[1] + 11 - top), MARK, "white", font)
    return sheet


def _save(picture: Image.Image, file: Path) -> None:
    picture.save(file.with_suffix(".jpg"), quality=90)
    print(file.with_suffix(".jpg").relative_to(ROOT), picture.size)
