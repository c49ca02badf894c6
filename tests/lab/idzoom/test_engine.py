"""The engine: what goes in comes out once, whatever happens between."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset

from lab import magicid
from lab.idzoom import annotators
from lab.idzoom.command import main
from lab.idzoom.engine import Plan, Writer, started, write_manifest
from lab.idzoom.journal import Journal
from lab.idzoom.places import find
from lab.idzoom.sample import Outcome, examine
from lab.idzoom.settings import Settings
from lab.idzoom.shards import tidy
from lab.magicid_shards import Reader
from likeness.core.errors import LikenessError
from likeness.formats.magicid import load_magicid
from likeness.hosts.diffusers.miniature import miniature

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


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, world: Path) -> Path:
    """What the command makes of the drawn pictures."""
    out = tmp_path_factory.mktemp("made")
    assert main(["make", str(world), "--out", str(out), "--shard-size", "5", *OPTIONS]) == 0
    return out


def test_the_same_command_again_changes_nothing(made, world):
    check_once(made, 24)
    assert (made / "contact_sheet.png").stat().st_size > 10_000
    before = [Path(path).read_bytes() for path in shards(made)]
    assert main(["make", str(world), "--out", str(made), "--shard-size", "5", *OPTIONS]) == 0
    assert [Path(path).read_bytes() for path in shards(made)] == before


def test_magicid_trains_on_the_shards(made, tmp_path):
    """The loader of Multi-Mode Fusion takes every sample as it is, and every phase makes a step with them."""
    reader, written = Reader(miniature()), samples(made)
    taken = reader.samples(made / "shards")
    assert len(taken) == len(written) and reader.embedder == "miniature"
    for sample, raw in zip(taken, written, strict=True):
        vectors = np.load(io.BytesIO(raw["embedding.npy"]))
        assert sample.vectors[:, 0].tolist() == vectors.tolist() and len(sample.regions) == len(vectors)
        assert sample.regions.any() and all(pose.any() for pose in sample.poses.values())
    arguments = ["train", "--data", str(made / "shards"), "--out", str(tmp_path), "--steps", "4", "--batch", "2"]
    assert magicid.main([*arguments, "--measure-every", "0"]) == 0
    weights = load_magicid(tmp_path / "magicid.safetensors")
    assert weights.embedder == "miniature" and set(weights.attention) == {"unet", "control"}
    for layers in weights.attention.values():  # values are zero until the first step
        values = torch.cat([layer.to_v.weight.flatten() for layer in layers.values()])
        assert values.isfinite().all() and values.any()


@pytest.mark.parametrize(("words", "tries"), [("The current node timed out during startup.", 3), ("No such file", 1)])
def test_ray_that_does_not_start_in_time_is_started_again(words: str, tries: int) -> None:
    left = []

    class Ray:
        def init(self, **options: object) -> None:
            left.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))
            raise RuntimeError(words)

    with pytest.raises(RuntimeError, match=words):
        started(Ray(), num_cpus=2)
    last = left.pop()
    assert len(left) == tries - 1 and all(process.wait(60) for process in left)
    assert last.poll() is None, "Ray ends them itself"
    last.kill()


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
