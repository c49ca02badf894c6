"""Pairs of MagicID's proof as a picture: who was asked for, and what came out by each way."""

from __future__ import annotations

from collections.abc import Mapping

from PIL import Image

from lab.evaluation.store import PictureFile, whole_rows_of
from likeness.drawing.sheets import TILE, Tile, beside, fit_height, sheet

#: pairs of the 12, chosen by eye: a picture to look at, the tables measure all
SHOWN = ("1", "4", "8", "9")
TITLE = "Two people side by side: four of the proof's 12 pairs, chosen by eye; similarities of left and right below"
PEOPLE = ("person 1", "person 2")
WAYS = ("vanilla", "plain sum", "one at a time, inpainted", "MagicFace, the same regions", "MGMICA")


def sheet_of(store: PictureFile) -> Image.Image | None:
    """A row a pair, the first picture of each way; None where none of :data:`SHOWN` is drawn in all ways."""
    drawn = {number: case for number, case in whole_rows_of(store.records, "two").items() if case.keys() >= set(WAYS)}
    rows = []
    for number in sorted(drawn.keys() & set(SHOWN)):
        pictures = {name: Image.open(store.path(f"two {number}", name)) for name in (*PEOPLE, *WAYS)}
        who = Tile(beside([pictures[name] for name in PEOPLE]), "left and right")
        ways = [Tile(fit_height(pictures[way], TILE), told(drawn[number][way])) for way in WAYS]
        rows.append(("", [who, *ways]))
    return sheet(TITLE, rows, ("who", *WAYS)) if rows else None


def told(record: Mapping[str, list[float]]) -> str:
    """Similarity of each person in the first picture."""
    own = iter(record["own"])
    return ", ".join(f"{next(own):.2f}" if placed else "nobody there" for placed in record["placed"][: len(PEOPLE)])
