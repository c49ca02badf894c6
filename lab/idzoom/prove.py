"""``run.py idzoom prove``: what the engine takes and what it survives, measured on drawn pictures.

Every run is ``run.py idzoom make`` in processes of its own, watched from outside: a tenth of the files with one worker
and with two, all with two, and the tenth once more, killed with all its processes at random moments and begun again.
Hostile files are among them. What is measured stays in --out; a proof that was ended goes on with the run it was at.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import psutil
from tqdm import tqdm

from likeness.core.errors import LikenessError, bad_input
from likeness.formats.files import write_whole

from . import hostile
from .draw import drawn_path, put
from .make import MANIFEST
from .places import find
from .shards import FOLDER, keys
from .watch import Cost, Tree

log = logging.getLogger("likeness")

ROOT = Path(__file__).parents[2]
MIB = 2**20
PICTURES, TENTH, REST = "pictures", "tenth", "rest"
#: The runs, as they are called in the table.
ONE, TWO, ALL, KILLED = "a tenth", "a tenth, 2 workers", "all, 2 workers", "a tenth, killed"
#: Bounds: CPU seconds of one worker over those of two; the peak memory of all over that of a tenth, less 1.
LEAST_EFFICIENCY, MOST_GROWTH = 0.85, 0.10
#: Shards of the tenth, about: so many stretches lie between its moments of rest.
SHARDS = 20
#: Faces of full bodies in small drawn pictures, in pixels.
LEAST_FACE = 8
#: A picture near the limit takes its pixels in memory, whatever the engine does; a drawn one needs little.
MOST_PIXELS = 4_000_000
#: Seconds between two looks for the next shard.
BLINK = 0.02
#: Seconds after which a run that has not come to the moment of its kill is given up.
LONGEST = 3600
FILE, TABLE = "prove.json", "prove.md"


@dataclass(frozen=True)
class Plan:
    """What is proved on; a folder has one.

    Attributes:
        pictures: files, hostile ones included.
        hostile: how many of them.
        side: of a drawn picture, in pixels.
        kills: how often a run is killed.
        faces: who finds faces, see ``run.py idzoom make``.
        seed: of the moments of the kills.
    """

    pictures: int = 20_000
    hostile: int = 500
    side: int = 128
    kills: int = 10
    faces: str = "truth"
    seed: int = 0

    @property
    def tenth(self) -> int:
        """Files of the small runs."""
        return self.pictures // 10


@dataclass(frozen=True)
class Kill:
    """A run's sudden end: so many seconds after its start, when so many shards were whole."""

    seconds: float
    shards: int


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    Attributes:
        workers: processes that looked at pictures.
        cost: what it took; of a killed run, its last part.
        sources: what its input held, as the engine lists it.
        reasons: decisions by reason; ``""``: kept.
        hostile: the same of the hostile files, by kind.
        lost, twice: sources without a decision or kept ones without a sample; such with more than one.
        moments: seconds after its start at which each shard was whole. digest: of the bytes of all shards.
        kills: before its end.
    """

    workers: int
    cost: Cost
    sources: int
    reasons: dict[str, int]
    hostile: dict[str, dict[str, int]]
    lost: int
    twice: int
    moments: list[float]
    digest: str
    kills: list[Kill]

    @classmethod
    def of(cls, values: dict) -> Outcome:
        """The inverse of ``asdict``."""
        return cls(**{**values, "cost": Cost(**values["cost"]), "kills": [Kill(**kill) for kill in values["kills"]]})


def main(argv: Sequence[str]) -> int:
    """``python run.py idzoom prove``; 1 where a bound is broken."""
    options = parser().parse_args(argv)
    plan = Plan(options.pictures, options.hostile, options.side, options.kills, options.faces, options.seed)
    check(plan)
    out = options.out.resolve()
    outcomes = prove(plan, out)
    text = report(plan, outcomes)
    write_whole(out / TABLE, text.encode())
    print(text, end="")
    broken = broken_bounds(outcomes)
    for words in broken:
        log.error("broken: %s", words)
    return 1 if broken else 0


def parser() -> argparse.ArgumentParser:
    """The options of ``prove``; the defaults are those of :class:`Plan`."""
    made = argparse.ArgumentParser(prog="run.py idzoom prove", description=__doc__)
    made.add_argument("--out", type=Path, required=True, help="folder of the pictures, the runs and the table")
    for name, text in {
        "pictures": "files, hostile ones among them", "hostile": "hostile files", "side": "pixels of a drawn picture",
        "kills": "how often a run is killed", "seed": "of the moments of the kills",
    }.items():  # fmt: skip
        made.add_argument(f"--{name}", type=int, default=getattr(Plan, name), help=f"{text} (default: %(default)s)")
    made.add_argument("--faces", choices=("truth", "miniature"), default=Plan.faces, help="default: %(default)s")
    return made


def check(plan: Plan) -> None:
    """Raise unless the plan can be carried out."""
    if plan.tenth < SHARDS:
        raise bad_input("IDZoom: --pictures", plan.pictures, f"{10 * SHARDS} or more", "Raise it.")
    if not 1 <= plan.hostile <= plan.pictures // 2:
        raise bad_input("IDZoom: --hostile", plan.hostile, f"1 to half of {plan.pictures} files", "Correct it.")


def prove(plan: Plan, out: Path) -> dict[str, Outcome]:
    """Draw, run and kill; outcomes that are in the folder already are taken from there."""
    store = Store(out / FILE, plan)
    put_pictures(plan, out)
    one, two, end = (Run(plan, out, *what) for what in ((ONE, 1, (TENTH,)), (TWO, 2, (TENTH,)), (KILLED, 2, (TENTH,))))
    every = Run(plan, out, ALL, 2, (TENTH, REST))
    store.once(ONE, lambda: one.outcome(one.finish()))
    store.once(TWO, lambda: two.outcome(two.finish()))
    store.once(KILLED, lambda: killed(end, plan, store.outcomes[TWO]))
    store.once(ALL, lambda: every.outcome(every.finish()))
    return store.outcomes


def put_pictures(plan: Plan, out: Path) -> None:
    """The files, a tenth of them in one folder and the others in another; one in so many is hostile."""
    every = plan.pictures // plan.hostile
    with tqdm(total=plan.pictures, unit="picture", disable=not sys.stderr.isatty()) as bar:
        for number in range(plan.pictures):
            folder = out / PICTURES / (TENTH if number < plan.tenth else REST)
            if number % every == 0 and number // every < plan.hostile:
                hostile.put(drawn_path(folder, number).parent, number // every, number, plan.side)
            else:
                put(folder, number, plan.side)
            bar.update()


class Store:
    """The outcomes of a plan, kept in a file as they come.

    Raises:
        LikenessError: the file is of another plan.
    """

    def __init__(self, file: Path, plan: Plan) -> None:
        self.file, self.plan, self.outcomes = file, asdict(plan), {}
        if file.is_file():
            kept = json.loads(file.read_text())
            if kept["plan"] != self.plan:
                raise bad_input("IDZoom: --out", f"a folder made with {kept['plan']}", "the options that it has",
                                "Give the same options again, or choose another folder.")  # fmt: skip
            self.outcomes = {name: Outcome.of(values) for name, values in kept["outcomes"].items()}

    def once(self, name: str, work: Callable[[], Outcome]) -> None:
        """Do the work, unless its outcome is there."""
        if name not in self.outcomes:
            log.info("%s ...", name)
            self.outcomes[name] = work()
            kept = {"plan": self.plan, "outcomes": {key: asdict(one) for key, one in self.outcomes.items()}}
            write_whole(self.file, json.dumps(kept, indent=1).encode())


# --- runs -------------------------------------------------------------------------------------------------------------


class Run:
    """``run.py idzoom make`` into a folder of its own.

    Args:
        out: folder of the proof. name: of the run. parts: of the pictures' folders.
    """

    def __init__(self, plan: Plan, out: Path, name: str, workers: int, parts: Sequence[str]) -> None:
        self.inputs = [str(out / PICTURES / part) for part in parts]
        self.out, self.log, self.workers = out / re.sub(r"\W+", "_", name), out / "runs.log", workers
        self.command = [
            sys.executable, str(ROOT / "run.py"), "idzoom", "make", *self.inputs, "--out", str(self.out),
            "--workers", str(workers), "--shard-size", str(plan.tenth // SHARDS), "--least-side", str(plan.side),
            "--least-face", str(LEAST_FACE), "--most-pixels", str(MOST_PIXELS), "--faces", plan.faces,
            "--effort", "quick",
        ]  # fmt: skip

    @contextmanager
    def started(self) -> Iterator[Tree]:
        """The command at work; what Ray leaves on the disk is removed behind it."""
        with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
            # Ray's workers give way to everything else by default: what else runs would decide how fast they are
            self.begun = time.time()
            tree = Tree(self.command, self.log, {**os.environ, "RAY_TMPDIR": folder, "RAY_worker_niceness": "0"})
            try:
                yield tree
            finally:
                tree.kill()

    def finish(self, fresh: bool = True) -> Cost:
        """To its end, from the beginning or from where it is."""
        if fresh:
            shutil.rmtree(self.out, ignore_errors=True)
        with self.started() as tree:
            return tree.finish()

    def killed_at(self, shards: int, later: float) -> Kill | None:
        """Start it, and kill it so many seconds after so many shards are whole; None where it came to its end.

        Raises:
            LikenessError: it failed, or does not come so far.
        """
        with self.started() as tree:
            while len(self.shards()) < shards and tree.process.poll() is None:
                if time.monotonic() - tree.started > LONGEST:
                    raise LikenessError(f"IDZoom: a run has not made {shards} shards in {LONGEST} s ({self.log})")
                time.sleep(BLINK)
            try:
                tree.process.wait(later)
            except subprocess.TimeoutExpired:
                tree.kill()
                return Kill(time.monotonic() - tree.started, len(self.shards()))
            tree.finish()
        return None

    def shards(self) -> list[Path]:
        """The whole ones, in order."""
        return sorted((self.out / FOLDER).glob("*.tar"))

    def outcome(self, cost: Cost, kills: Sequence[Kill] = ()) -> Outcome:
        """What is in its folder, held against what it was given."""
        sources = {place.name for place in find(self.inputs)}
        rows = [json.loads(line) for line in (self.out / MANIFEST).read_text("ascii").splitlines()]
        told, kept = Counter(row["source"] for row in rows), {row["key"] for row in rows if row["kept"]}
        written = Counter(key for path in self.shards() for key in keys(path))
        sha = sha256()
        for path in self.shards():
            sha.update(path.read_bytes())
        return Outcome(
            self.workers, cost, len(sources), dict(Counter(row["reason"] for row in rows)), by_kind(rows),
            lost=len(sources - told.keys()) + len(kept - written.keys()),
            twice=sum(count > 1 for part in (told, written) for count in part.values()) + len(written.keys() - kept),
            moments=[path.stat().st_mtime - self.begun for path in self.shards()], digest=sha.hexdigest(),
            kills=list(kills),
        )  # fmt: skip


def killed(run: Run, plan: Plan, calm: Outcome) -> Outcome:
    """A run that is killed at random moments and begun again each time, then left in peace.

    A moment is a number of whole shards, and a share of the time that the undisturbed run took from there to the next
    one: so moments lie everywhere in the run, and in its start.
    """
    shutil.rmtree(run.out, ignore_errors=True)
    rng, kills = random.Random(plan.seed), []
    for shards in sorted(rng.randrange(len(calm.moments)) for _ in range(plan.kills)):
        before = calm.moments[shards - 1] if shards else 0.0
        kill = run.killed_at(shards, rng.random() * (calm.moments[shards] - before))
        kills += [kill] if kill else []
    return run.outcome(run.finish(fresh=False), kills)


def by_kind(rows: Sequence[dict]) -> dict[str, dict[str, int]]:
    """Decisions of hostile files by kind and reason."""
    found: dict[str, Counter[str]] = {}
    for row in rows:
        kind = re.search(rf"/{hostile.PREFIX}([a-z-]+)-\d{{8}}", row["source"])
        if kind:
            found.setdefault(kind[1], Counter())[row["reason"]] += 1
    return {kind: dict(found[kind]) for kind in hostile.KINDS if kind in found}


# --- the table --------------------------------------------------------------------------------------------------------


def efficiency(outcomes: dict[str, Outcome]) -> float:
    """CPU seconds of the tenth with one worker over those with two."""
    return outcomes[ONE].cost.cpu / outcomes[TWO].cost.cpu


def growth(outcomes: dict[str, Outcome]) -> float:
    """How much the peak memory of all pictures lies above that of the tenth, as a share."""
    return outcomes[ALL].cost.peak / outcomes[TWO].cost.peak - 1


def broken_bounds(outcomes: dict[str, Outcome]) -> list[str]:
    """The bounds that do not hold, in words."""
    same = len({outcomes[name].digest for name in (ONE, TWO, KILLED)}) == 1
    bounds = {
        "a picture is lost or twice": not any(one.lost or one.twice for one in outcomes.values()),
        "shards differ from those of an undisturbed run": same,
        f"two workers take more than 1/{LEAST_EFFICIENCY} of one's CPU time": efficiency(outcomes) >= LEAST_EFFICIENCY,
        f"memory grows by more than {MOST_GROWTH:.0%}": growth(outcomes) <= MOST_GROWTH,
    }
    return [words for words, holds in bounds.items() if not holds]


def report(plan: Plan, outcomes: dict[str, Outcome]) -> str:
    """What was measured, as Markdown."""
    lines = [
        f"{plan.pictures} files of {plan.side} pixels a side, {plan.hostile} of them hostile; faces by {plan.faces}; "
        f"{psutil.cpu_count()} cores, shared with whatever else ran.", "",
        "| run | pictures | kept | wall-clock, s | pictures/s a worker | CPU, s | CPU a picture, ms | others' cores "
        "| peak, MiB | processes |", "|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    lines += [_row(name, outcomes[name]) for name in (ONE, TWO, ALL)]
    end, calm, every = outcomes[KILLED], outcomes[TWO], outcomes[ALL]
    more = every.sources - calm.sources
    cpu, wall = (getattr(every.cost, name) - getattr(calm.cost, name) for name in ("cpu", "seconds"))
    moments = ", ".join(f"{kill.seconds:.1f} s ({kill.shards})" for kill in end.kills)
    same = "equal to the byte" if len({outcomes[name].digest for name in (ONE, TWO, KILLED)}) == 1 else "NOT equal"
    return "\n".join([
        *lines, "",
        f"- Without the start, from the last two rows: {1000 * cpu / more:.1f} ms of CPU a picture, "
        f"{more / wall / every.workers:.1f} pictures/s a worker.",
        f"- From 1 to 2 workers: efficiency {efficiency(outcomes):.2f} on CPU time; wall-clock "
        f"{outcomes[ONE].cost.seconds / calm.cost.seconds:.2f} times as fast, while others kept "
        f"{outcomes[ONE].cost.others:.1f} and {calm.cost.others:.1f} cores busy.",
        f"- Memory at {every.sources} pictures against {calm.sources}: {growth(outcomes):+.1%}.",
        f"- Killed {len(end.kills)} times, after (whole shards): {moments or '-'}. Lost {end.lost}, twice {end.twice}; "
        f"the {len(end.moments)} shards of the killed run, of one worker and of two are {same}.",
        f"- Dropped of all: {_reasons(every.reasons)}.", "",
        "| hostile | what became of it |", "|---|---|",
        *(f"| {kind} | {_reasons(reasons, kept=True)} |" for kind, reasons in every.hostile.items()), "",
    ])  # fmt: skip


def _row(name: str, one: Outcome) -> str:
    cost, kept = one.cost, one.reasons.get("", 0)
    return (
        f"| {name} | {one.sources} | {kept} | {cost.seconds:.0f} | {one.sources / cost.seconds / one.workers:.1f} "
        f"| {cost.cpu:.0f} | {1000 * cost.cpu / one.sources:.1f} | {cost.others:.1f} | {cost.peak / MIB:.0f} "
        f"| {cost.processes} |"
    )


def _reasons(reasons: dict[str, int], kept: bool = False) -> str:
    found = sorted(((count, reason) for reason, count in reasons.items() if reason or kept), reverse=True)
    return ", ".join(f"{count} {reason or 'kept'}" for count, reason in found) or "none"
