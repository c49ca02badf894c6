"""Templates and blueprints as they lie in their folders: laid out for both renderers, with a note that helps."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageStat

from lab.workflows.blueprint import FOLDER, unfolded
from lab.workflows.files import DEMOS, FILES, USERS
from lab.workflows.models import MODELS, OFFERED
from lab.workflows.placing import SIZES, TITLE
from lab.workflows.thumbnails import SIDE, TWINS

NOTE = "MarkdownNote"
WIDEST = 4000
BLUEPRINTS = sorted(FOLDER.glob("*.json"))
Box = tuple[float, float, float, float]


def load(file: Path) -> dict[str, Any]:
    """The graph that is looked at: of a blueprint the one inside its box."""
    saved = json.loads(file.read_text("utf-8"))
    return unfolded(saved)[0] if "definitions" in saved else saved


def box(node: dict[str, Any], renderer: str) -> Box:
    """Left, top, right, bottom of a node, its title included, as a renderer draws it."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE, x + width, y + max(height, SIZES.get(node["type"], {}).get(renderer, 0))


def edges(group: dict[str, Any]) -> Box:
    x, y, width, height = group["bounding"]
    return x, y, x + width, y + height


def overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def inside(a: Box, b: Box) -> bool:
    return b[0] <= a[0] and b[1] <= a[1] and a[2] <= b[2] and a[3] <= b[3]


every = pytest.mark.parametrize("file", [*FILES, *BLUEPRINTS], ids=lambda file: file.stem)


@pytest.mark.parametrize("renderer", ["canvas", "vue"])
@every
def test_nothing_overlaps(file: Path, renderer: str) -> None:
    graph = load(file)
    boxes = {node.get("title", node["type"]) + f" ({node['id']})": box(node, renderer) for node in graph["nodes"]}
    assert [pair for pair in combinations(boxes, 2) if overlap(boxes[pair[0]], boxes[pair[1]])] == []
    groups = [edges(group) for group in graph["groups"]]
    assert not any(overlap(*pair) for pair in combinations(groups, 2))
    for node in graph["nodes"]:
        around = [inside(box(node, renderer), group) for group in groups]
        touched = [overlap(box(node, renderer), group) for group in groups]
        assert sum(around) == sum(touched) == (node["type"] != NOTE), node["type"]


@every
def test_every_node_s_size_was_measured(file: Path) -> None:
    kinds = {node["type"] for node in load(file)["nodes"]} - {NOTE}
    assert kinds <= set(SIZES), "run.py dev sizes"


@every
def test_graph_runs_from_left_to_right_and_fits_a_screen(file: Path) -> None:
    graph = load(file)
    left = {node["id"]: node["pos"][0] for node in graph["nodes"]}
    assert [link for link in graph["links"] if left[link[1]] > left[link[3]]] == []
    assert max(node["pos"][0] + node["size"][0] for node in graph["nodes"]) < WIDEST


@every
def test_note_says_what_to_do_and_which_file_goes_where(file: Path) -> None:
    graph = load(file)
    (note,) = (node for node in graph["nodes"] if node["type"] == NOTE)
    text = note["widgets_values"][0]
    assert file in BLUEPRINTS or (text.startswith(f"## {file.stem}\n") and "**First:**" in text and "**Then:**" in text)
    values = [value for node in graph["nodes"] if node is not note for value in node["widgets_values"]]
    wanted = {name for value in values if isinstance(value, str) for name in MODELS if value.endswith(name)}
    assert all(f"]({MODELS[name].page}) in `models/{MODELS[name].folder}`" in text for name in wanted)
    offers = [model for node in graph["nodes"] for model in node["properties"].get("models", [])]
    assert {model["name"] for model in offers} == {name for name in wanted if name.endswith(OFFERED)}


def test_titles_have_few_beginnings() -> None:
    methods = {"MagicFace", "PersonaMagic", "MagicID", "DIIR"}
    assert {file.stem.split(" - ")[0] for file in USERS} == methods
    assert {file.stem.split(" - ")[0] for file in DEMOS} == {"Demo"}
    assert not [file for file in FILES if set(file.stem) & set('#?%&:*"<>|/\\')]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_thumbnails_are_square_and_bright(file: Path) -> None:
    with Image.open(file.with_suffix(".jpg")) as picture:
        assert picture.size == (SIDE, SIDE)
        assert sum(ImageStat.Stat(picture.convert("L")).mean) > 80


def test_every_users_template_shows_what_a_demo_drew() -> None:
    assert set(TWINS) == {file.stem for file in USERS}
    assert {demo for demo, _ in TWINS.values()} <= {file.stem for file in DEMOS}
