"""What is to be looked at and what became of it: an SQLite file in the output folder that vouches for the shards.

Pictures have numbers in the order in which they were listed, and are decided in that order. A shard is moved to its
name first and then written into the journal, with every decision since the shard before, in one transaction. So a
shard that the journal does not know is from a run that was killed between the two, and is made again.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from likeness.core.errors import bad_input

from .filters import Seen
from .places import Place
from .settings import Settings

FILE, LOCK = "journal.sqlite", "journal.lock"
TABLES = """
CREATE TABLE IF NOT EXISTS settings (text TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS item (number INTEGER PRIMARY KEY, name BLOB UNIQUE NOT NULL, place TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS decision (
    number INTEGER PRIMARY KEY, reason TEXT NOT NULL, detail TEXT NOT NULL, shard INTEGER, bits BLOB NOT NULL,
    facts TEXT NOT NULL
);
"""
AT_ONCE = 1000


@dataclass(frozen=True)
class Decision:
    """What became of the picture of a number; ``shard`` is None where it was dropped, for ``reason``."""

    number: int
    reason: str
    detail: str
    shard: int | None
    bits: bytes
    facts: dict[str, Any]


class Journal:
    """The journal of an output folder, held by one run at a time; a context manager.

    Raises:
        LikenessError: another run holds it.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(folder / LOCK)
        try:
            self.lock.acquire(timeout=0)
        except Timeout as cause:
            raise bad_input("IDZoom: --out", f"{folder}, where another run is at work", "a folder of its own",
                            "Wait for it to end, or choose another folder.") from cause  # fmt: skip
        self.base = sqlite3.connect(folder / FILE, isolation_level=None)
        self.base.execute("PRAGMA synchronous = FULL")
        self.base.executescript(TABLES)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *raised: object) -> None:
        self.base.close()
        self.lock.release()

    def claim(self, settings: Settings) -> None:
        """Note the settings of a new folder, or see that they are those of before.

        Raises:
            LikenessError: the folder was made with others.
        """
        self.check(settings)
        if self.base.execute("SELECT 1 FROM settings").fetchone() is None:
            self.base.execute("INSERT INTO settings VALUES (?)", (json.dumps(asdict(settings)),))

    def check(self, settings: Settings) -> None:
        """Raise unless these are the settings of the folder, or it has none yet."""
        row = self.base.execute("SELECT text FROM settings").fetchone()
        now = json.loads(json.dumps(asdict(settings)))
        before = now if row is None else json.loads(row[0])
        changed = [f"{key} {before.get(key)!r}, now {now[key]!r}" for key in now if before.get(key) != now[key]]
        if changed:
            raise bad_input("IDZoom: --out", f"a folder made with {'; '.join(changed)}", "the settings that it has",
                            "Give the same options again, or choose another folder.")  # fmt: skip

    def add(self, places: Iterable[Place]) -> int:
        """List places behind those that are there; how many were new."""
        before = self._one("SELECT COUNT(*) FROM item")
        for some in batches(places, AT_ONCE):
            rows = [(os.fsencode(place.name), place.dumps()) for place in some]
            with self.transaction():
                self.base.executemany("INSERT OR IGNORE INTO item (name, place) VALUES (?, ?)", rows)
        return self._one("SELECT COUNT(*) FROM item") - before

    def transaction(self) -> Transaction:
        """All or nothing of what is executed inside."""
        return Transaction(self.base)

    def commit(self, decisions: Sequence[Decision]) -> None:
        """Write decisions down; they follow those that are there."""
        rows = [(d.number, d.reason, d.detail, d.shard, d.bits, json.dumps(d.facts)) for d in decisions]
        with self.transaction():
            self.base.executemany("INSERT INTO decision VALUES (?, ?, ?, ?, ?, ?)", rows)

    @property
    def decided(self) -> int:
        """The last number that is decided; all before it are."""
        return self._one("SELECT COALESCE(MAX(number), 0) FROM decision")

    @property
    def listed(self) -> int:
        """The last number that is listed."""
        return self._one("SELECT COALESCE(MAX(number), 0) FROM item")

    @property
    def next_shard(self) -> int:
        """Number of the first shard that is not there yet."""
        return self._one("SELECT COALESCE(MAX(shard) + 1, 0) FROM decision")

    def pending(self) -> Iterator[Place]:
        """The places that are listed and not decided, in order."""
        return self.places(self.decided)

    def places(self, after: int) -> Iterator[Place]:
        """The places behind a number, in order."""
        with closing(self.base.cursor()) as cursor:
            for (text,) in cursor.execute("SELECT place FROM item WHERE number > ? ORDER BY number", (after,)):
                yield Place.loads(text)

    def seen(self) -> Seen:
        """The hashes of all that was kept, in this run's folder, by whatever run."""
        seen = Seen()
        for number, bits in self.base.execute("SELECT number, bits FROM decision WHERE shard NOT NULL ORDER BY number"):
            seen.add(number, bits)
        return seen

    def counts(self) -> dict[str, int]:
        """Pictures by reason; ``""``: kept."""
        return dict(self.base.execute("SELECT reason, COUNT(*) FROM decision GROUP BY reason ORDER BY COUNT(*) DESC"))

    def decisions(self, where: str = "1", values: Sequence[object] = ()) -> Iterator[tuple[Place, Decision]]:
        """Every decision with its place, in order; ``where`` narrows them down in SQL's words."""
        query = (
            "SELECT place, number, reason, detail, shard, bits, facts FROM decision JOIN item USING (number) "
            f"WHERE {where} ORDER BY number"
        )
        with closing(self.base.cursor()) as cursor:
            for place, number, reason, detail, shard, bits, facts in cursor.execute(query, values):
                yield Place.loads(place), Decision(number, reason, detail, shard, bits, json.loads(facts))

    def some(self, reason: str, count: int) -> list[tuple[Place, Decision]]:
        """Up to ``count`` pictures of a reason, spread evenly over all of it."""
        total = self._one("SELECT COUNT(*) FROM decision WHERE reason = ?", (reason,))
        step = max(1, total // count)
        where = (
            "number IN (SELECT number FROM (SELECT number, ROW_NUMBER() OVER (ORDER BY number) AS row FROM decision "
            "WHERE reason = ?) WHERE (row - 1) % ? = 0)"
        )
        return list(self.decisions(where, (reason, step)))[:count]

    def _one(self, query: str, values: Sequence[object] = ()) -> int:
        return int(self.base.execute(query, values).fetchone()[0])


class Transaction:
    """A context manager: committed at its end, rolled back where something was raised."""

    def __init__(self, base: sqlite3.Connection) -> None:
        self.base = base

    def __enter__(self) -> None:
        self.base.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *raised: object) -> None:
        self.base.execute("COMMIT" if kind is None else "ROLLBACK")


def batches(values: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of ``size``, the last one shorter."""
    source = iter(values)
    while some := list(islice(source, size)):
        yield some
