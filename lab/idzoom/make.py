"""``python run.py idzoom make``: lists, runs, and writes what a person looks at."""

from __future__ import annotations

import argparse
import logging
import sys
from collections import Counter
from pathlib import Path

from likeness.core.errors import bad_input

from . import annotators
from .contact import contact_sheet
from .engine import Plan, run, write_manifest
from .journal import FILE, Journal
from .places import find
from .settings import Settings
from .shards import FOLDER

log = logging.getLogger("likeness")

MANIFEST, SHEET = "manifest.jsonl", "contact_sheet.png"


def make(options: argparse.Namespace, settings: Settings) -> None:
    """List what is new, decide all that is not decided, write manifest and contact sheet."""
    annotators.check(settings)
    out = options.out.resolve()
    with Journal(out) as journal:
        journal.claim(settings)
        new = journal.add(find(options.inputs, options.lists, without=str(out)))
        log.info("listed: %d, %d of them new; decided before: %d", journal.listed, new, journal.decided)
        run(journal, settings, plan_of(options, out))
        write_manifest(journal, out / MANIFEST)
        picture = contact_sheet(journal, settings, out)
        if picture is not None:
            picture.save(out / SHEET)
        report(journal, out)


def plan_of(options: argparse.Namespace, out: Path) -> Plan:
    """The options that say how it is carried out.

    Raises:
        LikenessError: fewer than one worker or sample.
    """
    for name in ("workers", "shard_size", "store"):
        if getattr(options, name) < 1:
            raise bad_input(f"IDZoom: --{name.replace('_', '-')}", getattr(options, name), "1 or more", "Raise it.")
    return Plan(out, options.workers, options.gpus, options.shard_size, options.store * 2**20,
                progress=sys.stderr.isatty())  # fmt: skip


def report(journal: Journal, out: Path) -> None:
    """What became of all pictures of the folder."""
    counts = journal.counts()
    kept = counts.pop("", 0)
    log.info("kept: %d in %d shards of %s", kept, journal.next_shard, out / FOLDER)
    for reason, count in counts.items():
        log.info("dropped: %d %s", count, reason)
    log.info("why: %s; a look: %s", out / MANIFEST, out / SHEET)


def preview(options: argparse.Namespace, settings: Settings) -> None:
    """Say what would happen; nothing is written, no picture is opened."""
    out = options.out.resolve()
    plan_of(options, out)
    found = Counter("unreadable" if place.problem else "found" for place in find(
        options.inputs, options.lists, without=str(out)))
    log.info("pictures: %d; places that cannot be listed: %d", found["found"], found["unreadable"])
    if (out / FILE).exists():
        with Journal(out) as journal:
            journal.check(settings)
            log.info("in %s: %d listed, %d decided; a run goes on from there", out, journal.listed, journal.decided)
    for line in annotators.describe(settings):
        log.info("%s", line)
    log.info("shards: at most %d, into %s", -(-sum(found.values()) // options.shard_size), out / FOLDER)
