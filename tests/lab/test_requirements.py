"""Requirements stand once, in pyproject.toml; what is made from them agrees."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from lab import requirements

ROOT = Path(__file__).parents[2]


def test_requirements_txt_is_made_from_pyproject() -> None:
    assert requirements.FILE.read_text("utf-8") == requirements.text(), "run: python run.py dev requirements"


def test_comfyui_users_install_nothing_headless() -> None:
    names = {requirement.name for requirement in requirements.needed()}
    assert not names & {"torch", "diffusers", "transformers", "safetensors", "numpy", "scipy", "pillow", "psutil"}


@pytest.mark.parametrize(
    ("line", "met"),
    [
        ("pytest", True), ("pytest>=1", True), ("pytest==0.1", False), ("pytest>=1,<2", False), ("pytest~=0.1", False),
        ("no-such-thing", False), ("no-such-thing; python_version < '3'", True),
    ],
)  # fmt: skip
def test_versions_and_markers_are_understood(line: str, met: bool) -> None:
    assert requirements.satisfied(Requirement(line)) is met


def test_a_package_named_twice_is_asked_for_once() -> None:
    names = [requirement.name for requirement in requirements.needed(("headless", "test"))]
    assert len(names) == len(set(names)) and {"torch", "pytest", "diffusers", "skia-python"} <= set(names)


def test_unknown_extra_is_refused() -> None:
    with pytest.raises(KeyError, match="sculpture"):
        requirements.needed(("sculpture",))


def test_an_installed_torch_is_kept_and_a_fresh_one_pinned() -> None:
    (torch,) = (one for one in requirements.needed(("headless",)) if one.name == "torch")
    assert requirements.missing([torch]) == []
    assert requirements.batches([torch, Requirement("clip-anytorch")]) == [
        ["torch==2.13.0"], ["--no-deps", "clip-anytorch"],
    ]  # fmt: skip
    assert requirements.batches([]) == []


def test_pip_s_own_parser_serves_before_anything_is_installed() -> None:
    code = (
        "import sys; sys.modules['packaging'] = None; sys.modules['tomllib'] = None\n"
        "from lab import requirements\n"
        "assert requirements.Requirement.__module__.startswith('pip._vendor')\n"
        "print(*requirements.needed(['test']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "skia-python" in done.stdout and "pytest>=8" in done.stdout


def test_without_the_extras_every_test_can_be_collected() -> None:
    """``run.py test`` on a fresh machine: it installs neither the data engine nor what draws plots."""
    absent = ["ray", "pyarrow", "webdataset", "braceexpand", "imagehash", "cleanfid", "matplotlib", "tensorboard"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent}))\n"
        "import pytest\n"
        "sys.exit(pytest.main(['-q', '--collect-only', '-p', 'no:cacheprovider', '--ignore=tests/host']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "NOT RUN: the data engine's tests, for lack of ray" in done.stdout
