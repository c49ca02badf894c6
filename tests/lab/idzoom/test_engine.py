"""The engine: what goes in comes out once, whatever happens between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset

from lab.idzoom import annotators
from lab.idzoom.command import main
from lab.idzoom.engine import Plan, Writer, write_manifest
from lab.idzoom.journal import Journal
from lab.idzoom.places import find
from lab.idzoom.sample import Outcome, examine
from lab.idzoom.settings import Settings
from lab.idzoom.shards import tidy
from likeness.core.errors import LikenessError

ROOT = Path(__file__).parents[3]
SETTINGS = Settings(least_side=256, least_face=16, faces="truth", effort="quick")
OPTIONS = ("--least-side", "256", "--least-face", "16", "--faces", "truth", "--effort", "quick")
MODALITIES = {"image.png", "caption.txt", "skeleton.png", "face.png", "landmarks.json", "mask.png"}


class NoBar:
    def set_postfix(self, **values: object) -> None: ...
    def update(self) -> None: ...


def shards(out: Path) -> list[str]:
    return [str(path) for path in sorted((out / "shards").glob("*.tar"))]


def samples(out: Path) -> list[dict]:
    found = shards(out)
    return list(webdataset.WebDataset(found, shardshuffle=False)) if found else []


def check_once(out: Path, sources: int) -> None:
    """Every picture has one line of the manifest; the kept ones are in the shards once, the others never."""
    rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert len(rows) == len({row["source"] for row in rows}) == sources
    kept = {row["key"] for row in rows if row["kept"]}
    assert sorted(sample["__key__"] for sample in samples(out)) == sorted(kept)
    assert all(row["reason"] for row in rows if not row["kept"])


@pytest.fixture(scope="module")
def outcomes(world: Path) -> list[Outcome]:
    made = annotators.make(SETTINGS)
    return [examine(place, made, SETTINGS) for place in find([str(world)])]


def test_a_sample_holds_six_modalities(outcomes):
    kept = [outcome for outcome in outcomes if not outcome.reason]
    assert len(kept) > 12
    assert all(set(outcome.members) > MODALITIES for outcome in kept)
    marks = json.loads(kept[0].members["landmarks.json"])
    assert np.shape(marks["faces"][0]["five"]) == (5, 2) and np.shape(marks["faces"][0]["dense"]) == (68, 2)
    for outcome in kept:  # the subject's right shoulder is on the side of the right eye
        (frame,) = json.loads(outcome.members["pose.json"])
        x = np.reshape(frame["people"][0]["pose_keypoints_2d"], (18, 3))
        seen = x[[2, 5, 14, 15], 2].all()
        assert not seen or (x[2, 0] < x[5, 0]) == (x[14, 0] < x[15, 0])
    assert Counter(o.reason for o in outcomes).keys() <= {"", "too many faces", "no face", "small face"}


@pytest.mark.parametrize("moment", ["in a shard", "before the shard's name", "before the journal"])
def test_killed_at_any_moment(tmp_path, world, outcomes, moment, monkeypatch):
    plan = Plan(tmp_path, shard_size=4, progress=False)

    def once(die: bool) -> None:
        with Journal(tmp_path) as journal:
            journal.claim(SETTINGS)
            journal.add(find([str(world)]))
            tidy(tmp_path, journal.next_shard)
            first = journal.decided + 1
            coming = dying(first - 1) if die else iter(outcomes[first - 1 :])
            Writer(journal, SETTINGS, plan).take(first, coming, NoBar())
            if not die:
                write_manifest(journal, tmp_path / "manifest.jsonl")

    def dying(start: int):
        for number, outcome in enumerate(outcomes[start:]):
            if moment == "in a shard" and number == 7:
                raise KeyboardInterrupt
            yield outcome

    with monkeypatch.context() as patch:
        if moment == "before the shard's name":
            patch.setattr("lab.idzoom.shards.os.replace", stop)
        if moment == "before the journal":
            patch.setattr(Journal, "commit", stop)
        with pytest.raises(KeyboardInterrupt):
            once(die=True)
    once(die=False)
    check_once(tmp_path, 24)


def stop(*arguments: object) -> None:
    raise KeyboardInterrupt


def test_duplicates_across_runs_and_other_settings(tmp_path, world, outcomes):
    with Journal(tmp_path) as journal:
        journal.claim(SETTINGS)
        journal.add(find([str(world)]))
        Writer(journal, SETTINGS, Plan(tmp_path, progress=False)).take(1, iter(outcomes), NoBar())
        with pytest.raises(LikenessError, match="another run"):
            Journal(tmp_path)
    with Journal(tmp_path) as journal:
        writer = Writer(journal, SETTINGS, Plan(tmp_path, progress=False))
        kept = next(outcome for outcome in outcomes if not outcome.reason)
        assert writer.verdict(kept)[0] == "duplicate"
        with pytest.raises(LikenessError, match=r"sharpness 10\.0, now 99"):
            journal.check(replace(SETTINGS, sharpness=99))


def test_annotators_that_always_fail_stop_the_run(tmp_path):
    with Journal(tmp_path) as journal, pytest.raises(LikenessError, match="OSError: no disk"):
        writer = Writer(journal, SETTINGS, Plan(tmp_path, progress=False))
        writer.take(1, iter([Outcome("failed", "OSError: no disk")] * 100), NoBar())


def test_the_whole_command_with_hostile_files_and_a_kill(tmp_path, world):
    """``run.py idzoom make`` in a process of its own, killed when its first shard is there, then to the end here."""
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    for i, data in enumerate((b"", b"words", b"\x89PNG\r\n\x1a\n" + bytes(50))):
        (hostile / f"bad\n{i}.png").write_bytes(data)
    (hostile / "loop.png").symlink_to("loop.png")
    out = tmp_path / "out"
    command = ["make", str(hostile), str(world), "--out", str(out), "--shard-size", "3", *OPTIONS]
    process = subprocess.Popen([sys.executable, "run.py", "idzoom", *command], cwd=ROOT, start_new_session=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        deadline = time.monotonic() + 240
        while not shards(out) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert shards(out)
    main(command)
    check_once(out, 28)
    assert (out / "contact_sheet.png").stat().st_size > 10_000
    assert not list((out / "shards").glob("*.part"))
    before = [Path(path).read_bytes() for path in shards(out)]
    main(command)  # nothing is new, so nothing changes
    assert [Path(path).read_bytes() for path in shards(out)] == before


def test_dry_run_writes_nothing(tmp_path, world):
    main(["make", str(world), "--out", str(tmp_path / "out"), "--dry-run", *OPTIONS])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shard-size", "0"], "1 or more"),
        (["--faces", "insightface"], "insightface"),
        (["--captioner", "no-such-folder"], "no folder"),
    ],
)
def test_bad_options(tmp_path, world, arguments, message, caplog):
    assert main(["make", str(world), "--out", str(tmp_path / "out"), *OPTIONS, *arguments]) == 2
    assert message in caplog.text
