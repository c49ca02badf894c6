"""The first pairs of MagicID's proof as a picture: who was asked for, and what came out by each way."""

from __future__ import annotations

from PIL import Image

from lab.evaluation.store import PictureFile, Records
from likeness.drawing.sheets import TILE, Tile, beside, fit_height, sheet

SHOWN = 6
TITLE = "Two people side by side: the first pairs of the proof and the first picture of each, as they came out"
PEOPLE = ("person 1", "person 2")
WAYS = ("vanilla", "plain sum", "one at a time, inpainted", "MagicFace, the same regions", "MGMICA")


def sheet_of(store: PictureFile) -> Image.Image | None:
    """A row a pair, similarities of left and right below; None where no pair has been drawn in all ways."""
    cases = [f"two {number}" for number in range(SHOWN)]
    whole = [case for case in cases if all(store.path(case, name).exists() for name in (*PEOPLE, *WAYS))]
    if not whole:
        return None
    rows = []
    for case in whole:
        people = Tile(beside([Image.open(store.path(case, name)) for name in PEOPLE]), "left and right")
        drawn = [
            Tile(fit_height(Image.open(store.path(case, way)), TILE), told(store.records, case, way)) for way in WAYS
        ]
        rows.append(("", [people, *drawn]))
    return sheet(TITLE, rows, ("who", *WAYS))


def told(records: Records, case: str, way: str) -> str:
    """Similarity of each person in the first picture of a case."""
    record = records.get(f"{case.replace(' ', '/')}/{way}")
    if record is None:
        return ""
    own = iter(record["own"])
    return ", ".join(f"{next(own):.2f}" if placed else "nobody there" for placed in record["placed"][: len(PEOPLE)])
