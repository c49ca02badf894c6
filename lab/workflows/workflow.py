"""Between the two JSON forms of a ComfyUI graph: what the front end saves, and what the server executes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
#: Nodes that exist in the front end only.
DECORATION = {"Note", "MarkdownNote"}
MUTED, BYPASSED = 2, 4

ObjectInfo = Mapping[str, Mapping[str, Any]]


class ConversionError(ValueError):
    """The saved graph cannot be executed as it is."""


def to_api(workflow: Mapping[str, Any], object_info: ObjectInfo) -> dict[str, dict[str, Any]]:
    """Convert a saved graph into a prompt, as the front end does when the user presses Run.

    Args:
        workflow: the JSON of ``workflows/*.json``.
        object_info: the server's ``/object_info``.

    Raises:
        ConversionError: a node type is unknown to the server, or its widget values do not fit its inputs.
    """
    graph = _Graph(workflow)
    return {
        str(node["id"]): {
            "class_type": node["type"],
            "inputs": _inputs(node, graph, object_info),
            "_meta": {"title": node.get("title", node["type"])},
        }
        for node in workflow["nodes"]
        if node["type"] not in DECORATION | {"Reroute"} and node.get("mode", 0) not in (MUTED, BYPASSED)
    }


class _Graph:
    """Nodes and links by id, with reroutes and bypassed nodes followed to where a value comes from."""

    def __init__(self, workflow: Mapping[str, Any]):
        self.nodes = {node["id"]: node for node in workflow["nodes"]}
        self.links = {link[0]: (link[1], link[2], link[5]) for link in workflow["links"]}

    def source(self, link_id: int) -> list[Any] | None:
        """``[node id, slot]`` of a link's real source, None when it comes from a muted node or from nowhere."""
        node_id, slot, kind = self.links[link_id]
        node = self.nodes[node_id]
        if node.get("mode", 0) == MUTED:
            return None
        if node["type"] != "Reroute" and node.get("mode", 0) != BYPASSED:
            return [str(node_id), slot]
        inputs = node.get("inputs", [])
        same_place = inputs[slot : slot + 1]  # the front end first looks at the input of the output's own number
        through = [i["link"] for i in [*same_place, *inputs] if i.get("link") is not None]
        through = [link for link in through if node["type"] == "Reroute" or self.links[link][2] == kind]
        return self.source(through[0]) if through else None


def _inputs(node: Mapping[str, Any], graph: _Graph, object_info: ObjectInfo) -> dict[str, Any]:
    if node["type"] not in object_info:
        raise ConversionError(f"node {node['id']}: the server has no '{node['type']}'")
    values = _widget_values(node, object_info[node["type"]])
    for slot in node.get("inputs", []):
        if slot.get("link") is not None:
            source = graph.source(slot["link"])
            if source is not None:
                values[slot["name"]] = source
    return values


def _widget_values(node: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
    saved = node.get("widgets_values") or []
    if isinstance(saved, Mapping):
        return dict(saved)
    names = list(widget_names(info))
    if len(saved) != len(names):
        raise ConversionError(f"node {node['id']} ({node['type']}): {len(saved)} widget values for the widgets {names}")
    return {name: value for name, value in zip(names, saved, strict=True) if name is not None}


def input_options(info: Mapping[str, Any]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Name, type and options of every input of a node, in the order of its schema."""
    for group in ("required", "optional"):
        for name, spec in info["input"].get(group, {}).items():
            yield name, spec[0], spec[1] if len(spec) > 1 else {}


def widget_names(info: Mapping[str, Any]) -> Iterator[str | None]:
    """Input names in the order of ``widgets_values``; None for a value that is not sent to the server."""
    for name, kind, options in input_options(info):
        if not _is_widget(kind, options):
            continue
        yield name
        if kind == "INT" and (options.get("control_after_generate") or name in ("seed", "noise_seed")):
            yield None
        if options.get("image_upload"):
            yield None


def _is_widget(kind: Any, options: Mapping[str, Any]) -> bool:
    return (isinstance(kind, list) or kind in WIDGET_TYPES) and not options.get("forceInput")
