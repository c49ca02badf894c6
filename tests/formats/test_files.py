"""Names and paths as users write them, and the mode of what is written."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from likeness.core.errors import LikenessError
from likeness.formats.files import LONGEST_NAME, free_path, given_path, plain_name, write_whole


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o007, 0o660)])
def test_a_new_file_has_the_umasks_mode(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_whole(tmp_path / "sub" / "a", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "sub" / "a").stat().st_mode) == mode
    assert os.listdir(tmp_path / "sub") == ["a"]


@pytest.mark.parametrize(
    "given, wanted",
    [("ada", "ada"), (" ada.safetensors ", "ada"), ("Ada v1.2", "Ada v1.2"), ("\u5c0f\u660e", "\u5c0f\u660e")],
)
def test_plain_names(given: str, wanted: str) -> None:
    assert plain_name(given, "Save: name") == wanted


@pytest.mark.parametrize(
    "name",
    ["", "  ", ".safetensors", "../x", "a/b", "a\\b", "/etc/x", ".hidden", "x.", "CON", "nul.x", "com1", "a:b", "a\0b",
     "x" * (LONGEST_NAME + 1), "\u5c0f" * 100],
)  # fmt: skip
def test_names_no_file_system_should_get(name: str) -> None:
    with pytest.raises(LikenessError, match="Save: name"):
        plain_name(name, "Save: name")


def test_an_existing_file_is_left_unless_it_may_be_replaced(tmp_path: Path) -> None:
    for name in ("ada", "ada_2", "ada_4"):
        (tmp_path / f"{name}.safetensors").touch()
    assert free_path(tmp_path, "ada", overwrite=False) == tmp_path / "ada_3.safetensors"
    assert free_path(tmp_path, "ada", overwrite=True) == tmp_path / "ada.safetensors"
    assert free_path(tmp_path, "ben", overwrite=False) == tmp_path / "ben.safetensors"


def test_paths_as_users_paste_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "my mapper.pt"
    file.touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    url = file.as_uri()
    assert "%20" in url
    for text in (str(file), f" {file} ", f'"{file}"', f"'{file}'", "~/my mapper.pt", url):
        assert given_path(text, "Import: path", "a mapper") == file


@pytest.mark.parametrize("text, came", [("", "empty"), ('""', "empty"), (".", "folder"), ("none.pt", "nothing there"),
                                        ("x" * 5000, "too long"), ("a\0b", "nothing there")])  # fmt: skip
def test_paths_of_no_file(text: str, came: str) -> None:
    with pytest.raises(LikenessError, match=f"Import: path: got .*{came}"):
        given_path(text, "Import: path", "a mapper")
