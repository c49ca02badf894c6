"""Writes ``locales/``: what the front end shows of every node, in English and in Chinese.

English stands in the nodes' schemas; ``lab/translations/zh.json`` translates each text once. Run by hand when a node
changes, with a ComfyUI (``COMFYUI_PATH``, ``COMFYUI_PYTHON``)::

    python run.py dev locales

It lists the texts that have no translation, and translations that no node uses any more.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lab.workflows.discovery import ROOT, hosts, why_none
from lab.workflows.server import Server
from lab.workflows.workflow import ObjectInfo, input_options

PREFIX = "Likeness"
TRANSLATIONS = ROOT / "lab" / "translations"
LANGUAGES = ("en", "zh")
#: the template browser's heading is looked up under the name of the folder the pack was installed in
FOLDERS = ("likeness", "Likeness", "comfyui-likeness", "ComfyUI-Likeness")

Translate = Callable[[str], str]


def main(names: list[str]) -> int:
    """Write every language's files; status 1 where a text has no translation or a translation no text."""
    if names:
        sys.exit("run.py dev locales takes no arguments")
    if not hosts():
        sys.exit(why_none())
    with tempfile.TemporaryDirectory() as folder, Server(hosts()[0], Path(folder)) as server:
        info = server.get("/object_info")
    faults = []
    for language in LANGUAGES:
        for file, content in locale(info, catalogue(language)).items():
            path = ROOT / "locales" / language / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
        faults += complaints(info, language)
    print("\n".join(faults) or "every text is translated")
    return int(bool(faults))


def catalogue(language: str) -> Mapping[str, str]:
    """English text -> text in ``language``; empty for English."""
    file = TRANSLATIONS / f"{language}.json"
    return json.loads(file.read_text("utf-8")) if file.exists() else {}


def complaints(info: ObjectInfo, language: str) -> list[str]:
    """Texts of the nodes without a translation, and translations of no text; none for English."""
    if language == "en":
        return []
    known, used = catalogue(language), set(texts(info))
    return [f"{language}: not translated: {text}" for text in sorted(used - set(known))] + [
        f"{language}: translates nothing: {text}" for text in sorted(set(known) - used)
    ]


def texts(info: ObjectInfo) -> Iterator[str]:
    """Every text of the pack that the front end shows, in no special order and not only once."""
    collected: list[str] = []

    def collect(text: str) -> str:
        collected.append(text)
        return text

    _nodes(info, collect)
    _main(info, collect)
    return iter(collected)


def locale(info: ObjectInfo, known: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """File name -> content of one language's folder.

    Args:
        info: the server's ``/object_info``.
        known: English text -> translation; a text that is not in it stays English.
    """
    def translate(text: str) -> str:
        return escape(known.get(text, text))

    return {"nodeDefs.json": _nodes(info, translate), "main.json": _main(info, translate)}


def escape(text: str) -> str:
    """A text with the characters that are syntax to vue-i18n (``{ } @ |``) as literals."""
    return re.sub(r"[{}@|]", lambda found: f"{{'{found[0]}'}}", text)


def _nodes(info: ObjectInfo, translate: Translate) -> dict[str, Any]:
    return {key: _node(node, translate) for key, node in sorted(info.items()) if key.startswith(PREFIX)}


def _node(node: Mapping[str, Any], translate: Translate) -> dict[str, Any]:
    entry: dict[str, Any] = {key: translate(node[key]) for key in ("display_name", "description") if node.get(key)}
    entry["inputs"] = {
        name.replace(".", "_"): _labels(options.get("display_name") or name, options.get("tooltip"), translate)
        for name, _, options in input_options(node)
    }
    tooltips = node.get("output_tooltips") or [None] * len(node["output"])
    entry["outputs"] = {
        str(i): _labels(name, tooltip, translate)
        for i, (name, tooltip) in enumerate(zip(node["output_name"], tooltips, strict=True))
    }
    return entry


def _labels(name: str, tooltip: str | None, translate: Translate) -> dict[str, str]:
    return {"name": translate(name), **({"tooltip": translate(tooltip)} if tooltip else {})}


def _main(info: ObjectInfo, translate: Translate) -> dict[str, Any]:
    categories = {part for key, node in info.items() if key.startswith(PREFIX) for part in node["category"].split("/")}
    return {
        "nodeCategories": {part: translate(part) for part in sorted(categories)},
        "templateWorkflows": {"category": {folder: translate("Likeness: portraits") for folder in FOLDERS}},
    }
