"""Outcomes from the bus into stores: what one costs, and how soon it can be read there."""

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from clickhouse_driver import Client
from clickhouse_driver.errors import ServerException
from servers.process import Missing

from analytics.app import Aggregator
from analytics.store_address import open_reader, open_store
from analytics.store_port import StoreError
from bench.fleet_bed import (
    ROOT,
    Cost,
    Place,
    Row,
    Servers,
    cost_of,
    opened,
    percentile,
    show,
    skipped,
    slow,
    topics_of_its_own,
)
from bench.fleet_carry import consume
from bus import kafka_layout as layout
from bus.address import KafkaAddress, open_bus
from bus.ports import Bus
from wire import codec, topics
from wire.ids import ulid
from wire.records import End, Failure, Kind, Manifest, Outcome, Verdict

NS = 1_000_000_000
_NAMES = ["orders", "carts", "items", "users", "prices", "stock", "tax", "ads"]
_ROUTES = [f"GET /shop/{name}/{{id}}" for name in _NAMES]
_WORKERS = 2
_AHEAD_S = 15  # an aggregator follows new runs from before they begin: it has made the day's indices by then


# ---------------------------------------------------------------------------- places of stores


@contextlib.contextmanager
def database(place: Place) -> Iterator[str]:
    """The address of a ClickHouse database of its own."""
    name = f"bench_{secrets.token_hex(4)}"
    client = Client.from_url(f"clickhouse://{place.address}/default")
    client.execute(f"CREATE DATABASE {name}")
    try:
        yield f"clickhouse://{place.address}/{name}"
    finally:
        client.execute(f"DROP DATABASE {name}")
        client.disconnect()


def ask(place: Place, method: str, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"http://{place.address}{path}", data, headers, method=method)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


@contextlib.contextmanager
def indices(place: Place) -> Iterator[str]:
    """The address of an Elasticsearch prefix of its own."""
    name = f"bench-{secrets.token_hex(4)}"
    try:
        yield f"elasticsearch://{place.address}/{name}"
    finally:
        for path in (
            *(f"/{name}-{kind}*?expand_wildcards=all" for kind in ("windows", "totals", "panes", "runs", "floor")),
            *(f"/_index_template/{name}-{kind}" for kind in ("windows", "totals", "panes", "runs", "exemplars")),
            *(f"/_component_template/{name}-{kind}-fields" for kind in ("window", "range", "run", "exemplar")),
        ):
            with contextlib.suppress(urllib.error.URLError):
                ask(place, "DELETE", path)


# ---------------------------------------------------------------------------- what one costs


def outcomes_of(run: str, count: int, rate: int, begin_ns: int) -> list[Outcome]:
    """As a worker books them: 8 routes, latencies from 2 to 66 ms, 1 of 100 a 503, 1 of 500 timed out."""
    made = []
    for n in range(count):
        due = begin_ns + n * NS // rate
        mixed = n * 2_654_435_761 & 0xFFFFFFFF
        latency = 2_000_000 + (mixed % 64_000) * 1000
        bad = n % 500 == 499
        made.append(
            Outcome(
                run, mixed.to_bytes(16, "big"), 0, 0, 0, _ROUTES[mixed % 8], Kind.STRESS, due, due + 300_000,
                0 if bad else due + latency - 100_000, due + latency, 0, 0 if bad else 503 if n % 100 == 7 else 200,
                Failure.TIMEOUT if bad else Failure.NONE, 420, 0 if bad else 512, Verdict.SAME, "w0",
            )
        )  # fmt: skip
    return made


def fill(bus: Bus, run: str, count: int, rate: int = 20_000) -> None:
    """Two workers' outcomes, 500 a batch."""
    begin_ns = time.time_ns() - count * NS // rate
    held = outcomes_of(run, count, rate, begin_ns)
    for worker in range(_WORKERS):
        name, mine = f"w{worker}", held[worker::_WORKERS]
        manifest = Manifest(topics.OUTCOMES, name, run, begin_ns, "bench", settings={"speed": 1.0})
        with contextlib.closing(bus.writer(topics.OUTCOMES, name, manifest)) as writer:
            parts = [mine[at : at + 500] for at in range(0, len(mine), 500)]
            writer.write_many([codec.encode(p, first_ns=p[0].due_ns, last_ns=p[-1].due_ns) for p in parts])
            writer.end(End(run, name, len(mine), 0, 0))


def aggregated(servers: Servers, rounds: int, count: int) -> None:
    kafka = servers.get("kafka")
    click: Place | None = None
    try:
        click = servers.get("clickhouse")
    except Missing as missing:
        skipped("outcomes -> ClickHouse", missing)
    costs: dict[str, list[Cost]] = {"floor": [], "embedded": [], "clickhouse": []}
    slowness = []
    for _ in range(rounds):
        run = ulid(time.time_ns())
        with topics_of_its_own(kafka.address) as address, tempfile.TemporaryDirectory() as folder:
            slowness.append(slow())
            opened(address, run, lambda bus, run=run: fill(bus, run, count))
            topic = layout.kafka_topic(address.prefix, topics.OUTCOMES)
            costs["floor"].append(
                cost_of(lambda a=address, t=topic: [codec.decode(m) for m in consume(a, t)], count, kafka.pid)
            )
            costs["embedded"].append(_aggregate(address, run, f"{folder}/", count, 0))
            if click is not None:
                with database(click) as store:
                    costs["clickhouse"].append(_aggregate(address, run, store, count, click.pid))
    floor = [cost.us for cost in costs["floor"]]
    rows = [
        Row("floor: consume and decode", costs["floor"]),
        Row("bus -> panes -> embedded store", costs["embedded"], floor, 400_000),
    ]
    if click is not None:
        rows.append(Row("bus -> panes -> ClickHouse", costs["clickhouse"], floor, 300_000))
    title = (
        f"outcomes from the bus -> panes -> store: {count:,} of {_WORKERS} workers, 500 a batch, {len(_ROUTES)} routes"
    )
    show(title, rows, slowness)


def _aggregate(address: KafkaAddress, run: str, where: str, count: int, server: int) -> Cost:
    with contextlib.closing(open_bus(str(address), run)) as bus, contextlib.closing(open_store(where, run)) as store:
        aggregator = Aggregator(bus, store)
        cost = cost_of(aggregator.drain, count, server)
        stored = sum(pane.offered for pane in store.panes(run))
        aggregator.close()
    if stored != count:
        raise SystemExit(f"{where}: holds {stored} of {count} outcomes: nothing was measured")
    return cost


# ---------------------------------------------------------------------------- how soon it can be read


def visible(servers: Servers, seconds: float) -> None:
    """A batch each 250 ms, as a worker writes them; each store followed by a `livefire aggregate` of its own."""
    kafka = servers.get("kafka")
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-fleet-"))
        stores: dict[str, tuple[str, Callable[[str], int], Callable[[], float]]] = {}
        embedded = f"{folder}/stores/"
        Path(embedded).mkdir()
        stores["embedded"] = embedded, _count_panes(embedded), _floor_embedded(embedded)
        for name, place_of in (("clickhouse", database), ("elasticsearch", indices)):
            try:
                server = servers.get(name)
            except Missing as missing:
                skipped(f"visible in {name}", missing)
                continue
            store = stack.enter_context(place_of(server))
            if name == "clickhouse":
                stores[name] = store, _count_panes(store), _floor_clickhouse(store)
            else:
                prefix = store.rpartition("/")[2]
                stores[name] = store, _count_documents(server, prefix), _floor_elasticsearch(server, prefix)
        print(f"\noutcome done -> it can be read: a batch each 250 ms for {seconds:g} s; ms (target: p99 2000)")
        print(f"{'':20}{'p50':>8}{'p90':>8}{'p99':>8}{'max':>8}{'looks':>8}   floor: the store's own write -> read")
        address = stack.enter_context(topics_of_its_own(kafka.address))
        for name, (store, count, floor) in stores.items():
            bare = [floor() * 1000 for _ in range(10)]
            late, looks = _one_store(address, store, count, seconds)
            print(
                f"{name:20}{percentile(late, 0.5):8.0f}{percentile(late, 0.9):8.0f}{percentile(late, 0.99):8.0f}"
                f"{max(late):8.0f}{looks:8}   p50 {percentile(bare, 0.5):.0f}, max {max(bare):.0f}"
                + ("" if percentile(late, 0.99) <= 2000 else "  MISSED"),
                flush=True,
            )


def _one_store(
    address: KafkaAddress, store: str, count: Callable[[str], int], seconds: float
) -> tuple[list[float], int]:
    """Milliseconds from a batch's outcomes being done to the first look that found them, and how many looks."""
    run = ulid(time.time_ns())
    written: list[tuple[int, float]] = []  # outcomes so far, when the last of them was done
    options = ("--bus", str(address), "--store", store, "--stdin-guard")
    argv = (sys.executable, "-m", "livefire", "aggregate", *options)
    seen: list[tuple[int, float]] = []

    def write(bus: Bus) -> None:
        manifest = Manifest(topics.OUTCOMES, "w0", run, time.time_ns(), "bench", settings={"speed": 1.0})
        writer = bus.writer(topics.OUTCOMES, "w0", manifest)
        total, until = 0, time.monotonic() + seconds + 5
        while time.monotonic() < until:
            time.sleep(0.25)
            now_ns, now = time.time_ns(), time.monotonic()
            writer.write_records(outcomes_of(run, 50, 200, now_ns - NS // 4))
            total += 50
            written.append((total, now))
        writer.end(End(run, "w0", total, 0, 0))

    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=said, stderr=said)
        time.sleep(_AHEAD_S)
        writing = threading.Thread(target=lambda: opened(address, run, write))
        writing.start()
        try:
            deadline = time.monotonic() + seconds + 40
            while time.monotonic() < deadline:
                with contextlib.suppress(StoreError, ServerException, urllib.error.URLError):  # not there yet
                    found = count(run)
                    seen.append((found, time.monotonic()))
                if not writing.is_alive() and seen and seen[-1][0] >= written[-1][0]:
                    break
                time.sleep(0.02)
        finally:
            writing.join()
            assert child.stdin is not None
            child.stdin.close()
            child.wait(30)
    begun = written[0][1] + 2  # a new run is looked for once a second
    late = []
    for total, done in written:
        if done >= begun:
            when = next((at for found, at in seen if found >= total), float("inf"))
            late.append((when - done) * 1000)
    return late, len(seen)


def _count_panes(store: str) -> Callable[[str], int]:
    """What `livefire windows` and the report read: the panes."""
    if store.startswith("clickhouse"):
        client = Client.from_url(store)
        return lambda run: int(client.execute("SELECT sum(offered) FROM panes WHERE run = %(run)s", {"run": run})[0][0])

    def count(run: str) -> int:
        with contextlib.closing(open_reader(store, run)) as reader:
            return sum(pane.offered for pane in reader.panes(run))

    return count


def _count_documents(place: Place, prefix: str) -> Callable[[str], int]:
    """What Kibana reads: documents of windows, as a search finds them."""
    body = {
        "size": 0,
        "query": {"term": {"livefire.run_id": ""}},
        "aggs": {"n": {"sum": {"field": "livefire.offered"}}},
    }

    def count(run: str) -> int:
        body["query"]["term"]["livefire.run_id"] = run
        found = ask(place, "POST", f"/{prefix}-windows-tumbling-10s-*/_search?ignore_unavailable=true", body)
        return int(found["aggregations"]["n"]["value"]) if "aggregations" in found else 0

    return count


def _until(seen: Callable[[], bool]) -> float:
    began = time.monotonic()
    while not seen():
        if time.monotonic() - began > 30:
            raise SystemExit("what was written into a store is not to be read")
        time.sleep(0.005)
    return time.monotonic() - began


def _floor_embedded(folder: str) -> Callable[[], float]:
    import sqlite3

    path = f"{folder}/floor.sqlite"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE t (n INTEGER)")

    def one() -> float:
        n, began = secrets.randbelow(1 << 60), time.monotonic()
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("INSERT INTO t VALUES (?)", (n,))
        with contextlib.closing(sqlite3.connect(path)) as db:
            _until(lambda: db.execute("SELECT 1 FROM t WHERE n = ?", (n,)).fetchone() is not None)
        return time.monotonic() - began

    return one


def _floor_clickhouse(store: str) -> Callable[[], float]:
    client = Client.from_url(store)
    client.execute("CREATE TABLE floor_rows (n UInt64) ENGINE = MergeTree ORDER BY n")

    def one() -> float:
        n, began = secrets.randbelow(1 << 60), time.monotonic()
        client.execute("INSERT INTO floor_rows VALUES", [(n,)])
        _until(lambda: client.execute(f"SELECT count() FROM floor_rows WHERE n = {n}")[0][0] == 1)
        return time.monotonic() - began

    return one


def _floor_elasticsearch(place: Place, prefix: str) -> Callable[[], float]:
    index = f"/{prefix}-floor"
    settings = {"index": {"refresh_interval": "500ms", "number_of_replicas": 0}}
    ask(place, "PUT", index, {"settings": settings})

    def one() -> float:
        n, began = secrets.token_hex(8), time.monotonic()
        ask(place, "PUT", f"{index}/_doc/{n}", {"n": n})
        query = {"query": {"ids": {"values": [n]}}}
        _until(lambda: ask(place, "POST", f"{index}/_search", query)["hits"]["total"]["value"] == 1)
        return time.monotonic() - began

    return one
