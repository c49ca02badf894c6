"""Every shipped workflow opens in ComfyUI's real front end, in a headless Chromium."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.workflows.blueprint import FOLDER, unfolded
from lab.workflows.browser import READY, SETTINGS, Page, find_chromium
from lab.workflows.files import FILES
from lab.workflows.server import PACK_FOLDER, Server
from lab.workflows.workflow import to_api


@pytest.fixture(scope="module")
def page(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The front end of the running server, loaded and past its first-start screens."""
    program = find_chromium()
    if program is None:
        pytest.skip("FRONT END NOT TESTED: no Chromium, or no Playwright to drive it: the extra 'browser'")
    server.post("/settings", SETTINGS)
    with Page(program, tmp_path_factory.mktemp("profile")) as tab:
        tab.open(server.url)
        tab.wait_for(READY, 240)
        time.sleep(2)
        yield tab


@pytest.fixture
def opened(page: Page, request: pytest.FixtureRequest) -> tuple[Page, dict[str, Any]]:
    """The tab with one workflow in it, and that workflow."""
    workflow = json.loads(request.param.read_text("utf-8"))
    page.errors.clear()
    page.run(f"window.app.loadGraphData({json.dumps(workflow)}, true, true).then(() => true)")
    time.sleep(1)
    return page, workflow


every_workflow = pytest.mark.parametrize("opened", FILES, indirect=True, ids=lambda file: file.stem)


@every_workflow
def test_workflow_opens_with_every_node_known(opened, server: Server, request, tmp_path: Path) -> None:
    page, workflow = opened
    known = "!!window.LiteGraph.registered_node_types[node.type]"
    shown = page.run(f"window.app.graph.nodes.map((node) => [String(node.id), node.type, {known}])")
    assert {str(node["id"]) for node in workflow["nodes"]} == {node for node, _, _ in shown}
    assert [kind for _, kind, known in shown if not known] == []
    ours = [error for error in page.errors if PACK_FOLDER in json.dumps(error)]
    assert ours == []
    picture = screenshot(page, server, request.node.callspec.id.split("-")[-1], tmp_path)
    assert picture.stat().st_size > 20_000


@every_workflow
def test_every_link_survives(opened) -> None:
    page, workflow = opened
    assert page.run("[...window.app.graph.links.values()].length") == len(workflow["links"])


@every_workflow
def test_front_end_queues_what_the_host_tests_run(opened, object_info: dict[str, Any]) -> None:
    """The conversion that the other tests rely on is the front end's own."""
    page, workflow = opened
    queued = page.run("window.app.graphToPrompt().then((result) => result.output)")
    expected = to_api(workflow, object_info)
    assert {key: node["class_type"] for key, node in queued.items()} == {
        key: node["class_type"] for key, node in expected.items()
    }
    for key, node in expected.items():
        assert node["inputs"] == {name: queued[key]["inputs"].get(name) for name in node["inputs"]}, node["class_type"]


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.json")), ids=lambda file: file.stem.split(" (")[0])
def test_front_end_unfolds_a_blueprint_likewise(page: Page, object_info: dict[str, Any], file: Path) -> None:
    saved = json.loads(file.read_text("utf-8"))
    page.run(f"window.app.loadGraphData({json.dumps(saved)}, true, true).then(() => true)")
    time.sleep(1)
    queued = page.run("window.app.graphToPrompt().then((result) => result.output)")
    inside = {key.rpartition(":")[2]: node for key, node in queued.items()}
    expected = to_api(unfolded(saved)[0], object_info)
    assert {key: node["class_type"] for key, node in inside.items()} == {
        key: node["class_type"] for key, node in expected.items()
    }
    for key, node in expected.items():
        given = {name: value for name, value in node["inputs"].items() if not isinstance(value, list)}
        assert given == {name: inside[key]["inputs"].get(name) for name in given}, node["class_type"]


def screenshot(page: Page, server: Server, name: str, folder: Path) -> Path:
    """Fit the graph to the window and save what is seen, where ``LIKENESS_PICTURES`` says."""
    folder = Path(os.environ.get("LIKENESS_PICTURES", folder))
    folder.mkdir(parents=True, exist_ok=True)
    page.run("(window.app.extensionManager?.command?.execute('Comfy.Canvas.FitView'), true)")
    time.sleep(1.5)
    file = folder / f"front_end_{name}_{server.host.name}.png"
    page.screenshot(file)
    return file
