"""Kills the command that makes panes of outcomes, at random instants; and what a run with damaged files says."""

from __future__ import annotations

import random
import sqlite3
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from fault_checks import Front, Line, told, until
from recordings import SECOND, id_of

from bus.logfile import FileBus
from wire import ids, topics
from wire.records import Failure, Kind, Manifest, Outcome, Verdict

_BATCH = 20
_FAILURES = (*[Failure.NONE] * 7, Failure.TIMEOUT, Failure.SHED_LATE, Failure.UNKNOWN)


class Fate(NamedTuple):
    """What became of one shot, as it was made up here."""

    second: int
    failure: str


class Run:
    """Outcomes over a minute, some of them failed, some shed, some unknown."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.run_id = ids.ulid(time.time_ns())
        self.folder = folder / "runs" / self.run_id
        self.folder.mkdir(parents=True)
        (self.folder / "run.json").write_text("{}")
        manifest = Manifest(topics.OUTCOMES, "w0", self.run_id, 1, "tests")
        self.file = self.folder / "outcomes-w0.lf"
        self.writer = FileBus(self.folder).writer(topics.OUTCOMES, "w0", manifest)
        self.fates: list[Fate] = []

    def write(self, count: int) -> None:
        for first in range(0, count, _BATCH):
            self.writer.write_records([self._outcome(number) for number in range(first, min(first + _BATCH, count))])

    def _outcome(self, number: int) -> Outcome:
        due, failure = 1_700_000_000 * SECOND + number % 6000 * SECOND // 100, self.random.choice(_FAILURES)
        self.fates.append(Fate(due // SECOND, failure.value))
        sent = due if failure in (Failure.NONE, Failure.TIMEOUT) else 0
        return Outcome(
            self.run_id, id_of(len(self.fates)), 0, 0, 0, f"GET /{number % 20}", Kind.STRESS, due, sent,
            sent and sent + 1_000_000, sent and sent + number % 1009 * 1_000_000, 0,
            200 if failure is Failure.NONE else 0, failure, 10, 10, Verdict.NONE, "w0",
        )  # fmt: skip


def pane_problems(windows: list[Line], fates: list[Fate]) -> list[str]:
    """Windows beside what the shots came to, second by second."""
    problems = []
    for name, begins in (("offered", ""), ("unknown", "unknown"), ("shed", "shed")):
        expected = Counter(fate.second for fate in fates if fate.failure.startswith(begins))
        found = {w["start_ns"] // SECOND: w[name] for w in windows if w["route"] == "*" and w[name]}
        if found != expected:
            problems.append(f"{name}: {sum(found.values())} in the windows, {expected.total()} in the outcomes")
    return problems


def kill(folder: Path, seed: int, count: int = 80_000) -> tuple[bool, bool, list[str]]:
    """Hit, in flight, problems: one kill of `livefire windows` while it makes panes, then it is asked again."""
    run = Run(folder, seed)
    run.write(count)
    run.writer.close()
    store, size = run.folder / "panes.db", run.file.stat().st_size
    asked = ("windows", run.run_id, "--json", "--every", "1s")
    with Front(folder, *asked) as front:
        until(lambda: store.exists() or front.process.poll() is not None, 20, "no panes are made", front.err)
        time.sleep(run.random.uniform(0, count / 300_000))  # the instant is what is random
        hit = front.process.poll() is None
    taken = _taken(store)
    problems: list[str] = []
    windows, _ = told(folder, *asked, problems=problems)
    return hit, taken < size, problems + pane_problems(windows, run.fates)


def _taken(store: Path) -> int:
    """Up to which byte of the outcomes there are panes."""
    if not store.exists():
        return 0
    db = sqlite3.connect(f"file:{store}?mode=ro", uri=True)
    try:
        return int(db.execute('SELECT coalesce(max("end"), 0) FROM sources').fetchone()[0])
    except sqlite3.Error:
        return 0  # killed before its tables were there
    finally:
        db.close()


def damage(folder: Path, seed: int, count: int = 600) -> tuple[bool, bool, list[str]]:
    """Bytes of a growing outcomes file are overwritten between two looks at it: skipped, told, all else is read."""
    run = Run(folder, seed)
    run.write(count)
    asked = ("windows", run.run_id, "--json", "--every", "1s")
    problems: list[str] = []
    told(folder, *asked, problems=problems)
    seen = run.file.stat().st_size
    run.write(count)
    grown = run.file.stat().st_size - seen
    at = seen + run.random.choice((20, run.random.randrange(20, grown - 36)))  # often what comes next
    with open(run.file, "r+b") as file:
        file.seek(at)
        file.write(run.random.randbytes(16))
    told(folder, *asked, problems=problems)
    run.write(count)
    run.writer.close()
    outcomes, beside = told(folder, "outcomes", run.run_id, "--json", problems=problems)
    windows, beside_windows = told(folder, *asked, problems=problems)
    if not 3 * count - 2 * _BATCH <= len(outcomes) < 3 * count:
        problems.append(f"{len(outcomes)} of {3 * count} outcomes are read")
    left = [Fate(o["due_ns"] // SECOND, o["failure"] or "") for o in outcomes]
    if Counter(left) - Counter(run.fates):
        problems.append("outcomes are read that were never written")
    if "damaged" not in beside or "damaged" not in beside_windows:
        problems.append(f"nothing is said of the damage: {beside!r}, {beside_windows!r}")
    return True, True, problems + pane_problems(windows, left)
