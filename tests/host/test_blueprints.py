"""The blueprints of ``subgraphs/``: the server lists them, and what is in the boxes runs (here on the miniature)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lab.workflows.blueprint import FOLDER, unfolded
from lab.workflows.layout import node
from lab.workflows.magicface_workflows import PERSON
from lab.workflows.server import PACK_FOLDER, Server
from lab.workflows.workflow import to_api

FILES = sorted(FOLDER.glob("*.json"))
PICTURE = {**PERSON, "size": 128}


def on_the_miniature(file: Path, object_info: dict[str, Any]) -> dict[str, Any]:
    """The prompt inside a box with drawn pictures at its sockets, the small model as its checkpoint, and few steps."""
    graph, feeds, shows = unfolded(json.loads(file.read_text("utf-8")))
    prompt = to_api(graph, object_info)
    changes = {"KSampler": {"steps": 2}, "EmptyLatentImage": {"width": 128, "height": 128}}
    for entry in prompt.values():
        if entry["class_type"] == "CheckpointLoaderSimple":
            entry |= {"class_type": "LikenessMiniatureLoader", "inputs": {}}
        entry["inputs"] |= changes.get(entry["class_type"], {})
        if entry["class_type"] == "LikenessDiirFaceRepair":
            entry["inputs"] |= {"strength": 0.1}
    for name, targets in feeds.items():
        for key, slot in targets:
            if slot == "image":
                prompt[f"into {name}"] = node("LikenessMiniatureSample", **PICTURE)
                prompt[str(key)]["inputs"][slot] = [f"into {name}", 0]
    return prompt | {f"out of {name}": node("PreviewImage", images=source) for name, source in shows.items()}


def test_server_lists_each_as_ours(server: Server) -> None:
    listed = server.get("/global_subgraphs")
    ours = {key: entry for key, entry in listed.items() if entry["info"]["node_pack"] == f"custom_nodes.{PACK_FOLDER}"}
    assert sorted(entry["name"] for entry in ours.values()) == [file.stem for file in FILES]
    for key, entry in ours.items():
        saved = json.loads(server.get(f"/global_subgraphs/{key}")["data"])
        (inside,) = saved["definitions"]["subgraphs"]
        assert saved["nodes"][0]["type"] == inside["id"] and inside["name"] == entry["name"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem.split(" (")[0])
def test_what_is_in_the_box_draws(server: Server, object_info: dict[str, Any], file: Path) -> None:
    pictures = server.pictures(server.run_prompt(on_the_miniature(file, object_info)))
    assert pictures and all(picture.std() > 1 for picture in pictures)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem.split(" (")[0])
def test_box_has_few_inputs_and_only_the_checkpoint_is_the_users(file: Path) -> None:
    saved = json.loads(file.read_text("utf-8"))
    (outside,) = saved["nodes"]
    sockets = [slot["name"] for slot in outside["inputs"] if "widget" not in slot]
    widgets = [slot["name"] for slot in outside["inputs"] if "widget" in slot]
    assert 1 <= len(sockets) <= 2 and len(sockets) + len(widgets) <= 4
    assert [name for _, name in outside["properties"]["proxyWidgets"]] == widgets
    assert len(outside["widgets_values"]) == len(widgets) and "checkpoint" in widgets
