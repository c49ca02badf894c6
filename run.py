#!/usr/bin/env python3
"""One launcher for everything that runs without ComfyUI: ``python run.py <command>``.

On a fresh machine it sets itself up first: an environment that has what ``requirements-headless.txt`` names is used as
it is; an active virtual environment is completed; otherwise ``.venv`` is made beside this file.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
REQUIREMENTS = ROOT / "requirements-headless.txt"
VENV = ROOT / ".venv"
PYTHONS = ((3, 10), (3, 13))
#: The file pins torch for a fresh environment; one that is there already stays, if it is not older than this.
OLDEST_TORCH = "torch>=2.4"

#: command: (module of the pack with a ``main(argv)``, the verb it is called with where the command is one, help)
COMMANDS = {
    "demo": ("lab.magicface", "demo", "MagicFace and DIIR on the miniature: pictures and tables of measured effects"),
    "test": ("", "", "run the tests; further arguments go to pytest"),
    "magicface": ("lab.magicface", "", "MagicFace: demo, benchmark"),
    "persona": ("lab.persona", "", "PersonaMagic: demo, train, play, prove, benchmark"),
    "diir": ("lab.diir", "", "DIIR face repair: demo, prove, benchmark"),
    "miniature": ("lab.miniature", "", "the drawn model: train, report"),
    "dev": ("lab.dev", "", "for developers: workflows, thumbnails (they need a ComfyUI)"),
}


def main(argv: list[str]) -> int:
    """Run one command and return its exit status."""
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    command, arguments = argv[0], argv[1:]
    if command not in COMMANDS:
        print(f"run.py: no command '{command}'.\n\n{usage()}", file=sys.stderr)
        return 2
    set_up()
    return run_tests(arguments) if command == "test" else run_module(command, arguments)


def usage() -> str:
    """The commands, one a line."""
    rows = "\n".join(f"  {name:<11} {text}" for name, (_, _, text) in COMMANDS.items())
    return f"python run.py <command> [options]\n\n{rows}\n\npython run.py <command> --help lists a command's options."


def run_module(command: str, arguments: list[str]) -> int:
    """Import the command's module and call its ``main``."""
    name, verb, _ = COMMANDS[command]
    if importlib.util.find_spec(name) is None:
        print(f"run.py {command}: this copy of the pack has no {name.replace('.', '/')}.py", file=sys.stderr)
        return 2
    return int(importlib.import_module(name).main([verb, *arguments] if verb else arguments) or 0)


def run_tests(arguments: list[str]) -> int:
    """Run pytest from the root; its summary is the last line."""
    return subprocess.call([sys.executable, "-m", "pytest", *arguments], cwd=ROOT)


def set_up() -> None:
    """Make sure that the requirements are there, installing them once if they are not.

    Raises:
        SystemExit: this Python is too old or too new, or the installation failed.
    """
    missing = missing_requirements()
    if not missing:
        return
    if in_virtual_environment():
        install(sys.executable, missing)
        return
    check_version()
    python = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        print(f"run.py: making {VENV.name} ...", file=sys.stderr)
        subprocess.check_call([sys.executable, "-m", "venv", str(VENV)])
    status = subprocess.call([str(python), str(ROOT / "run.py"), *sys.argv[1:]])
    sys.exit(status)


def check_version() -> None:
    """Refuse a Python for which the pinned packages are not published."""
    low, end = PYTHONS
    if not low <= sys.version_info[:2] < end:
        found = ".".join(map(str, sys.version_info[:2]))
        sys.exit(f"run.py: this is Python {found}; it needs 3.{low[1]} to 3.{end[1] - 1}. Run it with one of these.")


def in_virtual_environment() -> bool:
    """Whether a virtual environment (or conda) is active, so that installing changes nothing else."""
    return sys.prefix != sys.base_prefix or "CONDA_PREFIX" in os.environ


def missing_requirements() -> list[str]:
    """Lines of the requirements file that the current environment does not satisfy, with their comments."""
    lines = [line for line in REQUIREMENTS.read_text("utf-8").splitlines() if bare(line)]
    return [line for line in lines if not satisfied(OLDEST_TORCH if line.startswith("torch==") else bare(line))]


def bare(line: str) -> str:
    """A line of the requirements file without its comment."""
    return line.split("#")[0].strip()


def satisfied(requirement: str) -> bool:
    """Whether a package is installed in the version asked for (``name``, ``name>=1.2`` or ``name==1.2``)."""
    name, sign, wanted = re.fullmatch(r"([A-Za-z0-9_.-]+?)(?:(>=|==)([0-9.]+))?", requirement).groups()
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    if sign == "==":
        return _numbers(found) == _numbers(wanted)
    return sign is None or _numbers(found) >= _numbers(wanted)


def _numbers(version: str) -> tuple[int, ...]:
    public = version.split("+")[0]
    return tuple(int(part) for part in re.findall(r"\d+", public)[:3])


def install(python: str, requirements: list[str]) -> None:
    """Install with pip as it is set up on this machine; a line marked ``# --no-deps`` without what it asks for."""
    check_version()
    start = time.monotonic()
    print(f"run.py: installing {', '.join(map(bare, requirements))} (once; some minutes) ...", file=sys.stderr)
    alone = [bare(line) for line in requirements if "# --no-deps" in line]
    rest = [bare(line) for line in requirements if "# --no-deps" not in line]
    for packages, options in ((rest, []), (alone, ["--no-deps"])):
        command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *options, *packages]
        if packages and subprocess.call(command):
            sys.exit("run.py: pip could not install the requirements above; see its message")
    importlib.invalidate_caches()
    print(f"run.py: installed in {time.monotonic() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
