"""Writes a graph in the form the front end saves, from a prompt: for making the files of ``workflows/``.

Save the result of :func:`to_ui` with ``json.dump``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lab.workflows.models import offered
from lab.workflows.placing import SIZES, is_link, place, room
from lab.workflows.workflow import ObjectInfo, input_options, widget_names

WIDTH, NOTE_WIDTH, HEAD_GAP = 280, 380, 120
#: what becomes of a seed after a run: no input of the server's, but a value of the front end's
AFTER = "control_after_generate"
#: of a line of the note at that width
LETTERS, LINE = 42, 22

#: key of a node -> what :func:`node` gives
Prompt = dict[str, dict[str, Any]]


def node(kind: str, title: str | None = None, shape: list[int] | None = None, **inputs: Any) -> dict[str, Any]:
    """One node of a prompt, ``shape`` its width and height; a link is ``["key of the other node", output index]``."""
    meta = {key: value for key, value in (("title", title), ("size", shape)) if value is not None}
    return {"class_type": kind, "inputs": inputs, "_meta": meta}


def to_ui(prompt: Prompt, object_info: ObjectInfo, note: str = "") -> dict[str, Any]:
    """Lay a prompt out as a saved graph.

    Args:
        prompt: API format; ``_meta.title`` names a node, ``_meta.size`` sets ``[width, height]``.
        object_info: the server's ``/object_info``.
        note: markdown, put at the head of the graph.
    """
    nodes, links, groups = arranged(prompt, object_info, note)
    return {
        "last_node_id": len(nodes),
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": groups,
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def arranged(
    prompt: Prompt, object_info: ObjectInfo, note: str, outside: Mapping[str, int] | None = None
) -> tuple[list[dict[str, Any]], list[list[Any]], list[dict[str, Any]]]:
    """Nodes with their places, links and groups of a prompt; the note is the last node.

    Args:
        outside: key -> id of what links may come from that is no node of the prompt.
    """
    order = {**{key: index + 1 for index, key in enumerate(prompt)}, **(outside or {})}
    links: list[list[Any]] = []
    nodes = {key: _node(key, prompt, order, object_info, links) for key in prompt}
    by_id = {node["id"]: node for node in nodes.values()}
    for link_id, source, slot, *_ in links:
        if source in by_id:
            by_id[source]["outputs"][slot]["links"].append(link_id)
    head = (NOTE_WIDTH, note_height(note) + HEAD_GAP) if note else (0, 0)
    sizes = {key: room(node["type"], node["size"]) for key, node in nodes.items()}
    positions, groups = place(prompt, sizes, head)
    for key, node in nodes.items():
        node["pos"] = positions[key]
    notes = [_note(len(nodes) + 1, note)] if note else []
    return [*nodes.values(), *notes], links, groups


def _node(
    key: str, prompt: Mapping[str, Any], order: dict[str, int], object_info: ObjectInfo, links: list[list[Any]]
) -> dict[str, Any]:
    entry = prompt[key]
    info = object_info[entry["class_type"]]
    outputs = [
        {"name": name, "type": kind, "links": [], "slot_index": i}
        for i, (name, kind) in enumerate(zip(info["output_name"], info["output"], strict=True))
    ]
    meta = entry.get("_meta", {})
    node = {
        "id": order[key],
        "type": entry["class_type"],
        "flags": {},
        "order": order[key] - 1,
        "mode": 0,
        "inputs": _slots(key, entry, order, info, object_info, prompt, links),
        "outputs": outputs,
        "properties": _properties(entry),
        "widgets_values": _values(entry["inputs"], info),
    }
    if "title" in meta:
        node["title"] = meta["title"]
    node["size"] = _size(entry["class_type"], meta.get("size"))
    return node


def joined(link: list[Any]) -> dict[str, Any]:
    """A link in the form it has inside a subgraph."""
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    return dict(zip(names, link, strict=True))


def _properties(entry: Mapping[str, Any]) -> dict[str, Any]:
    models = offered(entry["inputs"]) if entry["class_type"].endswith(("Loader", "LoaderSimple")) else []
    return {"Node name for S&R": entry["class_type"], **({"models": models} if models else {})}


def _slots(
    key: str,
    entry: Mapping[str, Any],
    order: dict[str, int],
    info: Mapping[str, Any],
    object_info: ObjectInfo,
    prompt: Mapping[str, Any],
    links: list[list[Any]],
) -> list[dict[str, Any]]:
    widgets = set(widget_names(info))
    declared = {name: kind for name, kind, _ in input_options(info)}
    given = [name for name, value in entry["inputs"].items() if is_link(value) and name not in declared]
    slots = []
    for name in [*declared, *given]:
        value = entry["inputs"].get(name)
        if name in widgets and not is_link(value):
            continue
        kind = "COMBO" if isinstance(declared.get(name), list) else declared.get(name)
        slot: dict[str, Any] = {"name": name, "type": kind, "link": None}
        if is_link(value):
            if value[0] in prompt:
                kind = object_info[prompt[value[0]]["class_type"]]["output"][value[1]]
            links.append([len(links) + 1, order[value[0]], value[1], order[key], len(slots), kind])
            slot.update(link=len(links), type=kind)
        if name in widgets:
            slot["widget"] = {"name": name}
        slots.append(slot)
    return slots


def _values(inputs: Mapping[str, Any], info: Mapping[str, Any]) -> list[Any]:
    options = {name: (kind, given) for name, kind, given in input_options(info)}
    values: list[Any] = []
    last = ""
    for name in widget_names(info):
        if name is None:
            values.append("image" if options[last][1].get("image_upload") else inputs.get(AFTER, "fixed"))
            continue
        last = name
        value = inputs.get(name)
        values.append(_default(*options[name]) if value is None or is_link(value) else value)
    return values


def _default(kind: Any, options: Mapping[str, Any]) -> Any:
    if "default" in options:
        return options["default"]
    if isinstance(kind, list) or options.get("options"):
        return next(iter(kind if isinstance(kind, list) else options["options"]), "")
    return {"INT": 0, "FLOAT": 0.0, "BOOLEAN": False}.get(kind, "")


def _size(kind: str, shape: list[int] | None) -> list[int]:
    """Saved size: the shape asked for, but at least what the Vue renderer needs with its advanced inputs folded.

    Of a node that no template has nothing was measured: it gets the shape asked for.
    """
    width, height = shape or (WIDTH, 0)
    return [width, max(height, SIZES.get(kind, {}).get("vue", 0))]


def note_height(text: str) -> int:
    """Height of a note with this text, in the canvas' units."""
    shown = (line.split("](", 1)[0] for line in text.splitlines())
    return 50 + LINE * sum(1 + len(line) // LETTERS for line in shown)


def _note(node_id: int, text: str) -> dict[str, Any]:
    return {
        "id": node_id,
        "type": "MarkdownNote",
        "pos": [0, 0],
        "size": [NOTE_WIDTH, note_height(text)],
        "flags": {},
        "order": node_id - 1,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "title": "Read me first",
        "properties": {},
        "widgets_values": [text],
        "color": "#432",
        "bgcolor": "#653",
    }
