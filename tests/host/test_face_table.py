"""The face table under DIIR Face Repair in the real front end: what it shows, and that its ticks are the choice."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.workflows.browser import READY, SETTINGS, Page, find_chromium
from lab.workflows.files import workflow_file
from lab.workflows.layout import node, to_ui
from lab.workflows.server import Server

WORKFLOW = workflow_file("Demo - DIIR, faces of two people")
NODE = "window.app.graph.nodes.find((node) => node.type === 'LikenessDiirFaceRepair')"
WHICH = f"{NODE}.widgets.find((widget) => widget.name === 'which').value"
BOXES = "[...document.querySelectorAll('.likeness-faces input[type=checkbox]')]"


def quick() -> dict:
    """The workflow of two people with few steps: the table is meant here, not the likeness."""
    graph = json.loads(WORKFLOW.read_text("utf-8"))
    for one in graph["nodes"]:
        if one["type"] == "KSampler":
            one["widgets_values"][2] = 6
        if one["type"] == "LikenessDiirFaceRepair":
            one["widgets_values"][3] = 0.1  # strength
    return graph


@pytest.fixture(scope="module", params=[False, True], ids=["canvas", "vue"])
def page(server: Server, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The front end in each of its renderers, the workflow in it and run once; the tests then use it in their order."""
    program = find_chromium()
    if program is None:
        pytest.skip("FACE TABLE NOT TESTED: no Chromium, or no Playwright to drive it: the extra 'browser'")
    server.post("/settings", {**SETTINGS, "Comfy.VueNodes.Enabled": request.param})
    with Page(program, tmp_path_factory.mktemp("profile")) as tab:
        tab.open(server.url)
        tab.wait_for(READY, 240)
        time.sleep(2)
        tab.run(f"window.app.loadGraphData({json.dumps(quick())}, true, true).then(() => true)")
        time.sleep(1)
        tab.run("(window.app.extensionManager?.command?.execute('Comfy.Canvas.FitView'), true)")
        tab.wait_for("document.querySelector('.likeness-faces')", 30)
        tab.run("window.app.queuePrompt(0).then(() => true)")
        tab.wait_for("document.querySelectorAll('.likeness-faces tr').length > 0", 180)
        yield tab
    server.post("/settings", {"Comfy.VueNodes.Enabled": False})


def test_the_table_shows_the_faces_and_writes_the_choice(page: Page, server: Server, tmp_path: Path) -> None:
    rows = page.run("[...document.querySelectorAll('.likeness-faces tr')].map((row) => row.textContent)")
    assert len(rows) == 2 and all("px" in row for row in rows)
    assert {word for row in rows for word in ("woman", "man") if word in row} == {"woman", "man"}
    page.wait_for("[...document.querySelectorAll('.likeness-faces img')].every((img) => img.naturalWidth > 0)", 30)
    assert page.run("document.querySelectorAll('.likeness-faces img').length") == 4
    assert page.run(f"{BOXES}.map((box) => box.checked)") == [True, True]
    table = "document.querySelector('.likeness-faces')"
    page.wait_for(f"{table}.scrollHeight <= {table}.clientHeight + 1", 10)  # the node has grown: every face is in view
    _screenshot(page, server, tmp_path)

    page.run(f"({BOXES}[0].click(), true)")
    assert page.run(WHICH) == "2"
    page.run(f"({BOXES}[1].click(), true)")
    assert page.run(WHICH) == "none"
    page.run(f"({BOXES}[0].click(), true)")
    assert page.run(WHICH) == "1"

    saved = page.run("window.app.graph.serialize()")
    ours = next(node for node in saved["nodes"] if node["type"] == "LikenessDiirFaceRepair")
    before = next(node for node in quick()["nodes"] if node["type"] == "LikenessDiirFaceRepair")
    expected = list(before["widgets_values"])
    expected[1] = "1"
    assert ours["widgets_values"] == expected  # the table itself is not saved
    queued = page.run("window.app.graphToPrompt().then((result) => result.output)")
    inputs = next(node["inputs"] for node in queued.values() if node["class_type"] == "LikenessDiirFaceRepair")
    assert inputs["which"] == "1" and "faces_table" not in inputs

    page.run(f"window.app.loadGraphData({json.dumps(saved)}, true, true).then(() => true)")
    time.sleep(1)
    assert page.run(WHICH) == "1"
    assert page.run("document.querySelectorAll('.likeness-faces').length") == 1
    page.run("window.app.queuePrompt(0).then(() => true)")
    page.wait_for("document.querySelectorAll('.likeness-faces tr').length > 0", 180)
    assert page.run(f"{BOXES}.map((box) => box.checked)") == [True, False]
    assert page.run("document.querySelectorAll('.likeness-faces img').length") == 3
    page.run("([...document.querySelectorAll('.likeness-faces button')].at(-1).click(), true)")
    assert page.run(WHICH) == ""
    assert [error for error in page.errors if "likeness" in json.dumps(error).lower()] == []


def test_detect_faces_has_the_table_too(page: Page, object_info: dict) -> None:
    """Two drawn pictures in a batch: faces are named by picture and number."""
    drawn = {"identity": 8, "held_out": True, "shot": "portrait", "scene": "studio", "style": "flat",
             "garment": "shirt", "garment_colour": "white", "accessory": "none", "accessory_colour": "red",
             "expression": "none", "layout": 0, "size": 256}  # fmt: skip
    graph = {
        "first": node("LikenessMiniatureSample", **drawn),
        "second": node("LikenessMiniatureSample", **{**drawn, "identity": 20}),
        "batch": node("ImageBatch", image1=["first", 0], image2=["second", 0]),
        "models": node("LikenessFaceModels", provider="miniature (drawn people)"),
        "detect": node("LikenessDetectFaces", None, [420, 500], image=["batch", 0], face_models=["models", 0]),
        "show": node("PreviewImage", images=["detect", 1]),
    }
    page.run(f"window.app.loadGraphData({json.dumps(to_ui(graph, object_info))}, true, true).then(() => true)")
    time.sleep(1)
    page.run("(window.app.extensionManager?.command?.execute('Comfy.Canvas.FitView'), true)")
    page.run("window.app.queuePrompt(0).then(() => true)")
    page.wait_for("document.querySelectorAll('.likeness-faces tr').length === 2", 120)
    page.run(f"({BOXES}[0].click(), true)")
    which = "window.app.graph.nodes.find((node) => node.type === 'LikenessDetectFaces').widgets"
    assert page.run(f"{which}.find((widget) => widget.name === 'which').value") == "2:1"


def _screenshot(page: Page, server: Server, folder: Path) -> None:
    folder = Path(os.environ.get("LIKENESS_PICTURES", folder))
    folder.mkdir(parents=True, exist_ok=True)
    name = "vue" if page.run("Boolean(document.querySelector('.lg-node'))") else "canvas"
    page.screenshot(folder / f"face_table_{name}_{server.host.name}.png")
