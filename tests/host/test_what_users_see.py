"""What a newcomer looks at: the template browser, templates in both renderers, an error, Chinese, a page of help.

``LIKENESS_PICTURES=folder`` keeps screenshots of it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from lab.workflows.browser import READY, SETTINGS, Page, find_chromium
from lab.workflows.discovery import ROOT
from lab.workflows.files import FILES, workflow_file
from lab.workflows.server import PACK_FOLDER, Server

SLOW = 600  # seconds that the front end may take where the machine does other things
SHOWN = ("Demo - MagicFace, two people", "Demo - PersonaMagic, learn a person", "MagicFace - one person")
CANVAS, VUE, CHINESE = ("canvas", False, "en"), ("vue", True, "en"), ("chinese", True, "zh")
HELPED = "LikenessMagicFaceApply"
#: what each renderer takes of the screen for a node, in the canvas' units
BOXES = {
    "canvas": "window.app.graph.nodes.map((node) => [...node.getBounding()])",
    "vue": """window.app.graph.nodes.map((node) => {
      const box = document.querySelector(`[data-node-id="${node.id}"]`);
      const title = window.LiteGraph.NODE_TITLE_HEIGHT;
      return [node.pos[0], node.pos[1] - title, box.offsetWidth, box.offsetHeight];
    })""",
}
CARDS = "[...document.querySelectorAll('[data-testid^=\"template-workflow-\"]')]"


def on(*views: tuple[str, bool, str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", views, indirect=True, ids=lambda view: view[0], scope="module")


@pytest.fixture(scope="module")
def page(server: Server, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The front end with one renderer and language."""
    program = find_chromium()
    if program is None:
        pytest.skip("FRONT END NOT LOOKED AT: no Chromium, or no Playwright to drive it: the extra 'browser'")
    _, vue, language = request.param
    server.post("/settings", {**SETTINGS, "Comfy.VueNodes.Enabled": vue, "Comfy.Locale": language})
    with Page(program, tmp_path_factory.mktemp("profile")) as tab:
        tab.open(server.url)
        tab.wait_for(READY, SLOW)
        time.sleep(2)
        yield tab
        told = map(json.dumps, tab.errors)
        asked = f"/{HELPED}/en.md"  # where the front end looks before it takes the page beside that folder
        assert [error for error in told if PACK_FOLDER in error and asked not in error] == []
    server.post("/settings", {"Comfy.VueNodes.Enabled": False, "Comfy.Locale": "en"})


@pytest.fixture
def keep(page: Page, server: Server, tmp_path: Path) -> Any:
    """Saves what the page shows under a name."""
    folder = Path(os.environ.get("LIKENESS_PICTURES", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return lambda name: page.screenshot(folder / f"{name}_{server.host.name}.png")


def load(page: Page, graph: dict[str, Any]) -> None:
    page.run(f"window.app.loadGraphData({json.dumps(graph)}, true, true).then(() => true)")
    time.sleep(1)
    page.run("(window.app.extensionManager?.command?.execute('Comfy.Canvas.FitView'), true)")
    time.sleep(2)


@on(CANVAS, VUE)
@pytest.mark.parametrize("name", SHOWN)
def test_no_node_of_a_template_lies_over_another(page: Page, keep: Any, name: str) -> None:
    load(page, json.loads(workflow_file(name).read_text("utf-8")))
    renderer = "vue" if page.run("Boolean(document.querySelector('.lg-node'))") else "canvas"
    keep(f"{name}_{renderer}")
    boxes = page.run(BOXES[renderer])
    assert len(boxes) == page.run("window.app.graph.nodes.length")
    for (ax, ay, aw, ah), (bx, by, bw, bh) in combinations(boxes, 2):
        assert ax + aw <= bx or bx + bw <= ax or ay + ah <= by or by + bh <= ay


@on(CANVAS)
def test_an_error_names_its_node_and_what_mends_it(page: Page, keep: Any) -> None:
    graph = json.loads(workflow_file("Demo - MagicFace, one person").read_text("utf-8"))
    for node in graph["nodes"]:
        if node["type"] == "LikenessMagicFaceReference":
            node["widgets_values"][0] = "elephant"  # the concept, which the prompt does not name
    load(page, graph)
    page.run("window.app.queuePrompt(0).then(() => true)")
    page.wait_for("window.app.lastExecutionError", SLOW)
    page.wait_for("document.body.innerText.includes('MagicFace Apply')", SLOW)
    time.sleep(2)
    keep("error")
    told = page.run("(({node_type, exception_message}) => [node_type, exception_message])"
                    "(window.app.lastExecutionError)")  # fmt: skip
    assert told[0] == HELPED
    assert told[1].startswith("MagicFace Apply: prompt: got ") and "Write 'elephant' into the prompt" in told[1]


@on(CHINESE)
def test_nodes_speak_chinese(page: Page, keep: Any) -> None:
    load(page, json.loads(workflow_file("Demo - MagicFace, one person").read_text("utf-8")))
    keep("chinese")
    expected = json.loads((ROOT / "locales/zh/nodeDefs.json").read_text("utf-8"))[HELPED]
    shown = page.run(f"""(() => {{
      const node = window.app.graph.nodes.find((node) => node.type === "{HELPED}");
      return [node.title, ...node.inputs.map((input) => input.label ?? input.localized_name ?? input.name)];
    }})()""")
    assert shown[0] == expected["display_name"]
    assert {expected["inputs"][name]["name"] for name in ("model", "references")} <= set(shown)


@on(CHINESE)
def test_the_face_table_speaks_chinese(page: Page) -> None:
    load(page, json.loads(workflow_file("Demo - DIIR, a small face repaired").read_text("utf-8")))
    assert page.run("document.querySelector('.likeness-faces').textContent").startswith("运行后")


@on(CANVAS, CHINESE)
def test_a_page_of_help_shows_its_picture(page: Page, keep: Any, request: pytest.FixtureRequest) -> None:
    _, _, language = request.node.callspec.params["page"]
    page.run(f"""window.app.loadGraphData({{nodes: [], links: [], version: 0.4}}).then(() => {{
      const node = window.LiteGraph.createNode("{HELPED}");
      node.pos = [300, 300];
      window.app.graph.add(node);
      window.app.canvas.selectNode(node);
    }})""")
    page.wait_for("document.querySelector('[data-testid=info-button]')", SLOW)
    page.run("(document.querySelector('[data-testid=info-button]').click(), true)")
    page.wait_for("document.querySelector('.node-help-content img')?.naturalWidth > 0", SLOW)
    page.run("(document.querySelector('.node-help-content img').scrollIntoView({block: 'center'}), true)")
    keep(f"help_{language}")
    named = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text("utf-8"))[HELPED]["display_name"]
    assert page.run("document.querySelector('.node-help-content h1').textContent") == named


@on(CANVAS)
def test_template_browser_shows_whole_titles_and_every_thumbnail(page: Page, keep: Any) -> None:
    """The last test of its page: the browser lies over the graph."""
    category = f"[...document.querySelectorAll('[role=dialog] *')].find((e) => !e.children.length && {_ours('en')})"
    page.run("(window.app.extensionManager.command.execute('Comfy.BrowseTemplates'), true)")
    page.wait_for(category, SLOW)
    page.run(f"({category}.click(), true)")
    page.wait_for(f"{CARDS}.some((card) => card.textContent.includes('Demo - MagicID, one person'))", SLOW)
    keep("template_browser")
    for number in range(len(FILES)):  # cards, and their pictures, come as one scrolls down
        card = f"{CARDS}[{number}]"
        page.wait_for(f"({card}?.scrollIntoView(), {card}?.querySelector('img')?.naturalWidth > 0)", SLOW)
    titles = page.run(f"{CARDS}.map((card) => card.querySelector('h3').textContent.trim())")
    assert sorted(titles) == [file.stem for file in FILES]
    cut = page.run(f"{CARDS}.map((card) => card.querySelector('h3')).filter((e) => e.scrollHeight > e.clientHeight)"
                   ".map((e) => e.textContent)")  # fmt: skip
    assert cut == []


def _ours(language: str) -> str:
    texts = json.loads((ROOT / "locales" / language / "main.json").read_text("utf-8"))
    return f"e.textContent.trim() === {json.dumps(texts['templateWorkflows']['category'][PACK_FOLDER])}"
