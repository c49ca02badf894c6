"""The grammar of ``run.py SYSTEM VERB``: a system's module names its verbs, the first argument picks one."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Callable, Mapping, Sequence

from likeness.core.errors import LikenessError

log = logging.getLogger("likeness")

Command = Callable[[Sequence[str]], int]
"""A verb's own arguments -> exit status."""


def elsewhere(module: str) -> Command:
    """The ``main`` of another module, imported when it is called."""
    return lambda argv: int(importlib.import_module(module).main(list(argv)) or 0)


def run_verb(
    system: str, about: str, verbs: Mapping[str, tuple[Command, str]], argv: Sequence[str] | None = None
) -> int:
    """Run one verb of a system; a user's error ends with its message and status 2.

    Args:
        system: as it is written behind ``run.py``.
        about: one line of help.
        verbs: name -> what is run, and one line of help.
        argv: the verb and its arguments; None: this process's.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    width = max(map(len, verbs))
    listed = "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in verbs.items())
    parser = argparse.ArgumentParser(
        prog=f"run.py {system}", description=f"{about}\n\n{listed}", usage=f"run.py {system} VERB [options]",
        epilog=f"run.py {system} VERB --help lists a verb's options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("verb", choices=tuple(verbs), help=argparse.SUPPRESS)
    given = list(sys.argv[1:] if argv is None else argv)
    verb = parser.parse_args(given[:1]).verb
    try:
        return int(verbs[verb][0](given[1:]) or 0)
    except LikenessError as error:
        log.error("run.py %s %s: %s", system, verb, error)
        return 2
