"""The registry's archive, made by its own tool, is small and loads by itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.workflows.discovery import ROOT, Host
from lab.workflows.make import text_to_image
from lab.workflows.server import Server

COMFY = os.environ.get("COMFY_CLI") or shutil.which("comfy") or ""
LARGEST = 30 * 2**20

pytestmark = pytest.mark.skipif(not COMFY, reason="no comfy-cli: COMFY_CLI names none and there is none on the path")


def comfy(folder: Path, *arguments: str) -> str:
    """What the registry's tool says in ``folder``; its own settings stay out of the user's home."""
    environment = {**os.environ, "HOME": str(folder.parent), "XDG_CONFIG_HOME": str(folder.parent), "DO_NOT_TRACK": "1"}
    done = subprocess.run([COMFY, "--skip-prompt", *arguments], cwd=folder, env=environment, capture_output=True,
                          text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files git knows of, as they are now, in a repository of their own: the tool writes into its folder."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this copy of the pack is no git repository")
    folder = tmp_path_factory.mktemp("registry") / "checkout"
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    subprocess.check_call(["git", "init", "--quiet"], cwd=folder)
    subprocess.check_call(["git", "add", "--all", "--force"], cwd=folder)
    return folder


@pytest.fixture(scope="session")
def archive(checkout: Path) -> Path:
    comfy(checkout, "node", "pack")
    return checkout / "node.zip"


@pytest.fixture(scope="session")
def unpacked(archive: Path, host: Host, object_info: dict[str, Any], tmp_path_factory) -> Iterator[Server]:
    """A server with what is in the archive and nothing else, in a folder as a download unpacks to."""
    pack, base = tmp_path_factory.mktemp("unpacked"), tmp_path_factory.mktemp("archive-server")
    with zipfile.ZipFile(archive) as file:
        file.extractall(pack)
    with Server(host, base, pack, folder="likeness.1.0") as running:
        yield running


def test_the_registry_s_checks_pass(checkout: Path) -> None:
    said = comfy(checkout, "node", "validate")
    assert "All validation checks passed" in said, said
    assert "Warning" not in said, said


def test_archive_holds_what_users_need_and_is_small(archive: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        names = set(file.namelist())
    tops = {name.split("/")[0] for name in names}
    assert not tops & {"lab", "tests", ".ci", ".github", "run.py"}
    assert {"__init__.py", "nodes", "likeness", "js", "locales", "workflows", "requirements.txt", "LICENSE"} <= tops
    assert archive.stat().st_size < LARGEST


def test_archive_offers_every_node(unpacked: Server, object_info: dict[str, Any]) -> None:
    here = {name for name in object_info if name.startswith("Likeness")}
    assert here == {name for name in unpacked.get("/object_info") if name.startswith("Likeness")}
    assert "IMPORT FAILED" not in unpacked.log()


def test_archive_draws_a_picture(unpacked: Server) -> None:
    graph = text_to_image()
    graph["latent"]["inputs"].update(width=128, height=128, batch_size=1)
    graph["sampler"]["inputs"].update(steps=2)
    assert unpacked.pictures(unpacked.run_prompt(graph))[0].shape == (128, 128, 3)
