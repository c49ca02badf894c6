"""Places: folders, lists, shards; names that are no text; what cannot be listed."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from lab.idzoom.places import IMAGE, KEYPOINTS, TEXT, Place, find
from likeness.core.errors import LikenessError


def names(folder: Path, places) -> list[str]:
    return [os.path.relpath(place.name, folder) for place in places]


def touch(path: Path, data: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_a_folder_is_walked_by_name_and_its_loops_are_not(tmp_path):
    for name in ("b/2.PNG", "b/1.jpg", "a.webp", "notes.txt"):
        touch(tmp_path / name)
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    assert names(tmp_path, find([str(tmp_path)])) == ["a.webp", "b/1.jpg", "b/2.PNG"]


def test_the_output_within_the_input_is_passed_over(tmp_path):
    touch(tmp_path / "in.png")
    touch(tmp_path / "out" / "shards" / "idzoom-000000.tar")
    assert names(tmp_path, find([str(tmp_path)], without=str(tmp_path / "out"))) == ["in.png"]


def test_lists_hold_any_name(tmp_path):
    strange = os.fsencode(tmp_path) + b"/a\nb\xff.png"
    (tmp_path / "list").write_bytes(strange + b"\0" + os.fsencode(tmp_path / "c.png") + b"\0")
    places = list(find([], [str(tmp_path / "list")]))
    assert [os.fsencode(place.name) for place in places] == [strange, os.fsencode(tmp_path / "c.png")]
    assert [Place.loads(place.dumps()) for place in places] == places
    assert all("\n" not in place.dumps() for place in places)


def shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def test_samples_of_a_shard_by_offset(tmp_path):
    path = shard(tmp_path / "s.tar", {"1.jpg": b"one", "1.txt": b"words", "2.image.png": b"two", "2.face.png": b"face",
                                      "2.pose.json": b"{}", "3.txt": b"alone"})  # fmt: skip
    first, second, third = find([str(path)])
    read = {role: path.read_bytes()[p.offset : p.offset + p.size] for role, p in first.parts.items()}
    assert read == {IMAGE: b"one", TEXT: b"words"}
    read = {role: path.read_bytes()[p.offset : p.offset + p.size] for role, p in second.parts.items()}
    assert read == {IMAGE: b"two", KEYPOINTS: b"{}"}
    assert third.problem == "sample without a picture"


def test_a_cut_shard_gives_what_is_whole(tmp_path):
    path = shard(tmp_path / "s.tar", {f"{i}.png": bytes(2000) for i in range(4)})
    path.write_bytes(path.read_bytes()[: 512 * 11])  # within the third sample's data
    places = list(find([str(path)]))
    assert [bool(place.problem) for place in places].count(False) >= 2
    assert any("shard" in place.problem for place in places)


@pytest.mark.parametrize("given", ["nowhere", "no-{0..2}.tar"])
def test_an_input_that_is_not_there(tmp_path, given):
    with pytest.raises(LikenessError, match="not there"):
        list(find([str(tmp_path / given)]))
