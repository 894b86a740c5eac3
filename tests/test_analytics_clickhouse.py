"""The ClickHouse store: what its suite of the contract does not reach. Views in SQL, crashes of either side, errors in one line."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from servers.clickhouse import ClickHouse
from servers.fixtures import started
from store_backends import BACKENDS, Opener
from test_analytics_store_contract import of_run, pane_batch, same, some, source
from test_analytics_windows import START, outcome, panes_of

from analytics.clickhouse_schema import bring_up, migrations, statements, views
from analytics.fields import SERIES
from analytics.store_address import StoreAddress, open_reader, open_store, parse_address
from analytics.store_clickhouse import ClickHouseStore, DriverExecutor
from analytics.store_port import StoreAway, StoreError
from analytics.windows import windows
from wire.records import Failure, Kind, Outcome, SourceRange


@pytest.fixture(scope="module", params=["clickhouse", "clickhouse-folding", "chdb"])
def backend(request: pytest.FixtureRequest) -> Iterator[Opener]:
    with BACKENDS[request.param](request) as opener:
        yield opener


@pytest.fixture(scope="module")
def database(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a database of its own."""
    from clickhouse_driver import Client

    address = request.getfixturevalue("clickhouse_server").address
    host, _, port = address.partition(":")
    name = "lf_" + secrets.token_hex(6)
    client = Client(host, port=int(port))
    client.execute(f"CREATE DATABASE {name}")
    yield f"clickhouse://{address}/{name}"
    client.execute(f"DROP DATABASE {name}")
    client.disconnect()


def traffic(run_id: str, seconds: int, seed: int) -> list[Outcome]:
    rng = random.Random(seed)
    return of_run(
        [
            outcome(
                ms,
                int(rng.lognormvariate(8, 1.5)) + 1,
                status=rng.choice([200] * 8 + [404, 500]),
                failure=rng.choice([Failure.NONE] * 30 + list(Failure)),
                route=rng.choice(["GET /x", "POST /y"]),
                kind=rng.choice([Kind.STRESS, Kind.STRESS, Kind.PRODUCTION]),
                step=ms // 60_000,
                late_ms=rng.randrange(5),
            )
            for ms in range(0, seconds * 1000, 40)
        ],
        run_id,
    )


def fill(store: Any, made: Sequence[Outcome], parts: int = 7) -> None:
    size = -(-len(made) // parts)
    for number in range(parts):
        store.apply(pane_batch(made[number * size : (number + 1) * size]), [source(number, f"w{number % 2}")])


def test_views_tell_the_same_windows_as_python(backend):
    """All series, per route and for all routes; percentiles computed in SQL."""
    run_id = f"views-{secrets.token_hex(3)}"
    made = traffic(run_id, 150, 3)
    with contextlib.closing(backend(run_id)) as store, contextlib.closing(backend(run_id + "b")) as other:
        fill(other, traffic(run_id + "b", 20, 4))
        store.set_note("start_s", str(START + 3))
        fill(store, made)
        store.set_note("watermark_s", str(START + 70))
        ask = store._ask
        shown = 0
        for series in SERIES:
            right = [
                w.as_dict()
                for w in windows(
                    panes_of(made),
                    every_s=series.every_s,
                    over_s=series.over_s,
                    start_s=START + 3,
                    watermark_s=START + 70,
                )
            ]
            for scope in ("windows", "totals"):
                names = [
                    "start",
                    "elapsed_s",
                    "step",
                    "kind",
                    "route",
                    "offered",
                    "completed",
                    "failed",
                    "errors",
                    "shed",
                    "unknown",
                    "differing",
                    "bytes_out",
                    "bytes_in",
                    "p50_ms",
                    "p90_ms",
                    "p95_ms",
                    "p99_ms",
                    "max_ms",
                    "send_p50_ms",
                    "send_p90_ms",
                    "send_p95_ms",
                    "send_p99_ms",
                    "final",
                    "error_share",
                    "offered_rate",
                    "completed_rate",
                ]
                found = ask(
                    f"SELECT {', '.join(names)} FROM {scope}_{series.name} WHERE run = '{run_id}' ORDER BY start, kind, route"
                )
                expected = [w for w in right if (w["route"] == "*") == (scope == "totals")]
                assert len(found) == len(expected) > 0, series.name
                for row, window in zip(found, expected, strict=True):
                    told = dict(zip(names, row, strict=True))
                    assert told.pop("start") * 1_000_000_000 == window["start_ns"]
                    assert bool(told.pop("final")) == window["final"]
                    for name, value in told.items():
                        wanted = window[name.replace("send_", "service_")]
                        if isinstance(wanted, float):
                            assert value == pytest.approx(wanted, abs=6e-4), (series.name, name)
                        else:
                            assert value == wanted, (series.name, name)
                    shown += told["p99_ms"] is not None
        assert shown > 0


def test_roll_ups_hold_what_panes_hold_and_nothing_twice(backend):
    run_id = f"rolled-{secrets.token_hex(3)}"
    made = traffic(run_id, 100, 5)
    with contextlib.closing(backend(run_id)) as store:
        store._fold_rows = 10
        store.set_note("start_s", str(START))
        fill(store, made)
        store.apply([], [source(30)])  # the one before is rolled up now
        panes = store._ask(f"SELECT sum(offered), sum(due_total) FROM panes WHERE run = '{run_id}'")
        for span in (5, 10, 60, 600):
            found = store._ask(
                f"SELECT sum(offered), sum(due_total) FROM rollups WHERE run = '{run_id}' AND span = {span}"
            )
            assert found[0][0] > 0
            assert found[0][0] <= panes[0][0]
        store._ask("OPTIMIZE TABLE rollups FINAL")  # merges add up, and lose no mark of a range
        same(store, made, run_id)
        parts = store._ask("SELECT count() FROM rollups WHERE run = '" + run_id + "' AND span = 0")
        assert parts[0][0] >= 2


def test_an_insert_is_one_part_also_when_it_is_large(database):
    """What is atomic is a part. The control: two inserts are two."""
    run_id = f"large-{secrets.token_hex(3)}"
    with contextlib.closing(open_store(database, run_id)) as store:
        name = parse_address(database).name  # type: ignore[union-attr]
        count = f"SELECT count() FROM system.parts WHERE database = '{name}' AND table = '{{}}' AND rows > 300"
        panes = pane_batch(of_run([outcome(i * 1000, route=f"/r{i % 7}") for i in range(70_000)], run_id))
        store.apply(panes, [source(0)])
        assert store._ask(count.format("panes"))[0][0] == 1
        store.apply(panes, [source(1)])
        assert store._ask(count.format("panes"))[0][0] == 2
        store._fold_rows = 1
        store.set_note("start_s", str(START))
        store.apply([], [source(2)])  # 70000 slots and more in one fold
        assert store._ask(count.format("rollups"))[0][0] == 1


WRITER = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from analytics.store_address import open_store
from test_analytics_store_contract import pane_batch, some, source
store = open_store({address!r}, {run!r})
store.set_note("start_s", "1800000000")
store._fold_rows = 100
number = store.resume("outcomes", "w0") // 100
while True:
    store.apply(pane_batch(some({run!r}, number % 50)), [source(number)])
    print(number, flush=True)
    number += 1
"""


def test_a_killed_writer_loses_nothing_and_counts_nothing_twice(database):
    run_id = f"killed-{secrets.token_hex(3)}"
    root, tests = str(Path(__file__).parents[1]), str(Path(__file__).parent)
    script = WRITER.format(root=root, tests=tests, address=database, run=run_id)
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    rng = random.Random(seed)
    acknowledged = -1
    for _ in range(6):
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            goal = acknowledged + rng.randrange(5, 25)
            for line in process.stdout:
                acknowledged = int(line)
                if acknowledged >= goal:
                    time.sleep(rng.random() * 0.01)  # anywhere in what comes next
                    os.kill(process.pid, signal.SIGKILL)
                    break
            acknowledged = max([acknowledged, *(int(line) for line in process.stdout if line.endswith("\n"))])
    with contextlib.closing(open_store(database, run_id)) as store:
        count = store.resume("outcomes", "w0") // 100
        assert acknowledged + 1 <= count <= acknowledged + 2
        same(
            store, [o for number in range(count) for o in some(run_id, number % 50)], run_id, spans=((10, 10), (5, 60))
        )


def test_it_goes_on_after_the_server_was_killed():
    """kill -9 of the server between and during inserts: StoreAway, and the same call counts once."""
    with started(ClickHouse) as server:
        address = f"clickhouse://{server.address}/default"
        with contextlib.closing(open_store(address, "r")) as store:
            store.set_note("start_s", str(START))
            made: list[Outcome] = []
            store._fold_rows = 60
            away = 0
            for number in range(24):
                batch = some("r", number)
                killer = threading.Timer(random.random() * 0.02, server.kill)
                if number % 8 == 4:
                    killer.start()
                until = time.monotonic() + 60
                while True:
                    try:
                        assert store.apply(pane_batch(batch), [source(number)]), number
                        break
                    except StoreAway as error:
                        assert "\n" not in str(error)
                        away += 1
                        assert time.monotonic() < until
                        with contextlib.suppress(Exception):
                            server.start()
                made += batch
                if number % 8 == 4:
                    killer.join()
            assert away
            same(store, made, "r", spans=((10, 10), (5, 60)))


def test_a_frozen_server_is_away_and_counts_once_when_it_thaws():
    with started(ClickHouse) as server:
        address = parse_address(f"clickhouse://{server.address}/default")
        assert isinstance(address, StoreAddress)
        executor = DriverExecutor(address, patience_s=1)
        with contextlib.closing(ClickHouseStore(executor, "r")) as store:
            store.apply(pane_batch(some("r", 0)), [source(0)])
            server.freeze()
            with pytest.raises(StoreAway) as told:
                store.apply(pane_batch(some("r", 1)), [source(1)])
            assert "\n" not in str(told.value) and len(str(told.value)) > len(
                f"clickhouse://{server.address}/default: "
            )
            server.thaw()
            until = time.monotonic() + 20
            while True:
                try:
                    assert store.apply(pane_batch(some("r", 1)), [source(1)])
                    break
                except StoreAway:
                    assert time.monotonic() < until
            same(store, some("r", 0) + some("r", 1), "r", spans=((10, 10),))


class Losing:
    """An executor whose answers to an insert are lost: it is in the table, and the client does not know."""

    def __init__(self, executor: Any) -> None:
        self._executor, self.lose = executor, False

    def insert(self, *args: Any) -> None:
        self._executor.insert(*args)
        if self.lose:
            self.lose = False
            raise StoreAway("the answer was lost")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)


def test_a_lost_answer_counts_once_whether_the_call_is_repeated_or_regrouped(backend):
    for regrouped in (False, True):
        run_id = f"lost-{secrets.token_hex(3)}"
        with contextlib.closing(backend(run_id)) as store:
            losing = store._executor = Losing(store._executor)
            store.apply(pane_batch(some(run_id, 0)), [source(0)])
            losing.lose = True
            with pytest.raises(StoreAway):
                store.apply(pane_batch(some(run_id, 1)), [source(1)])
            if regrouped:
                assert store.resume("outcomes", "w0") == 200
                assert not store.apply(
                    pane_batch(some(run_id, 0) + some(run_id, 1)), [SourceRange("outcomes", "w0", 0, 200)]
                )
            else:
                assert store.apply(pane_batch(some(run_id, 1)), [source(1)])  # it came through, by this call
                assert not store.apply(pane_batch(some(run_id, 1)), [source(1)])
            same(store, some(run_id, 0) + some(run_id, 1), run_id, spans=((10, 10),))


# ---------------------------------------------------------------------------- errors, each one line


def refused(call: Callable[[], Any], *words: str) -> str:
    with pytest.raises(StoreError) as told:
        call()
    text = str(told.value)
    assert "\n" not in text and len(text) < 300, text
    for word in words:
        assert word in text, text
    return text


def test_what_is_wrong_with_an_address_is_told_in_one_line(database, monkeypatch, tmp_path):
    server = database.removeprefix("clickhouse://").partition("/")[0]
    port = server.rpartition(":")[2]
    monkeypatch.setenv("LF_WRONG", "no-such-secret")
    text = refused(lambda: open_store(f"clickhouse://default:LF_WRONG@{server}/default", "r"), "password")
    assert "no-such-secret" not in text
    refused(lambda: open_store(f"clickhouse://nobody@{server}/default", "r"), "nobody@", "user or password")
    text = refused(lambda: open_store(f"clickhouse://default:s3cret@{server}/default", "r"), "environment variable")
    assert "s3cret" not in text
    refused(
        lambda: open_store(f"clickhouse://{server}/lf_not_there", "r"), "no database lf_not_there", "CREATE DATABASE"
    )
    refused(lambda: open_store("clickhous://x/y", "r"), "no such kind of store", "did you mean 'clickhouse'?")
    refused(lambda: open_store("mongodb://x/y", "r"), "no such kind of store", "elasticsearch")
    for forgotten in ("db:9000/livefire", "clickhouse:db:9000", "127.0.0.1:8123"):
        refused(lambda text=forgotten: open_store(text, "r"), "neither an address nor a path", "clickhouse://")
    refused(lambda: open_store("clickhouse://host:port/y", "r"), "not an address")
    refused(lambda: open_store(f"clickhouse://{server}/a/b", "r"), "one name")
    refused(lambda: open_store("", "r"), "empty")
    with pytest.raises(StoreAway) as told:
        open_store("clickhouse://127.0.0.1:9/x", "r")
    assert "\n" not in str(told.value) and "127.0.0.1:9" in str(told.value)
    assert port


def test_a_port_that_speaks_something_else_is_told(tmp_path):
    script = "import http.server as h; s = h.HTTPServer(('127.0.0.1', 0), h.SimpleHTTPRequestHandler); print(s.server_port, flush=True); s.serve_forever()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=tmp_path
    ) as web:
        try:
            assert web.stdout is not None
            port = int(web.stdout.readline())
            refused(lambda: open_store(f"clickhouse://127.0.0.1:{port}/x", "r"), f"127.0.0.1:{port}", "9000")
        finally:
            web.kill()


def test_the_http_port_is_told_from_a_server_that_is_slow():
    with started(ClickHouse) as server:
        http = server.http.replace("http://", "clickhouse://")
        refused(lambda: open_store(f"{http}/default", "r"), f"{http}/default: this is an HTTP port", "9000")
        address = parse_address(f"clickhouse://{server.address}/default")
        assert isinstance(address, StoreAddress)
        server.freeze()
        with pytest.raises(StoreAway) as told:
            ClickHouseStore(DriverExecutor(address, patience_s=1.6), "r")
        server.thaw()
        assert str(told.value) == f"{address}: does not answer"


def test_a_reader_makes_nothing_and_says_what_is_missing(clickhouse_server):
    from clickhouse_driver import Client

    host, _, port = clickhouse_server.address.partition(":")
    name = "lf_" + secrets.token_hex(6)
    client = Client(host, port=int(port))
    client.execute(f"CREATE DATABASE {name}")
    try:
        with contextlib.closing(open_reader(f"clickhouse://{clickhouse_server.address}/{name}", "r")) as reader:
            refused(lambda: reader.panes("r"), "table is missing")
        assert client.execute(f"SHOW TABLES FROM {name}") == []
        client.execute(f"CREATE TABLE {name}.panes (x UInt8) ENGINE = Memory")
        refused(lambda: open_store(f"clickhouse://{clickhouse_server.address}/{name}", "r"), name)
    finally:
        client.execute(f"DROP DATABASE {name}")
        client.disconnect()


def test_an_old_server_and_a_newer_schema_are_refused(database):
    class Old:
        shown, database = "clickhouse://old:9000/x", "x"

        def execute(self, sql: str) -> list[tuple[str]]:
            return [("1.1.54394",)]

    text = refused(lambda: ClickHouseStore(Old(), "r"), "1.1 is too old")  # type: ignore[arg-type]
    assert "18.16" in text
    with contextlib.closing(open_store(database, "r")) as store:
        try:
            store._ask("INSERT INTO livefire_migrations (name, digest) SELECT '900_later.sql', 'x'")
            assert "900_later.sql" in refused(lambda: open_store(database, "r2"), "newer version")
        finally:
            store._ask("DROP TABLE livefire_migrations")


def test_a_repeated_insert_is_found_by_the_server_too_where_it_can(backend):
    run_id = f"token-{secrets.token_hex(3)}"
    with contextlib.closing(backend(run_id)) as store:
        assert store.apply(pane_batch(some(run_id, 0)), [source(0)])
        if store.version < (22, 2):
            return  # tokens are newer
        store._insert(pane_batch(some(run_id, 0)), [source(0)])  # past our own look at what is held
        same(store, some(run_id, 0), run_id, spans=((10, 10),))


# ---------------------------------------------------------------------------- migrations


def test_migrations_are_applied_once_in_order_and_more_of_them_to_a_newer_server(backend):
    with contextlib.closing(backend("m")) as store:
        store.open_for_writing()
        held = [row[0] for row in store._ask("SELECT name FROM livefire_migrations ORDER BY name")]
        assert held == sorted([*migrations(store.version), *views()])
        assert bring_up(store._ask, store.version, "x") == []
    old, new = list(migrations((18, 16))), list(migrations((26, 9)))
    assert old == ["001_panes.sql", "002_rollups.sql"]
    assert new[: len(old)] == old and "004_ttl.sql" in new
    assert set(migrations((20, 3))) == set(new) - {"005_insert_deduplication.sql"}


def test_a_view_is_made_again_when_its_text_changes(database):
    with contextlib.closing(open_store(database, "v")) as store:
        name = next(iter(views()))
        store._ask(f"INSERT INTO livefire_migrations (name, digest, at) SELECT '{name}', 'older', now() + 5")
        assert bring_up(store._ask, store.version, "x") == [name]


def test_statements_end_at_the_end_of_a_line():
    assert statements("A 'x;y';\n-- b;\n") == ["A 'x;y'", "-- b"]
