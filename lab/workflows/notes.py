"""The note at the head of a graph: what it shows, what to do first, what to expect, which file goes where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lab.workflows.layout import Prompt
from lab.workflows.models import asked_for


@dataclass(frozen=True)
class Note:
    """What a newcomer reads before the first run.

    Attributes:
        shows: what the graph is for, one or two sentences.
        first: what to do before pressing Run. expect: what comes out. more: what is worth knowing besides.
    """

    shows: str
    first: str
    expect: str
    more: str = ""

    def text(self, name: str, prompt: Prompt) -> str:
        """The note as markdown, under the template's ``name`` and with the files its loaders ask for."""
        parts = [f"## {name}", self.shows, f"**First:** {self.first}", f"**Then:** {self.expect}", self.more]
        return "\n\n".join(filter(None, [*parts, files(prompt)]))


def files(prompt: Mapping[str, Mapping[str, Any]]) -> str:
    """A list of the files a prompt asks for, each with its page and folder; empty where it needs none."""
    found = dict(pair for entry in prompt.values() for pair in asked_for(entry["inputs"]))
    lines = [f"- [{name}]({model.page}) in `models/{model.folder}`" for name, model in found.items()]
    return "\n".join(["**Files:**", *lines]) if lines else ""
