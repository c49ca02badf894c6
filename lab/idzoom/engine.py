"""A run: what is listed and not decided goes through Ray Data in order, and one writer decides and fills the shards."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from tqdm import tqdm

from likeness.core.errors import LikenessError, bad_input

from . import annotators
from .filters import Seen
from .journal import AT_ONCE, Decision, Journal, batches
from .places import Place
from .sample import FAILED, Outcome, examine
from .settings import Settings
from .shards import Shard, key_of, tidy

log = logging.getLogger("likeness")

ROOT = Path(__file__).parents[2]
PENDING = ".pending"
#: Pictures a worker takes at once; pictures of one task of Ray's, which has its cost whatever is in it.
BATCH, TASK = 8, 32
MOST_TASKS = 10_000
#: A run in which so many pictures, and most of all, made the annotators fail is stopped: something else is wrong.
MOST_FAILURES = 32
#: Decisions are written down after so many shards' worth of pictures, even if none of them is kept.
PATIENCE = 4
#: Times that Ray is started before it is given up.
ATTEMPTS = 3


@dataclass(frozen=True)
class Plan:
    """How a run is carried out; what becomes of the pictures does not depend on it.

    Attributes:
        out: folder of shards, journal and manifest.
        workers: how many pictures are looked at at the same time, each by a process with its own models.
        gpus: of each worker, for Ray; may be a fraction.
        shard_size: samples of a shard.
        store: bytes of Ray's object store on this machine.
        progress: show a bar.
    """

    out: Path
    workers: int = 1
    gpus: float = 0.0
    shard_size: int = 1000
    store: int = 512 * 2**20
    progress: bool = True


def run(journal: Journal, settings: Settings, plan: Plan) -> None:
    """Decide all that is listed and not decided.

    Raises:
        LikenessError: weights that are asked for are not there; annotators fail again and again.
    """
    first, count = journal.decided + 1, journal.listed - journal.decided
    tidy(plan.out, journal.next_shard)
    if count < 1:
        return
    folder = plan.out / PENDING
    try:
        spread(journal.pending(), folder)
        outcomes = outcomes_of(folder, count, settings, plan)
        with tqdm(total=count, unit="picture", disable=not plan.progress, smoothing=0.05) as bar:
            Writer(journal, settings, plan).take(first, outcomes, bar)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- looking, on Ray --------------------------------------------------------------------------------------------------


def spread(places: Iterator[Place], folder: Path) -> None:
    """Write the places where every worker can read them: files of :data:`AT_ONCE` lines, numbered from 0."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for i, some in enumerate(batches(places, AT_ONCE)):
        (folder / f"{i:08d}").write_text("".join(f"{place.dumps()}\n" for place in some), "ascii")


class Worker:
    """What runs in each of Ray's processes: ids of pending places in, outcomes out."""

    def __init__(self, folder: str, settings: Settings) -> None:
        self.folder, self.settings = Path(folder), settings
        self.annotators = annotators.make(settings)
        self.page: tuple[int, list[str]] = (-1, [])

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        ids = batch["id"]
        packed = np.empty(len(ids), dtype=object)
        for i, number in enumerate(ids.tolist()):
            packed[i] = pickle.dumps(examine(self.place(number), self.annotators, self.settings))
        return {"id": ids, "outcome": packed}

    def place(self, number: int) -> Place:
        """The pending place of a number from 0."""
        page, line = divmod(number, AT_ONCE)
        if self.page[0] != page:
            self.page = (page, (self.folder / f"{page:08d}").read_text("ascii").splitlines())
        return Place.loads(self.page[1][line])


def outcomes_of(folder: Path, count: int, settings: Settings, plan: Plan) -> Iterator[Outcome]:
    """The outcomes of all pending places in their order, as they come in."""
    ray = connect(plan)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    tasks = min(MOST_TASKS, -(-count // TASK))
    looked_at = ray.data.range(count, override_num_blocks=tasks).map_batches(
        Worker, fn_constructor_args=(str(folder), settings), batch_size=BATCH, batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=plan.workers), num_cpus=1, num_gpus=plan.gpus or None,
    )  # fmt: skip
    expected = 0
    for batch in looked_at.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
        for number, packed in zip(batch["id"].tolist(), batch["outcome"], strict=True):
            if number != expected:
                raise RuntimeError(f"picture {number} came where {expected} was due")
            expected += 1
            yield pickle.loads(packed)


def connect(plan: Plan) -> Any:
    """Ray, on the cluster of ``RAY_ADDRESS`` or with processes of its own on this machine.

    Raises:
        LikenessError: Ray is not installed.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as cause:
        raise bad_input("IDZoom", f"no Ray ({cause})", "the extra idzoom installed",
                        'Run: pip install "ray[data]" webdataset imagehash') from cause  # fmt: skip
    if ray.is_initialized():
        return ray
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if os.environ.get("RAY_ADDRESS"):
        modules = [str(ROOT / name) for name in ("lab", "likeness")]
        return started(ray, runtime_env={"py_modules": modules}, **options)
    paths = (str(ROOT), os.environ.get("PYTHONPATH", ""))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return started(ray, address="local", num_cpus=plan.workers + 1, object_store_memory=plan.store,
                   include_dashboard=False, **options)  # fmt: skip


def started(ray: Any, **options: Any) -> Any:
    """Ray after ``ray.init``. It gives its own processes half a minute, which is not enough on a very busy machine."""
    here = psutil.Process()
    for more in reversed(range(ATTEMPTS)):
        others = set(here.children(recursive=True))
        try:
            ray.init(**options)
            break
        except Exception as error:  # it has no class of its own
            if not more or "timed out" not in str(error):
                raise
            log.info("Ray did not start in time; once more")
            for process in set(here.children(recursive=True)) - others:  # it would leave them until the end
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
    return ray


# --- deciding and writing ---------------------------------------------------------------------------------------------


class Writer:
    """The one who decides in order: what is a duplicate of what was kept, and which shard a sample goes to."""

    def __init__(self, journal: Journal, settings: Settings, plan: Plan) -> None:
        self.journal, self.settings, self.plan = journal, settings, plan
        self.seen: Seen = journal.seen()
        self.waiting: list[Decision] = []
        self.shard: Shard | None = None
        self.kept = self.failed = self.looked_at = 0

    def take(self, first: int, outcomes: Iterator[Outcome], bar: tqdm) -> None:
        """Decide outcomes, the first of which is that of picture ``first``, and write down what is decided."""
        try:
            for number, outcome in enumerate(outcomes, first):
                self.decide(number, outcome)
                bar.set_postfix(kept=self.kept, refresh=False)
                bar.update()
            self.commit()
        finally:
            if self.shard is not None:
                self.shard.abandon()

    def decide(self, number: int, outcome: Outcome) -> None:
        """Keep or drop one picture."""
        reason, detail = self.verdict(outcome)
        shard = None
        if not reason:
            self.shard = self.shard or Shard(self.plan.out, self.journal.next_shard)
            shard = self.shard.number
            self.shard.write(key_of(number), outcome.members)
            self.seen.add(number, outcome.bits)
            self.kept += 1
        self.waiting.append(Decision(number, reason, detail, shard, outcome.bits, outcome.facts))
        full = self.shard is not None and self.shard.count >= self.plan.shard_size
        if full or len(self.waiting) >= PATIENCE * self.plan.shard_size:
            self.commit()

    def verdict(self, outcome: Outcome) -> tuple[str, str]:
        """Reason and detail; both empty for a picture that is kept."""
        self.looked_at += 1
        if outcome.reason == FAILED:
            self.failed += 1
            if self.failed >= MOST_FAILURES and 2 * self.failed > self.looked_at:
                raise LikenessError(f"IDZoom: the annotators failed on {self.failed} pictures of {self.looked_at}, "
                                    f"last with {outcome.detail}. Mend that, then run the same command.")  # fmt: skip
        if outcome.reason:
            return outcome.reason, outcome.detail
        nearest = self.seen.nearest(outcome.bits) if self.settings.distance >= 0 else None
        if nearest is not None and nearest[1] <= self.settings.distance:
            return "duplicate", f"of {key_of(nearest[0])}, {nearest[1]} bits of 256 differ"
        return "", ""

    def commit(self) -> None:
        """Finish the shard, then write down what was decided."""
        if self.shard is not None:
            self.shard.finish()
            self.shard = None
        if self.waiting:
            self.journal.commit(self.waiting)
            self.waiting = []


def write_manifest(journal: Journal, path: Path) -> None:
    """One line of JSON a picture: what it is, whether it is kept, in which shard, or why it is not."""
    temporary = path.with_suffix(".part")
    with temporary.open("w", encoding="ascii") as file:
        for place, decision in journal.decisions():
            file.write(json.dumps(manifest_row(place, decision)) + "\n")
    os.replace(temporary, path)


def manifest_row(place: Place, decision: Decision) -> dict[str, Any]:
    """A picture's line of the manifest."""
    where = None if decision.shard is None else f"idzoom-{decision.shard:06d}.tar"
    return {
        "key": key_of(decision.number), "source": place.name, "kept": decision.shard is not None, "shard": where,
        "reason": decision.reason, "detail": decision.detail, "hash": decision.bits.hex(),
        **{name: value for name, value in decision.facts.items() if name != "source"},
    }  # fmt: skip
