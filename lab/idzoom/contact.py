"""The contact sheet: what was kept, with its modalities, and what was dropped, by reason."""

from __future__ import annotations

import io
import json
from pathlib import Path

import torch
from PIL import Image

from likeness.core.errors import LikenessError
from likeness.drawing.pose import OPENPOSE, draw_faces
from likeness.drawing.sheets import TILE, Tile, sheet, to_picture
from likeness.faces.interface import Face

from .journal import Decision, Journal
from .places import Place
from .reading import Dropped, read_photo
from .settings import Settings
from .shards import key_of, members, shard_path

COLUMNS = 8
BLANK = "#d8d8dc"


def contact_sheet(journal: Journal, settings: Settings, out: Path) -> Image.Image | None:
    """Rows of the kept and of each reason to drop, spread over all pictures; None where nothing is decided."""
    counts = journal.counts()
    if not counts:
        return None
    kept = counts.pop("", 0)
    rows = _kept_rows(journal, out, kept) if kept else []
    for reason, count in counts.items():
        some = journal.some(reason, COLUMNS)
        tiles = [Tile(_thumbnail(place, settings), _short(decision)) for place, decision in some]
        rows.append((f"dropped: {reason} ({count})", tiles))
    return sheet(f"IDZoom: {kept} kept, {sum(counts.values())} dropped", rows)


def _kept_rows(journal: Journal, out: Path, count: int) -> list[tuple[str, list[Tile]]]:
    chosen = journal.some("", COLUMNS)
    samples = [members(shard_path(out, one.shard), key_of(one.number)) for _, one in chosen]
    keys = [key_of(one.number) for _, one in chosen]
    parts = {"image": "", "skeleton": "skeleton.png", "landmarks": "", "face": "face.png", "mask": "mask.png"}
    rows = []
    for part, ending in parts.items():
        tiles = [Tile(_part(part, ending, sample), key) for key, sample in zip(keys, samples, strict=True)]
        rows.append((f"kept ({count}): {part}", tiles))
    return rows


def _part(part: str, ending: str, sample: dict[str, bytes]) -> Image.Image:
    if part == "image":
        return _open(sample.get("image.jpg") or sample["image.png"])
    if part == "landmarks":
        return _landmarks(json.loads(sample["landmarks.json"]))
    return _open(sample[ending]) if ending in sample else Image.new("RGB", (TILE, TILE), BLANK)


def _landmarks(found: dict) -> Image.Image:
    faces = [
        Face(tuple(one["box"]), one["score"], landmarks=torch.tensor(one["five"]) if one["five"] else None,
             dense=torch.tensor(one["dense"]) if one["dense"] else None)
        for one in found["faces"]
    ]  # fmt: skip
    return _tile(to_picture(draw_faces(faces, found["height"], found["width"], OPENPOSE)))


def _open(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        return _tile(image.convert("RGB"))


def _tile(image: Image.Image) -> Image.Image:
    """Within a tile, in its shape."""
    image.thumbnail((TILE, TILE))
    return image


def _thumbnail(place: Place, settings: Settings) -> Image.Image:
    """The picture of a place; a blank where there is none to show."""
    try:
        return _tile(read_photo(place, settings).image)
    except (Dropped, LikenessError):
        return Image.new("RGB", (TILE, TILE), BLANK)


def _short(decision: Decision) -> str:
    words = " ".join(f"{key_of(decision.number)} {decision.detail}".split())
    return words.encode("ascii", "replace").decode()[:34]
