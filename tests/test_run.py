"""The launcher: how it hands over."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run():
    spec = importlib.util.spec_from_file_location("likeness_run", ROOT / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def launch(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(ROOT / "run.py"), *arguments], cwd=cwd, capture_output=True, text=True)


def test_help_names_every_command(run) -> None:
    done = launch("--help")
    assert done.returncode == 0
    assert all(command in done.stdout for command in run.COMMANDS)


def test_unknown_command_is_refused() -> None:
    done = launch("paint")
    assert done.returncode == 2
    assert "no command 'paint'" in done.stderr


def test_module_that_is_not_there_is_named(run, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setitem(run.COMMANDS, "ghost", ("miniature.ghost", "", "nothing"))
    assert run.run_module("ghost", []) == 2
    assert "miniature/ghost.py" in capsys.readouterr().err


def test_too_old_a_python_is_refused(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "PYTHONS", ((9, 0), (9, 1)))
    with pytest.raises(SystemExit, match="this is Python"):
        run.check_version()


def test_an_environment_without_pip_is_told_what_to_do(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "requirements", None)
    monkeypatch.setattr(run, "in_virtual_environment", lambda: True)
    with pytest.raises(SystemExit, match="ensurepip"):
        run.set_up()


def test_tests_run_from_anywhere_and_pass_the_status_on(tmp_path: Path) -> None:
    done = launch("test", "tests/test_run.py", "-q", "-k", "unknown_command", "--no-header", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip().splitlines()[-1].startswith("1 passed")
    assert launch("test", "tests/test_run.py", "-q", "-k", "matches_nothing", cwd=tmp_path).returncode != 0
