#!/usr/bin/env python3
"""One launcher for everything that runs without ComfyUI: ``python run.py <command>``.

On a fresh machine it sets itself up first: an environment that has what the extras ``headless`` and ``test`` of
``pyproject.toml`` name is used as it is; an active virtual environment is completed; otherwise ``.venv`` is made beside
this file.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

try:
    from lab import requirements
except ModuleNotFoundError:  # neither packaging nor pip is there, as in a system's bare Python
    requirements = None

ROOT = Path(__file__).resolve().parent
EXTRAS = ("headless", "test")
VENV = ROOT / ".venv"
PYTHONS = ((3, 10), (3, 13))

#: command: (module of the pack with a ``main(argv)``, the verb it is called with where the command is one, help)
COMMANDS = {
    "demo": ("lab.magicface", "demo", "MagicFace and DIIR on the miniature: pictures and tables of measured effects"),
    "test": ("", "", "run the tests; further arguments go to pytest"),
    "magicface": ("lab.magicface", "", "MagicFace: demo, prove, benchmark"),
    "persona": ("lab.persona", "", "PersonaMagic: demo, train, play, prove, benchmark"),
    "diir": ("lab.diir", "", "DIIR face repair: demo, prove, benchmark"),
    "magicid": ("lab.magicid", "", "MagicID: train (Multi-Mode Fusion), prove, benchmark"),
    "idzoom": ("lab.idzoom.command", "", "MagicID's data engine: pictures in, training shards out"),
    "miniature": ("lab.miniature", "", "the drawn model: train, report"),
    "evaluation": ("lab.evaluation.command", "", "the papers' metrics over folders of pictures"),
    "prove": ("lab.prove", "", "what the miniature shows of the papers, and docs/results.md of it"),
    "dev": ("lab.dev", "", "for developers: workflows, sizes, locales, thumbnails, help, samples, hero, requirements"),
}

#: the first command of a part of the help -> its heading
HEADINGS = {"demo": "Start here", "magicface": "Systems", "miniature": "The drawn model, measures", "dev": "Developers"}


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
    """The commands, one a line, in parts."""
    rows = []
    for name, (_, _, text) in COMMANDS.items():
        rows += [f"\n{HEADINGS[name]}:"] if name in HEADINGS else []
        rows.append(f"  {name:<11} {text}")
    listed = "\n".join(rows)
    return (
        "usage: run.py COMMAND [VERB] [options]\n\n"
        "Everything that runs without ComfyUI. It sets itself up at its first use.\n"
        f"{listed}\n\nrun.py COMMAND --help lists the verbs or options of a command."
    )


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
    missing = requirements.missing(requirements.needed(EXTRAS)) if requirements else None
    if missing == []:
        return
    if in_virtual_environment():
        if not requirements:
            sys.exit(f"run.py: {sys.prefix} has no pip to install with: python -m ensurepip")
        install(requirements.batches(missing))
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


def install(batches: list[list[str]]) -> None:
    """Install with pip as it is set up on this machine, one call a batch (``lab.requirements.batches``)."""
    check_version()
    start = time.monotonic()
    names = [argument for batch in batches for argument in batch if not argument.startswith("-")]
    print(f"run.py: installing {', '.join(names)} (once; some minutes) ...", file=sys.stderr)
    for batch in batches:
        if subprocess.call([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *batch]):
            sys.exit("run.py: pip could not install the requirements above; see its message")
    importlib.invalidate_caches()
    print(f"run.py: installed in {time.monotonic() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
