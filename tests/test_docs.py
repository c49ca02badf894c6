"""What the documents point at is there."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
LINK = re.compile(r"\]\(<?(?!https?:|#)([^)#>]+)")
#: paths in code spans that begin with a folder of the repository
SPAN = re.compile(r"`((?:likeness|nodes|lab|tests|js|locales|workflows|docs)/[\w./-]*)`")

#: what a command writes
WRITTEN = {"docs/results.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = page.read_text("utf-8")
    lost = [link for link in LINK.findall(text) if not (page.parent / unquote(link)).exists()]
    lost += [path for path in SPAN.findall(text) if path not in WRITTEN and not (ROOT / path).exists()]
    assert not lost


def test_readme_links_every_node_s_help() -> None:
    linked = " ".join(LINK.findall((ROOT / "README.md").read_text("utf-8")))
    missing = [path.stem for path in (ROOT / "js/docs").iterdir() if f"js/docs/{path.stem}" not in linked]
    assert not missing
