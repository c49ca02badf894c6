"""``run.py SYSTEM VERB``: the first argument picks the verb, its help lists them all."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from runpy import run_path

import pytest

from lab.verbs import run_verb
from likeness.core.errors import LikenessError

ROOT = Path(__file__).parents[2]
COMMANDS = run_path(str(ROOT / "run.py"))["COMMANDS"]
MODULES = {name: importlib.import_module(module) for name, (module, verb, _) in COMMANDS.items() if module and not verb}
SYSTEMS = {name: tuple(module.VERBS) for name, module in MODULES.items() if hasattr(module, "VERBS")}


def test_the_systems_have_verbs() -> None:
    assert {"magicface", "persona", "diir", "miniature", "dev"} <= set(SYSTEMS)


@pytest.mark.parametrize("system", SYSTEMS)
def test_help_lists_the_verbs(system: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        MODULES[system].main(["--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0 and f"run.py {system} VERB" in shown
    assert all(f"  {verb} " in shown for verb in SYSTEMS[system])
    told = re.findall(r"\w+", COMMANDS[system][2])
    missing = set(SYSTEMS[system]) - set(told)
    assert not missing or not set(SYSTEMS[system]) & set(told), f"run.py --help tells only some: {missing} is missing"


@pytest.mark.parametrize(
    ("system", "verb"), [(s, v) for s, verbs in SYSTEMS.items() if s != "dev" for v in verbs]
)
def test_every_verb_has_help_of_its_own(system: str, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        MODULES[system].main([verb, "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: run.py {system} {verb} ")


def test_arguments_reach_the_verb_and_errors_end_with_status_two(caplog: pytest.LogCaptureFixture) -> None:
    def fail(argv: list[str]) -> int:
        raise LikenessError("too little")

    seen: list[list[str]] = []
    verbs = {"take": (lambda argv: seen.append(argv) or 0, "take it"), "fail": (fail, "never works")}
    assert run_verb("house", "A house.", verbs, ["take", "--now", "3"]) == 0
    assert seen == [["--now", "3"]]
    assert run_verb("house", "A house.", verbs, ["fail"]) == 2
    assert "run.py house fail: too little" in caplog.text
    for argv in ([], ["paint"]):
        with pytest.raises(SystemExit) as stop:
            run_verb("house", "A house.", verbs, argv)
        assert stop.value.code == 2
