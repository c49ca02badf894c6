"""The pack loads as ComfyUI loads it, and tells the front end all it should."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import urlopen

import pytest

from lab.workflows.server import PACK_FOLDER, Server
from lab.workflows.workflow import input_options

PREFIX = "Likeness"


def declared_ids(root: Path) -> set[str]:
    """Every ``node_id="..."`` written in ``nodes/``, read without importing anything."""
    found = set()
    for file in (root / "nodes").glob("*_nodes.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "node_id":
                found.add(node.value.value)
    return found


@pytest.fixture(scope="session")
def ours(object_info: dict[str, Any]) -> dict[str, Any]:
    """The pack's nodes as the server describes them."""
    return {name: info for name, info in object_info.items() if name.startswith(PREFIX)}


def test_pack_is_imported_without_a_warning(server: Server) -> None:
    log = server.log()
    imported = [line for line in log.splitlines() if PACK_FOLDER in line]
    assert imported, "the log does not mention the pack"
    assert not [line for line in imported if "IMPORT FAILED" in line or "Cannot import" in line], log[-4000:]
    assert not re.findall(r".*Likeness: the nodes of.*", log), log[-4000:]


def test_every_declared_node_is_offered(pack_root: Path, ours: dict[str, Any]) -> None:
    ids = declared_ids(pack_root)
    assert ids
    assert ids == set(ours)


def test_every_input_has_a_tooltip(ours: dict[str, Any]) -> None:
    bare = [
        f"{name}.{key}"
        for name, info in ours.items()
        for key, _, options in input_options(info)
        if not options.get("tooltip")
    ]
    assert not bare


def test_every_output_has_a_tooltip_and_every_node_a_description(ours: dict[str, Any]) -> None:
    bare = [name for name, info in ours.items() if not info["description"] or not all(info["output_tooltips"] or [])]
    assert not bare


def test_every_node_is_in_our_menu(ours: dict[str, Any]) -> None:
    assert [name for name, info in ours.items() if not info["category"].startswith("Likeness/")] == []


def test_every_number_has_a_range(ours: dict[str, Any]) -> None:
    open_ended = [
        f"{name}.{key}"
        for name, info in ours.items()
        for key, kind, options in input_options(info)
        if kind in ("INT", "FLOAT") and not {"min", "max", "default"} <= set(options)
    ]
    assert not open_ended


def test_every_node_has_a_help_page_in_both_languages(server: Server, ours: dict[str, Any]) -> None:
    pages = [path for name in ours for path in (f"docs/{name}.md", f"docs/{name}/zh.md")]
    assert not [path for path in pages if not page(server, path).startswith(b"#")]


def page(server: Server, path: str) -> bytes:
    """A file of the pack's web folder as the front end gets it; empty when the server has none."""
    try:
        with urlopen(f"{server.url}/extensions/{quote(PACK_FOLDER)}/{path}", timeout=30) as answer:
            return answer.read()
    except HTTPError:
        return b""


def test_workflows_are_listed_as_templates(server: Server, pack_root: Path) -> None:
    files = {file.stem for file in (pack_root / "workflows").glob("*.json")}
    listed = server.get("/workflow_templates").get(PACK_FOLDER, [])
    assert files
    assert set(listed) == files
