"""Hostile files cost themselves only, and a run that is killed leaves what an undisturbed one does."""

from __future__ import annotations

import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from lab.idzoom import hostile, prove
from lab.idzoom.command import main
from lab.idzoom.engine import Plan, connect
from lab.idzoom.places import Place, find
from lab.idzoom.reading import Dropped, read_photo
from lab.idzoom.settings import Settings
from lab.idzoom.watch import Cost, Tree
from likeness.core.errors import LikenessError

SIDE = 64
SETTINGS = replace(Settings(), least_side=SIDE)
TOO_LARGE = ("huge", "bomb", "hole")
READ = ("other-ending", *hostile.NAMES)


def reason(place: Place) -> str:
    """Why a picture is dropped when it is read; empty where it is read."""
    try:
        read_photo(place, SETTINGS)
    except Dropped as dropped:
        return dropped.reason
    return ""


@pytest.mark.parametrize("number", range(len(hostile.KINDS)), ids=hostile.KINDS)
def test_a_hostile_file_costs_itself_only(tmp_path: Path, number: int) -> None:
    kind = hostile.KINDS[number]
    hostile.put(tmp_path, number, 3, SIDE)
    hostile.put(tmp_path, number, 3, SIDE)
    (name,) = os.listdir(tmp_path)
    assert name.startswith(f"{hostile.PREFIX}{kind}-{number:08d}")
    expected = "" if kind in READ else "too large" if kind in TOO_LARGE else "unreadable"
    assert [reason(place) for place in find([str(tmp_path)])] == [expected] * (kind != "folder-in-itself")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that go to their end do so in this process, on one Ray; the one that is killed has processes of its own."""
    import ray

    def finish(run: prove.Run, fresh: bool = True) -> Cost:
        if fresh:
            shutil.rmtree(run.out, ignore_errors=True)
        run.begun = time.time()
        assert main(run.command[3:]) == 0
        return Cost(time.time() - run.begun, 1.0, 0.0, 1, 1)

    ray.shutdown()
    connect(Plan(tmp_path, workers=2))
    monkeypatch.setattr(prove.Run, "finish", finish)
    monkeypatch.setattr(prove, "LONGEST", 240)
    yield
    ray.shutdown()


def test_the_whole_command(here: None, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["--out", str(tmp_path), "--pictures", "200", "--hostile", "46", "--kills", "1", "--side", "96"]
    assert prove.main(command) == 0
    first = capsys.readouterr().out
    outcomes = prove.Store(tmp_path / prove.FILE, prove.Plan(200, 46, 96, 1)).outcomes
    assert outcomes.keys() == {prove.ONE, prove.TWO, prove.KILLED, prove.ALL}
    assert len(outcomes[prove.KILLED].kills) == 1
    found = outcomes[prove.ALL]
    assert found.sources == 198 and found.reasons[""] > 100  # two folders in themselves hold nothing
    for kind in set(hostile.KINDS) - set(READ) - {"folder-in-itself"}:
        assert found.hostile[kind] == {"too large" if kind in TOO_LARGE else "unreadable": 2}
    assert prove.main(command) == 0
    assert capsys.readouterr().out == first, "measured once"


def test_all_processes_are_watched_and_killed(tmp_path: Path) -> None:
    work = "import time; a = bytearray(80 * 2**20); t = time.process_time()\nwhile time.process_time() < t + 2: pass"
    start = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {work!r}])"
    cost = Tree([sys.executable, "-c", start], tmp_path / "log").finish()
    assert cost.processes == 2 and cost.cpu > 1 and 80 * prove.MIB < cost.peak < 200 * prove.MIB
    tree = Tree([sys.executable, "-c", start.replace("+ 2", "+ 200")], tmp_path / "log")
    while len(everybody := tree.processes()) < 2:
        time.sleep(0.01)
    tree.kill()
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in everybody)
    with pytest.raises(LikenessError, match="no such thing"):
        Tree([sys.executable, "-c", "raise ValueError('no such thing')"], tmp_path / "log").finish()


def test_a_picture_that_is_lost_is_told(tmp_path: Path) -> None:
    plan = prove.Plan(200, 1)
    cost = Cost(1.0, 1.0, 0.0, 1, 1)
    good = prove.Outcome(1, cost, 20, {"": 20}, {}, 0, 0, [1.0], "a", [])
    runs = dict.fromkeys((prove.ONE, prove.TWO, prove.KILLED), good)
    runs[prove.ALL] = replace(good, sources=200, cost=replace(cost, seconds=10.0))
    assert not prove.broken_bounds(runs)
    for name, change, words in (
        (prove.KILLED, {"lost": 1}, "lost or twice"), (prove.KILLED, {"digest": "b"}, "shards differ"),
        (prove.TWO, {"cost": replace(cost, cpu=1.2)}, "CPU time"),
        (prove.ALL, {"cost": replace(cost, peak=2)}, "grows"),
    ):  # fmt: skip
        (broken,) = prove.broken_bounds({**runs, name: replace(good, **change)})
        assert words in broken
    assert "NOT equal" in prove.report(plan, {**runs, prove.KILLED: replace(good, digest="b")})


@pytest.mark.parametrize("arguments", [["--pictures", "100"], ["--hostile", "0"]])
def test_a_plan_that_shows_nothing(tmp_path: Path, arguments: list[str]) -> None:
    with pytest.raises(LikenessError, match=arguments[0]):
        prove.main(["--out", str(tmp_path), *arguments])
