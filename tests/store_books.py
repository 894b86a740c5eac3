"""A run's outcomes, made up while they are written, what they come to, and what several stores hold of them.

What they come to is counted without panes; for the windows of Elasticsearch's documents `analytics.windows` says it.
"""

from __future__ import annotations

import contextlib
import json
import random
import secrets
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from clickhouse_driver import Client
from elastic_place import Place
from fault_checks import SECOND
from recordings import id_of

from analytics import documents
from analytics.documents import RunFacts
from analytics.fields import SERIES, pattern_of
from analytics.panes import PaneBuilder
from analytics.store_address import open_reader
from analytics.store_port import StoreError
from analytics.windows import windows
from bus.address import open_bus
from wire import ids, topics
from wire.records import Action, Beat, Control, End, Failure, Kind, Manifest, Outcome, Pane, Verdict

_FAILURES: Final = (*[Failure.NONE] * 14, Failure.TIMEOUT, Failure.RESET, Failure.SHED_LATE, Failure.UNKNOWN)
_BATCH, _PAUSE_S = 10, 0.03

Cell = tuple[str, str, int]  # figure, route, second


class Books:
    """What two workers write into a run while it goes on, and what it comes to. Use as a context manager."""

    def __init__(self, address: str, seed: int) -> None:
        self.run_id, self.count = ids.ulid(time.time_ns()), 0
        self.start_s = 0
        self.cells: Counter[Cell] = Counter()
        self._builder = PaneBuilder()
        self._random = random.Random(seed)
        self._address = address
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self.error: BaseException | None = None

    def __enter__(self) -> Books:
        self._thread.start()
        assert self._ready.wait(60), f"nothing can be written: {self.error}"
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """All of it is written, and the run is over."""
        self._stop.set()
        self._thread.join(60)
        if self.error is not None:
            raise self.error

    def panes(self) -> list[Pane]:
        """What the outcomes come to by the code under test, for windows."""
        return self._builder.take()

    def _write(self) -> None:
        try:
            with contextlib.closing(open_bus(self._address, self.run_id)) as bus:
                now = time.time_ns()

                def writer(topic: str, name: str) -> Any:
                    return bus.writer(topic, name, Manifest(topic, name, self.run_id, now, "tests"))

                books = [writer(topics.OUTCOMES, name) for name in ("w0", "w1")]
                control, beats = writer(topics.CONTROL, "conductor"), writer(topics.BEATS, "w0")
                control.write_records([Control(self.run_id, 1, Action.STEP, now, 0, 1.0)])
                self.start_s = now // SECOND
                number = 0
                while not self._stop.is_set():
                    made = [self._outcome() for _ in range(_BATCH)]
                    books[number % 2].write_records(made)
                    self._count(made)  # what was acknowledged
                    if number % 10 == 0:
                        beats.write_records([self._beat()])
                    self._ready.set()
                    number += 1
                    self._stop.wait(_PAUSE_S)
                for one, name in ((books[0], "w0"), (books[1], "w1"), (control, "conductor")):
                    one.end(End(self.run_id, name, 1, now, now))
        except BaseException as error:
            self.error = error

    def _beat(self) -> Beat:
        return Beat(self.run_id, "w0", time.time_ns(), 1, 0, 1, 1, 1, 3 * SECOND, 0, 0.0)

    def _outcome(self) -> Outcome:
        rng, number = self._random, self.count + self._random.randrange(1 << 20)
        late = rng.randrange(20, 90) * SECOND if rng.random() < 0.02 else 0  # comes into windows that are written
        done = time.time_ns() - late
        due, failure = done - rng.randrange(1_000_000, 2 * SECOND), rng.choice(_FAILURES)
        sent = due if failure in (Failure.NONE, Failure.TIMEOUT, Failure.RESET) else 0
        return Outcome(
            self.run_id, id_of(number, rng.randrange(1 << 30)), 0, 0, 0, f"GET /{rng.randrange(4)}", Kind.STRESS, due,
            sent, sent and done, sent and done, 0, rng.choice((200, 200, 404, 503)) if failure is Failure.NONE else 0,
            failure, 10, 20, Verdict.NONE, "w0",
        )  # fmt: skip

    def _count(self, made: Sequence[Outcome]) -> None:
        self._builder.add_all(made)
        self.count += len(made)
        for o in made:
            due, done = o.due_ns // SECOND, (o.done_ns or o.due_ns) // SECOND
            self.cells["offered", o.route, due] += 1
            if o.failure in (Failure.SHED_LATE, Failure.UNKNOWN):
                self.cells["shed" if o.failure is Failure.SHED_LATE else "unknown", o.route, due] += 1
                continue
            self.cells["completed", o.route, done] += o.failure is Failure.NONE
            self.cells["errors", o.route, done] += o.failure is not Failure.NONE or o.status >= 500
            if o.failure is not Failure.RESET:
                self.cells["latencies", o.route, done] += 1
                self.cells["ns", o.route, done] += o.done_ns - o.due_ns


def cells_of(panes: Sequence[Pane]) -> Counter[Cell]:
    """What a store's panes come to."""
    found: Counter[Cell] = Counter()
    for pane in panes:
        for name in ("offered", "shed", "unknown", "completed", "errors"):
            found[name, pane.route, pane.second] += getattr(pane, name)
        found["latencies", pane.route, pane.second] += pane.from_due.zero + sum(pane.from_due.counts)
        found["ns", pane.route, pane.second] += pane.from_due.total
    return found


class Stores:
    """A file, and a place of its own on each server. Use as a context manager."""

    def __init__(self, folder: Path, *, clickhouse: str = "", elasticsearch: str = "") -> None:
        self.addresses = {"file": str(folder / f"{secrets.token_hex(4)}.db")}
        self.place: Place | None = None
        self._clickhouse, self._database = clickhouse, "lf_" + secrets.token_hex(6)
        if clickhouse:
            self.addresses["ClickHouse"] = f"clickhouse://{clickhouse}/{self._database}"
        if elasticsearch:
            self.place = Place(elasticsearch)
            self.addresses["Elasticsearch"] = self.place.address

    def __enter__(self) -> Stores:
        if self._clickhouse:
            self._ask(f"CREATE DATABASE {self._database}")
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Exception):  # a server that was killed in the end
            if self._clickhouse:
                self._ask(f"DROP DATABASE {self._database}")
            if self.place is not None:
                self.place.remove()

    def _ask(self, sql: str) -> None:
        client = Client.from_url(f"clickhouse://{self._clickhouse}/default")
        try:
            client.execute(sql)
        finally:
            client.disconnect()

    def held(self, name: str, run_id: str) -> int:
        """How many outcomes a store holds; 0 when it cannot be asked."""
        try:
            with contextlib.closing(open_reader(self.addresses[name], run_id)) as reader:
                return sum(pane.offered for pane in reader.panes(run_id))
        except StoreError:
            return 0

    def problems(self, books: Books) -> list[str]:
        """Each store beside the outcomes."""
        found = []
        for name, address in self.addresses.items():
            with contextlib.closing(open_reader(address, books.run_id)) as reader:
                found += [
                    f"{name}: {text}" for text in cell_problems(cells_of(reader.panes(books.run_id)), books.cells)
                ]
                if reader.note("start_s") != str(books.start_s):
                    found.append(f"{name}: begins at {reader.note('start_s')}, not {books.start_s}")
        if self.place is not None:
            found += document_problems(self.place, books)
        return found


def cell_problems(found: Counter[Cell], wanted: Counter[Cell]) -> list[str]:
    problems = []
    for figure in sorted({figure for figure, _, _ in wanted}):
        there = {cell: n for cell, n in found.items() if cell[0] == figure and n}
        right = {cell: n for cell, n in wanted.items() if cell[0] == figure and n}
        if there != right:
            wrong = sum(there.get(cell) != right.get(cell) for cell in there.keys() | right.keys())
            problems.append(
                f"{figure}: {sum(there.values())}, of the outcomes {sum(right.values())}; {wrong} cells are wrong"
            )
    return problems


def document_problems(place: Place, books: Books) -> list[str]:
    """Documents of windows beside what `analytics.windows` makes of the outcomes."""
    problems, panes = [], books.panes()
    facts = RunFacts()
    for series in SERIES:
        there = {}
        for both in (False, True):
            pattern = pattern_of(series, all_routes=both, name=place.name)
            body = {"size": 10_000, "query": {"term": {"livefire.run_id": books.run_id}}}
            there |= {hit["_id"]: hit["_source"] for hit in place.search(body, pattern)["hits"]["hits"]}
        histograms = any("livefire.latencies_ms" in source for source in there.values())
        right = {}
        found = windows(panes, every_s=series.every_s, over_s=series.over_s, start_s=books.start_s, watermark_s=1 << 40)
        for window in found:
            made = documents.window_document(window, series, facts, name=place.name, histograms=histograms)
            right[made.id] = json.loads(msgspec.json.encode(made.source))
        if there != right:
            wrong = [name for name in there.keys() & right.keys() if there[name] != right[name]]
            one = next(
                ((k, there[n].get(k), v) for n in wrong for k, v in right[n].items() if there[n].get(k) != v), ""
            )
            missing = sorted(right.keys() - there.keys())
            problems.append(
                f"Elasticsearch, {series.name}: {len(there.keys() - right.keys())} documents too many, "
                f"{len(missing)} of {len(right)} missing {missing[:2]}, {len(wrong)} wrong {one}"
            )
    return problems
