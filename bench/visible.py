"""How long after an outcome is done it can be seen in each store.

    python bench/visible.py --elasticsearch HOST:PORT --clickhouse HOST:PORT [--seconds 30] [--routes 10] [--rate 400]

A worker's book grows by a batch every 50 ms, `livefire aggregate` runs with all stores at once, and what each shows is
asked over and over: in Elasticsearch by the sum over the default view that Kibana would show, without asking for a
refresh. The floor beside it, in the same run: one document (one row) written and asked for in the same way.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from clickhouse_driver import Client as ClickHouse

from analytics.elasticsearch_client import Client
from analytics.fields import SERIES, pattern_of
from analytics.store_address import StoreAddress, open_reader, parse_address
from analytics.store_port import StoreError
from bus.logfile import FileBus
from wire import topics
from wire.ids import ulid
from wire.records import Beat, Failure, Kind, Manifest, Outcome, Verdict

ROOT = Path(__file__).resolve().parent.parent
NS = 1_000_000_000
_BATCH_S = 0.05
_ASK_S = 0.03


class Watched:
    """A count that grows as things can be seen, and when each count was first due."""

    def __init__(self, name: str, count: Callable[[], int]) -> None:
        self.name, self._count = name, count
        self.latencies_s: list[float] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._written: list[tuple[int, float]] = []  # how many there are, since when
        self._stop = threading.Event()

    def start(self) -> None:
        self._thread.start()

    def wrote(self, count: int, at_s: float) -> None:
        self._written.append((count, at_s))

    def _run(self) -> None:
        seen = 0
        while not self._stop.is_set() or seen < len(self._written):
            count, now = self._count(), time.monotonic()
            while seen < len(self._written) and self._written[seen][0] <= count:
                self.latencies_s.append(now - self._written[seen][1])
                seen += 1
            time.sleep(_ASK_S)

    def stop(self, patience_s: float) -> None:
        self._stop.set()
        self._thread.join(patience_s)

    def line(self) -> str:
        found = sorted(self.latencies_s)
        if not found:
            return f"{self.name}: nothing was ever seen"
        p50, p90, p99 = (found[int(q * (len(found) - 1))] for q in (0.5, 0.9, 0.99))
        missing = len(self._written) - len(found)
        return (
            f"{self.name}: p50 {p50:.2f} s, p90 {p90:.2f} s, p99 {p99:.2f} s, most {found[-1]:.2f} s, "
            f"of {len(found)}" + (f"; {missing} NEVER SEEN" if missing else "")
        )


class Run:
    def __init__(self, root: Path, routes: int) -> None:
        self.run_id, self.routes, self.count = ulid(time.time_ns()), routes, 0
        bus = FileBus(root / self.run_id)
        now = time.time_ns()
        self._books = bus.writer(topics.OUTCOMES, "w0", Manifest(topics.OUTCOMES, "w0", self.run_id, now, "bench"))
        self._beats = bus.writer(topics.BEATS, "w0", Manifest(topics.BEATS, "w0", self.run_id, now, "bench"))

    def write(self, count: int) -> None:
        now = time.time_ns()
        self._books.write_records([self._outcome(now) for _ in range(count)])
        if self.count % 5 == 0:
            self._beats.write_records([Beat(self.run_id, "w0", now, 1, 0, 1, 1, 0, 0, 0, 0.0)])

    def _outcome(self, now: int) -> Outcome:
        self.count += 1
        due = now - random.randrange(1_000_000, 50_000_000)
        return Outcome(
            self.run_id, self.count.to_bytes(16, "big"), 0, 0, 0, f"GET /{self.count % self.routes}", Kind.STRESS,
            due, due, due, now, 0, 200, Failure.NONE, 10, 10, Verdict.NONE, "w0",
        )  # fmt: skip


def in_elasticsearch(where: StoreAddress, run_id: str) -> Callable[[], int]:
    client = Client(where)
    body = {
        "size": 0, "query": {"term": {"livefire.run_id": run_id}},
        "aggs": {"sum": {"sum": {"field": "livefire.count"}}},
    }  # fmt: skip
    path = f"/{pattern_of(SERIES[0], name=where.name)}/_search"

    def count() -> int:
        try:
            answer = client.request("POST", path, body, params={"ignore_unavailable": "true"})
        except StoreError:  # an index that is being made
            return 0
        return int(answer.get("aggregations", {}).get("sum", {}).get("value", 0))

    return count


def in_store(address: str, run_id: str) -> Callable[[], int]:
    local = threading.local()  # a reader is one thread's

    def count() -> int:
        try:
            if getattr(local, "reader", None) is None:
                local.reader = open_reader(address, run_id)
            return sum(pane.completed for pane in local.reader.panes(run_id))
        except StoreError:
            local.reader = None
            return 0

    return count


@contextlib.contextmanager
def elasticsearch_floor(where: StoreAddress) -> Iterator[tuple[Callable[[], None], Callable[[], int]]]:
    """(write one document, how many can be seen), of an index that is refreshed as often as windows are."""
    name, one, other = f"/{where.name}-floor", Client(where), Client(where)
    one.request("PUT", name, {"settings": {"number_of_shards": 1, "refresh_interval": "500ms"}})
    try:
        yield (
            lambda: one.request("POST", f"{name}/_doc", {"a": 1}),
            lambda: int(other.request("POST", f"{name}/_count")["count"]),
        )
    finally:
        one.request("DELETE", name)


@contextlib.contextmanager
def clickhouse_floor(where: StoreAddress) -> Iterator[tuple[Callable[[], None], Callable[[], int]]]:
    one, other = (ClickHouse(where.host, port=where.port, database=where.name) for _ in range(2))
    one.execute("CREATE TABLE floor (a UInt8) ENGINE = MergeTree ORDER BY a PARTITION BY a")
    yield (
        lambda: one.execute("INSERT INTO floor VALUES", [(1,)]),
        lambda: other.execute("SELECT count() FROM floor")[0][0],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elasticsearch", metavar="HOST:PORT")
    parser.add_argument("--clickhouse", metavar="HOST:PORT")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--routes", type=int, default=10)
    parser.add_argument("--rate", type=int, default=400, help="outcomes a second")
    args = parser.parse_args()
    name = "lf-visible-" + secrets.token_hex(4)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        run = Run(folder / "bus", args.routes)
        stores = [str(folder / "panes.db")]
        watched = [Watched("file", in_store(stores[0], run.run_id))]
        floors: list[tuple[Watched, Callable[[], None]]] = []
        if args.elasticsearch:
            stores.append(f"elasticsearch://{args.elasticsearch}/{name}")
            where = parse_address(stores[-1])
            assert isinstance(where, StoreAddress)
            stack.callback(remove, where)
            watched.append(Watched("Elasticsearch", in_elasticsearch(where, run.run_id)))
            write, count = stack.enter_context(elasticsearch_floor(where))
            floors.append((Watched("  floor: one document", count), write))
        if args.clickhouse:
            database = name.replace("-", "_")
            stores.append(f"clickhouse://{args.clickhouse}/{database}")
            where = parse_address(stores[-1])
            assert isinstance(where, StoreAddress)
            server = ClickHouse(where.host, port=where.port)
            server.execute(f"CREATE DATABASE {database}")
            stack.callback(server.execute, f"DROP DATABASE {database}")
            watched.append(Watched("ClickHouse", in_store(stores[-1], run.run_id)))
            write, count = stack.enter_context(clickhouse_floor(where))
            floors.append((Watched("  floor: one row", count), write))
        words = [sys.executable, "-m", "livefire", "aggregate", "--bus", str(folder / "bus"), "--stdin-guard"]
        for store in stores:
            words += ["--store", store]
        process = stack.enter_context(subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE))
        try:
            run.write(1)
            begun = time.monotonic()
            while any(one._count() < 1 for one in watched) and time.monotonic() - begun < 20:
                time.sleep(0.1)
            print(f"the first outcome, from the command's start: {time.monotonic() - begun:.1f} s", flush=True)
            measure(run, watched, floors, args.seconds, args.rate)
        finally:
            assert process.stdin is not None
            process.stdin.close()
        for one in (*watched, *(floor for floor, _ in floors)):
            print(one.line())


def measure(
    run: Run, watched: list[Watched], floors: list[tuple[Watched, Callable[[], None]]], seconds: float, rate: int
) -> None:
    for one in (*watched, *(floor for floor, _ in floors)):
        one.start()
    began, batches, written = time.monotonic(), 0, 0
    while (now := time.monotonic()) < began + seconds:
        done = time.monotonic()
        run.write(max(int(rate * _BATCH_S), 1))
        for one in watched:
            one.wrote(run.count, done)
        if batches % 20 == 0:  # once a second
            written += 1
            for floor, write in floors:
                done = time.monotonic()
                write()
                floor.wrote(written, done)
        batches += 1
        time.sleep(max(0.0, began + batches * _BATCH_S - now))
    for one in (*watched, *(floor for floor, _ in floors)):
        one.stop(20)


def remove(where: StoreAddress) -> None:
    client = Client(where)
    for kind in ("windows", "totals", "panes", "runs"):
        client.request("DELETE", f"/{where.name}-{kind}*", params={"expand_wildcards": "all"}, absent=True)
        client.request("DELETE", f"/_index_template/{where.name}-{kind}", absent=True)
    client.request("DELETE", f"/_index_template/{where.name}-exemplars", absent=True)
    for kind in ("window", "range", "run", "exemplar"):
        client.request("DELETE", f"/_component_template/{where.name}-{kind}-fields", absent=True)
    client.close()


if __name__ == "__main__":
    main()
