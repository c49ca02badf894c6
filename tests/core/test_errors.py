"""Every error of the nodes says how to mend it, and shows no class of the program."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: for programmers, who know the classes
LIBRARY = ROOT / "likeness" / "hosts" / "diffusers"


def errors() -> Iterator[tuple[str, ast.Call]]:
    """Where each error of the nodes is put together, and the call that does it."""
    for file in sorted((*ROOT.glob("nodes/*.py"), *ROOT.glob("likeness/**/*.py"))):
        if LIBRARY in file.parents:
            continue
        for piece in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(piece, ast.Call) and getattr(piece.func, "id", "") == "bad_input":
                yield f"{file.relative_to(ROOT)}:{piece.lineno}", piece


EACH = pytest.mark.parametrize("call", [pytest.param(call, id=where) for where, call in errors()])


@EACH
def test_it_has_four_parts_none_of_them_empty(call: ast.Call) -> None:
    assert len(call.args) == 4
    assert not [part for part in call.args if isinstance(part, ast.Constant) and part.value == ""]


@EACH
def test_it_shows_no_class(call: ast.Call) -> None:
    assert "__name__" not in ast.unparse(call)
