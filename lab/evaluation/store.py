"""What a proof has measured so far, so that it goes on where it was ended."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from likeness.drawing.sheets import to_picture

Records = dict[str, dict]
"""``"section/case/variant" -> record``"""
Keep = Callable[[str, Tensor], None]
"""Told a picture's name and the picture, ``3 H W`` in [0, 1]"""


class RecordFile:
    """Records by key, one JSON line each, appended as they are made.

    Args:
        folder: made where it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "records.jsonl"
        lines = self.file.read_text("utf-8").splitlines() if self.file.exists() else []
        self.records: Records = {}
        for line in lines:
            self.records.update(_read(line))

    def record(self, key: str, compute: Callable[[], dict]) -> dict:
        """The record of a key, computed and written where it is not there."""
        if key not in self.records:
            self.records[key] = compute()
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({key: self.records[key]}) + "\n")
        return self.records[key]


class PictureFile(RecordFile):
    """Records with the pictures beside them.

    Args:
        folder: made where it is not there.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        (folder / "pictures").mkdir(exist_ok=True)

    def keep(self, case: str) -> Keep:
        """Keeps pictures ``3 H W`` of a case by name."""
        return lambda name, image: to_picture(image).save(self.path(case, name))

    def path(self, case: str, name: str) -> Path:
        """Where a picture lies."""
        return self.folder / "pictures" / f"{case} - {name}.png".replace("/", " ")


def _read(line: str) -> Records:
    try:
        return json.loads(line)
    except json.JSONDecodeError:  # cut off in the middle of writing: measured again
        return {}


def rows_of(records: Records, section: str) -> dict[str, Records]:
    """Case -> variant -> record of a section."""
    cases: dict[str, Records] = {}
    for key, record in records.items():
        where, case, variant = key.split("/")
        if where == section:
            cases.setdefault(case, {})[variant] = record
    return cases


def whole_rows_of(records: Records, section: str) -> dict[str, Records]:
    """The cases of a section in which every variant was measured that any has: what a run was ended in is left out."""
    cases = rows_of(records, section)
    variants = {variant for case in cases.values() for variant in case}
    return {number: case for number, case in cases.items() if variants <= case.keys()}


def values(cases: dict[str, Records], variant: str, name: str) -> list[float]:
    """One number a case; cases in which it is not told are left out."""
    told = [case[variant].get(name) for case in cases.values() if variant in case]
    return [float(value) for value in told if value is not None]


def paired(cases: dict[str, Records], a: str, b: str, name: str = "similarity") -> list[float]:
    """``a`` less ``b`` in every case that has both."""
    return [float(c[a][name]) - float(c[b][name]) for c in cases.values() if a in c and b in c]
