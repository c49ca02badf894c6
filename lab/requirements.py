"""What the pack needs installed: ``pyproject.toml`` says it, ``requirements.txt`` and the launcher derive it.

``run.py`` reads this before anything is installed, so it uses the standard library and, where ``packaging`` is not
there yet, pip's own copy of it.

``python -m lab.requirements EXTRA...`` prints what pip is given for extras, one call a line; ``python run.py
dev requirements`` writes ``requirements.txt``, which ComfyUI Manager reads.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

try:
    from packaging.requirements import Requirement
except ImportError:
    from pip._vendor.packaging.requirements import Requirement
try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "requirements.txt"
HEAD = "# Made from pyproject.toml by `python run.py dev requirements`. ComfyUI brings everything else.\n"


def pyproject() -> dict[str, Any]:
    """The content of ``pyproject.toml``."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def needed(extras: Iterable[str] = ()) -> list[Requirement]:
    """What the nodes import beyond what ComfyUI brings, then each extra's requirements, a package once.

    Raises:
        KeyError: an extra is not in ``pyproject.toml``.
    """
    lines = [*pyproject()["project"]["dependencies"], *extra_lines(extras)]
    return list({requirement.name: requirement for requirement in map(Requirement, lines)}.values())


def extra_lines(extras: Iterable[str]) -> list[str]:
    """The lines of extras as they stand in ``pyproject.toml``."""
    known = pyproject()["project"]["optional-dependencies"]
    return [line for extra in extras for line in known[extra]]


def missing(requirements: Iterable[Requirement]) -> list[Requirement]:
    """Those that this environment does not satisfy."""
    return [requirement for requirement in requirements if not satisfied(requirement)]


def satisfied(requirement: Requirement) -> bool:
    """Whether the package is installed in a version asked for, or not asked for on this platform."""
    if requirement.marker and not requirement.marker.evaluate():
        return True
    try:
        found = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return requirement.specifier.contains(found, prereleases=True)


def batches(requirements: Iterable[Requirement]) -> list[list[str]]:
    """Arguments of ``pip install``, one list a call.

    A package named in ``tool.likeness.pinned`` is installed in that version where none is there that will do; one in
    ``without-dependencies`` is installed alone.
    """
    ours = pyproject()["tool"]["likeness"]
    pinned = {requirement.name: requirement for requirement in map(Requirement, ours["pinned"])}
    chosen = [pinned.get(requirement.name, requirement) for requirement in requirements]
    alone = [str(one) for one in chosen if one.name in ours["without-dependencies"]]
    rest = [str(one) for one in chosen if one.name not in ours["without-dependencies"]]
    return [call for call in (rest, ["--no-deps", *alone] if alone else []) if call]


def text() -> str:
    """What ``requirements.txt`` has to hold."""
    return HEAD + "".join(f"{requirement}\n" for requirement in needed())


def main(argv: Sequence[str] = ()) -> int:
    """``run.py dev requirements``: write ``requirements.txt``."""
    if argv:
        sys.exit("run.py dev requirements takes no arguments")
    FILE.write_text(text(), "utf-8")
    print(f"{FILE.name}: {', '.join(requirement.name for requirement in needed())}")
    return 0


if __name__ == "__main__":
    for call in batches(map(Requirement, extra_lines(sys.argv[1:]))):
        print(*(str(argument).replace(" ", "") for argument in call))
