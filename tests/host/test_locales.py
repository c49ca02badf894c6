"""What the front end shows of every node, in each language, is what the schemas say today."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from lab.workflows import locales
from lab.workflows.discovery import ROOT
from lab.workflows.server import Server

LANGUAGES = pytest.mark.parametrize("language", locales.LANGUAGES)


@LANGUAGES
def test_files_are_what_the_command_writes(language: str, object_info: dict[str, Any], host) -> None:
    if host != newest():
        pytest.skip("written from the newest ComfyUI's schemas")
    for file, content in locales.locale(object_info, locales.catalogue(language)).items():
        shipped = json.loads((ROOT / "locales" / language / file).read_text("utf-8"))
        assert shipped == content, f"run.py dev locales writes another {language}/{file}"


def newest():
    """The first ComfyUI of the list, which ``run.py dev locales`` asks."""
    return locales.hosts()[0]


@LANGUAGES
def test_every_text_is_translated(language: str, object_info: dict[str, Any]) -> None:
    assert [fault for fault in locales.complaints(object_info, language) if "not translated" in fault] == []


@LANGUAGES
def test_server_hands_the_files_to_the_front_end(language: str, server: Server, object_info: dict[str, Any]) -> None:
    served = server.get("/i18n")[language]
    ours = {name for name in object_info if name.startswith(locales.PREFIX)}
    assert ours <= set(served["nodeDefs"])
    assert served["nodeDefs"]["LikenessPersonaTrain"]["inputs"]["model"]["tooltip"]
    assert served["nodeCategories"]["Likeness"]


def test_chinese_is_chinese() -> None:
    """Sentences of English left in the catalogue would pass as translated."""
    english = [
        text for source, text in locales.catalogue("zh").items()
        if " " in source and not re.search(r"[\u4e00-\u9fff]", text)
    ]  # fmt: skip
    assert english == []


def test_escaped_text_has_no_syntax_of_the_message_format() -> None:
    assert locales.escape("a {} | b@c") == "a {'{'}{'}'} {'|'} b{'@'}c"
