"""Graphs in one box with the few inputs a newcomer needs: the files of ``subgraphs/``, as the front end saves them."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.workflows.discovery import ROOT
from lab.workflows.layout import Prompt, arranged, joined
from lab.workflows.models import offered
from lab.workflows.workflow import ObjectInfo, widget_names

FOLDER = ROOT / "subgraphs"
#: ids that the front end gives to a box's inner ends, and how a prompt's links name its inputs
INPUTS, OUTPUTS, BOX = -10, -20, "the box"
CATEGORY = "Likeness"
_SPACE = uuid.UUID("6f1c1f0e-6d0c-4b51-9a57-0a5f0f6f4f5e")


@dataclass(frozen=True)
class Blueprint:
    """A box.

    Attributes:
        prompt: the graph inside; ``[BOX, i]`` is the box's input number ``i``.
        inputs: name of each input -> its value at first, None for a socket.
        outputs: name of each output -> the link inside it comes from.
        description: shown on hovering over it in the library. note: inside, markdown.
    """

    prompt: Prompt
    inputs: Mapping[str, Any]
    outputs: Mapping[str, list[Any]]
    description: str
    note: str


def blueprint_file(name: str) -> Path:
    """The blueprint called ``name``: that is how the front end lists it."""
    return FOLDER / f"{name}.json"


def box(name: str, blueprint: Blueprint, object_info: ObjectInfo) -> dict[str, Any]:
    """The saved graph of one box and its definition."""
    definition = _definition(name, blueprint, object_info)
    widgets = {key: value for key, value in blueprint.inputs.items() if value is not None}
    number = definition["state"]["lastNodeId"] + 1  # the front end renumbers what is inside where ids meet
    outside = {
        "id": number,
        "type": definition["id"],
        "pos": [0, 0],
        "size": [400, 120 + 60 * len(blueprint.inputs)],
        "flags": {},
        "order": 0,
        "mode": 0,
        "title": name,
        "inputs": [
            {"name": end["name"], "type": end["type"], "link": None}
            | ({"widget": {"name": end["name"]}} if end["name"] in widgets else {})
            for end in definition["inputs"]
        ],
        "outputs": [{"name": end["name"], "type": end["type"], "links": []} for end in definition["outputs"]],
        "properties": {"proxyWidgets": [["-1", key] for key in widgets]},
        "widgets_values": list(widgets.values()),
    }
    return {
        "revision": 0,
        "last_node_id": number,
        "last_link_id": 0,
        "nodes": [outside],
        "links": [],
        "version": 0.4,
        "definitions": {"subgraphs": [definition]},
        "extra": {"BlueprintDescription": blueprint.description},
    }


def _definition(name: str, blueprint: Blueprint, object_info: ObjectInfo) -> dict[str, Any]:
    nodes, links, groups = arranged(blueprint.prompt, object_info, blueprint.note, {BOX: INPUTS})
    _fill_in(nodes, links, list(blueprint.inputs.values()), object_info)
    ids = {key: i + 1 for i, key in enumerate(blueprint.prompt)}
    by_id = {node["id"]: node for node in nodes}
    for slot, (key, output) in enumerate(blueprint.outputs.values()):
        out = by_id[ids[key]]["outputs"][output]
        links.append([len(links) + 1, ids[key], output, OUTPUTS, slot, out["type"]])
        out["links"].append(len(links))
    left = min(node["pos"][0] for node in nodes)
    right = max(node["pos"][0] + node["size"][0] for node in nodes)
    return {
        "id": _id(name),
        "version": 1,
        "state": {"lastGroupId": len(groups), "lastNodeId": len(nodes), "lastLinkId": len(links), "lastRerouteId": 0},
        "revision": 0,
        "config": {},
        "name": name,
        "inputNode": {"id": INPUTS, "bounding": [left - 280, 0, 160, 60 + 20 * len(blueprint.inputs)]},
        "outputNode": {"id": OUTPUTS, "bounding": [right + 120, 0, 160, 60 + 20 * len(blueprint.outputs)]},
        "inputs": _ends(name, blueprint.inputs, links, (1, 2), left - 140),
        "outputs": _ends(name, blueprint.outputs, links, (3, 4), right + 140),
        "widgets": [],
        "nodes": nodes,
        "groups": groups,
        "links": [joined(link) for link in links],
        "extra": {},
        "category": CATEGORY,
        "description": blueprint.description,
    }


def _ends(name: str, names: Mapping[str, Any], links: list[list[Any]], at: tuple[int, int], x: float) -> list[dict]:
    """The box's inputs (``at``: origin of a link) or outputs (its target)."""
    side = INPUTS if at[0] == 1 else OUTPUTS
    ends = []
    for slot, label in enumerate(names):
        own = [link for link in links if link[at[0]] == side and link[at[1]] == slot]
        end = {"id": _id(f"{name}/{side}/{label}"), "name": label, "type": own[0][5]}
        ends.append(end | {"linkIds": [link[0] for link in own], "pos": [x, 20 + 20 * slot]})
    return ends


def _fill_in(nodes: list[dict[str, Any]], links: list[list[Any]], values: list[Any], info: ObjectInfo) -> None:
    """Give the widgets inside that hang on the box's inputs the box's own values."""
    by_id = {node["id"]: node for node in nodes}
    for _, source, slot, target, number, _ in links:
        node = by_id[target]
        names = list(widget_names(info[node["type"]]))
        name = node["inputs"][number]["name"]
        if source == INPUTS and name in names:
            node["widgets_values"][names.index(name)] = values[slot]
            if models := offered({name: values[slot]}):
                node["properties"]["models"] = models


def _id(name: str) -> str:
    return str(uuid.uuid5(_SPACE, name))


def unfolded(saved: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, list[tuple[int, str]]], dict[str, list[Any]]]:
    """The graph inside a blueprint as a workflow of its own, and where the box's sockets lead.

    Returns:
        The workflow; input name -> ``(node id, input)`` it feeds; output name -> ``[node id, slot]`` it shows.
    """
    (inside,) = saved["definitions"]["subgraphs"]
    nodes = {node["id"]: {**node, "inputs": [dict(slot) for slot in node["inputs"]]} for node in inside["nodes"]}
    feeds: dict[str, list[tuple[int, str]]] = {end["name"]: [] for end in inside["inputs"]}
    shows: dict[str, list[Any]] = {}
    links = []
    for link in inside["links"]:
        ends = [link[k] for k in ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")]
        if link["target_id"] == OUTPUTS:
            shows[inside["outputs"][link["target_slot"]]["name"]] = [str(link["origin_id"]), link["origin_slot"]]
        elif link["origin_id"] == INPUTS:
            slot = nodes[link["target_id"]]["inputs"][link["target_slot"]]
            slot["link"] = None
            feeds[inside["inputs"][link["origin_slot"]]["name"]].append((link["target_id"], slot["name"]))
        else:
            links.append(ends)
    return {"nodes": list(nodes.values()), "links": links, "groups": inside["groups"]}, feeds, shows

