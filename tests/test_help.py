"""Every node's help page, in English and in Chinese: complete, alike, and true to what the program says.

``locales/`` stands for the schemas: ``run.py dev locales`` writes it from them.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from PIL import Image, ImageStat

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "js" / "docs"
NODES = {
    language: json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text("utf-8"))
    for language in ("en", "zh")
}  # fmt: skip
TABLE = {"en": "## When it complains", "zh": "## 报错与提示"}
EACH = pytest.mark.parametrize("node", sorted(NODES["en"]))
BOLD = re.compile(r"\*\*(.+?)\*\*")
UNKNOWN = "\0"  # what the program fills in


def page(node: str, language: str) -> str:
    """English is where the front end looks for every language that has no page of its own."""
    path = PAGES / f"{node}.md" if language == "en" else PAGES / node / f"{language}.md"
    return path.read_text("utf-8")


def test_no_page_is_without_its_node() -> None:
    assert {path.stem for path in PAGES.iterdir()} == set(NODES["en"])


@EACH
def test_title_is_the_name_in_the_menu(node: str) -> None:
    for language, known in NODES.items():
        assert page(node, language).startswith(f"# {known[node]['display_name']}\n")


@EACH
def test_both_languages_have_the_same_parts(node: str) -> None:
    shapes = [re.findall(r"^#+ ", page(node, language), re.MULTILINE) for language in TABLE]
    assert shapes[0] == shapes[1]


@EACH
def test_every_input_is_explained(node: str) -> None:
    for language, known in NODES.items():
        bold = {part.strip() for span in BOLD.findall(page(node, language)) for part in re.split("[,、]", span)}
        inputs = {name: given["name"] for name, given in known[node]["inputs"].items()}
        assert not {name for name, shown in inputs.items() if not bold & {name, shown}}


@EACH
def test_page_shows_its_picture(node: str) -> None:
    """The front end takes addresses relative to ``docs/``, for a page in a folder of its own too."""
    for language in NODES:
        assert re.findall(r"!\[[^\]]+\]\((.*?)\)", page(node, language)) == [f"{node}/node.jpg"]
    with Image.open(PAGES / node / "node.jpg") as picture:
        assert picture.format == "JPEG" and picture.width <= 640
        assert ImageStat.Stat(picture.convert("L")).stddev[0] > 10


def test_pictures_are_small() -> None:
    sizes = [file.stat().st_size for file in PAGES.glob("*/node.jpg")]
    assert max(sizes) <= 40_000 and sum(sizes) <= 1_000_000


@EACH
def test_both_tables_tell_of_the_same_messages(node: str) -> None:
    english, chinese = (messages(node, language) for language in TABLE)
    assert english == chinese
    assert english


@EACH
def test_the_program_says_what_the_table_quotes(node: str) -> None:
    said = texts()
    parts = [part.strip() for message in messages(node, "en") for part in message.split("...") if part.strip()]
    assert not [part for part in parts if not any(part in text for text in said)]


def messages(node: str, language: str) -> list[str]:
    """The first column of the page's table, without where the message appears (log, report)."""
    _, found, after = page(node, language).partition(TABLE[language])
    assert found
    rows = [line.split(" | ")[0].removeprefix("| ") for line in after.splitlines() if line.startswith("| ")]
    return [re.sub(r"^[(\uff08](log|report|日志|报告)[)\uff09] ?", "", row) for row in rows[1:]]


@cache
def texts() -> frozenset[str]:
    """Every text in the code, with :data:`UNKNOWN` for what is filled in, and every error as it is put together."""
    files = [file for top in ("nodes", "likeness") for file in (ROOT / top).rglob("*.py")]
    return frozenset(text for file in files for text in _texts_of(ast.parse(file.read_text("utf-8"))))


def _texts_of(tree: ast.AST) -> Iterator[str]:
    for piece in ast.walk(tree):
        yield _text(piece)
        if isinstance(piece, ast.Call) and getattr(piece.func, "id", "") == "bad_input" and len(piece.args) == 4:
            name, came, expected, mend = map(_text, piece.args)
            yield f"{name}: got {came}; expected {expected}. {mend}"


def _text(piece: ast.AST) -> str:
    if isinstance(piece, ast.JoinedStr):
        return "".join(map(_text, piece.values))
    if isinstance(piece, ast.Constant) and isinstance(piece.value, str):
        return re.sub("%[sdf]", UNKNOWN, piece.value)
    return UNKNOWN
