"""Writes a graph in the form the front end saves, from a prompt: for making the files of ``workflows/``.

Columns follow the flow of data and nothing overlaps. Save the result of :func:`to_ui` with ``json.dump``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from lab.workflows.workflow import ObjectInfo, input_options, widget_names

WIDTH, ROW, GAP = 320, 26, 50


def node(kind: str, title: str | None = None, shape: list[int] | None = None, **inputs: Any) -> dict[str, Any]:
    """One node of a prompt, ``shape`` its width and height; a link is ``["key of the other node", output index]``."""
    meta = {key: value for key, value in (("title", title), ("size", shape)) if value is not None}
    return {"class_type": kind, "inputs": inputs, "_meta": meta}


def to_ui(
    prompt: Mapping[str, Mapping[str, Any]], object_info: ObjectInfo, notes: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Lay a prompt out as a saved graph.

    Args:
        prompt: API format; ``_meta.title`` names a node, ``_meta.size`` sets ``[width, height]``.
        object_info: the server's ``/object_info``.
        notes: markdown texts, put above the graph.
    """
    order = {key: index + 1 for index, key in enumerate(prompt)}
    links: list[list[Any]] = []
    nodes = [_node(key, prompt, order, object_info, links) for key in prompt]
    by_id = {node["id"]: node for node in nodes}
    for link_id, source, slot, *_ in links:
        by_id[source]["outputs"][slot]["links"].append(link_id)
    _place(nodes, _depths(prompt), order)
    nodes += [_note(len(order) + 1 + i, text, i) for i, text in enumerate(notes)]
    return {
        "last_node_id": len(nodes),
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


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
        "properties": {"Node name for S&R": entry["class_type"]},
        "widgets_values": _values(entry["inputs"], info),
    }
    if "title" in meta:
        node["title"] = meta["title"]
    node["size"] = meta.get("size") or _size(node, info)
    return node


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
    given = [name for name, value in entry["inputs"].items() if _is_link(value) and name not in declared]
    slots = []
    for name in [*declared, *given]:
        value = entry["inputs"].get(name)
        if name in widgets and not _is_link(value):
            continue
        kind = declared.get(name)
        slot: dict[str, Any] = {"name": name, "type": kind, "link": None}
        if _is_link(value):
            source = prompt[value[0]]["class_type"]
            kind = object_info[source]["output"][value[1]]
            links.append([len(links) + 1, order[value[0]], value[1], order[key], len(slots), kind])
            slot.update(link=len(links), type=kind)
        if name in widgets:
            slot["widget"] = {"name": name}
        slots.append(slot)
    return slots


def _is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)


def _values(inputs: Mapping[str, Any], info: Mapping[str, Any]) -> list[Any]:
    options = {name: (kind, given) for name, kind, given in input_options(info)}
    values: list[Any] = []
    last = ""
    for name in widget_names(info):
        if name is None:
            values.append("image" if options[last][1].get("image_upload") else "fixed")
            continue
        last = name
        value = inputs.get(name)
        values.append(_default(*options[name]) if value is None or _is_link(value) else value)
    return values


def _default(kind: Any, options: Mapping[str, Any]) -> Any:
    if "default" in options:
        return options["default"]
    choices = kind if isinstance(kind, list) else options.get("options")
    return choices[0] if choices else {"INT": 0, "FLOAT": 0.0, "BOOLEAN": False}.get(kind, "")


def _size(node: Mapping[str, Any], info: Mapping[str, Any]) -> list[int]:
    rows = max(len(node["inputs"]), len(node["outputs"])) + len(node["widgets_values"])
    multiline = sum(bool(options.get("multiline")) for _, _, options in input_options(info))
    picture = 260 if node["type"] in ("SaveImage", "PreviewImage", "LoadImage") else 0
    return [WIDTH, 40 + ROW * rows + 100 * multiline + picture]


def _depths(prompt: Mapping[str, Any]) -> dict[str, int]:
    @cache
    def depth(key: str) -> int:
        sources = [value[0] for value in prompt[key]["inputs"].values() if _is_link(value)]
        return 1 + max(map(depth, sources)) if sources else 0

    return {key: depth(key) for key in prompt}


def _place(nodes: list[dict[str, Any]], depths: Mapping[str, int], order: Mapping[str, int]) -> None:
    """Columns as wide as their widest node, nodes one under the other."""
    column = dict(zip((node["id"] for node in nodes), (depths[key] for key in order), strict=True))
    columns = range(max(depths.values()) + 1)
    widest = [max(node["size"][0] for node in nodes if column[node["id"]] == i) for i in columns]
    left = [sum(widest[:i]) + i * GAP * 2 for i in range(len(widest))]
    bottom: dict[int, int] = {}
    for node in nodes:
        i = column[node["id"]]
        y = bottom.get(i, 0)
        node["pos"] = [left[i], y]
        bottom[i] = y + node["size"][1] + GAP


def _note(node_id: int, text: str, index: int) -> dict[str, Any]:
    height = 60 + 22 * (text.count("\n") + 1 + len(text) // 60)
    return {
        "id": node_id,
        "type": "MarkdownNote",
        "pos": [index * 520, -height - 60],
        "size": [480, height],
        "flags": {},
        "order": node_id - 1,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "properties": {},
        "widgets_values": [text],
        "color": "#432",
        "bgcolor": "#653",
    }
