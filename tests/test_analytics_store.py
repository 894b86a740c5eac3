"""The store: each batch counts once, whatever is repeated or killed; readers read while it is written."""

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_analytics_windows import RUN, START, outcome, panes_of

from analytics.app import PANES_FILE, Aggregator, aggregate, stored_windows, window_dicts
from analytics.production import ProductionReader
from analytics.settings import AnalyticsSettings
from analytics.store_port import StoreError
from analytics.store_sqlite import PaneStore, StoredPanes
from analytics.windows import windows
from bus.logfile import FileBus, LogWriter
from wire import codec
from wire.records import (
    Beat,
    Exchange,
    Failure,
    Fault,
    Kind,
    Manifest,
    Mode,
    Request,
    Response,
    Route,
    RouteTable,
    SourceRange,
)
from wire.routes import RouteMatcher

NS = 1_000_000_000


def batch_of(number: int) -> list:
    return [outcome(number * 700 + i * 13, 1000 + 17 * i, status=200 + i % 2 * 300) for i in range(20)]


def source(number: int, partition: str = "w0") -> SourceRange:
    return SourceRange("outcomes", partition, number * 100, number * 100 + 100)


def manifest(partition: str = "w0") -> Manifest:
    return Manifest("outcomes", partition, RUN, START * NS, "test")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 7), max_size=30))
def test_any_order_and_repetition_of_batches_gives_the_same_windows(tmp_path_factory, order):
    path = tmp_path_factory.mktemp("store") / "panes.db"
    with PaneStore(path) as store:
        for number in [*order, *range(8)]:
            store.apply(panes_of(batch_of(number)), [source(number)])
        found = list(windows(store.panes(RUN), every_s=2, over_s=4, start_s=START))
        assert store.resume("outcomes", "w0") == 800
    expected = panes_of(*[batch_of(number) for number in range(8)])
    assert found == list(windows(expected, every_s=2, over_s=4, start_s=START))


def test_the_same_batch_twice_changes_nothing(tmp_path):
    with PaneStore(tmp_path / "panes.db") as store:
        assert store.apply(panes_of(batch_of(0)), [source(0)])
        before = store.panes(RUN)
        assert not store.apply(panes_of(batch_of(0)), [source(0)])
        assert store.panes(RUN) == before
        # the control: of another source they are other outcomes
        assert store.apply(panes_of(batch_of(0)), [source(0, "w1")])
        assert sum(p.offered for p in store.panes(RUN)) == 40


def test_ranges_of_which_a_part_is_held_are_refused_and_change_nothing(tmp_path):
    with PaneStore(tmp_path / "panes.db") as store:
        store.apply(panes_of(batch_of(0)), [source(0)])
        before = store.panes(RUN)
        with pytest.raises(StoreError, match="overlaps"):
            store.apply(panes_of(batch_of(1)), [SourceRange("outcomes", "w0", 50, 150)])
        with pytest.raises(StoreError, match="only a part"):
            store.apply(panes_of(batch_of(1)), [source(0), source(1)])
        assert store.panes(RUN) == before
        assert store.resume("outcomes", "w0") == 100


def test_one_writer_any_readers(tmp_path):
    path = tmp_path / "panes.db"
    with pytest.raises(StoreError, match="no panes there"):
        StoredPanes(path)
    with PaneStore(path) as store:
        store.apply(panes_of(batch_of(0)), [source(0)])
        with pytest.raises(StoreError, match="another process"):
            PaneStore(path)
        with StoredPanes(path) as reader:
            assert sum(p.offered for p in reader.panes(RUN)) == 20
            store.apply(panes_of(batch_of(1)), [source(1)])
            assert sum(p.offered for p in reader.panes(RUN)) == 40
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                reader._db.execute("DELETE FROM panes")
    assert not Path(f"{path}-wal").exists()  # folded in: a finished run is one file
    (tmp_path / "other.db").write_bytes(b"not a database, long enough to be looked at" * 40)
    with pytest.raises(StoreError, match="not a database"):
        StoredPanes(tmp_path / "other.db")


WRITER = """
import sys
sys.path.insert(0, {root!r}); sys.path.insert(0, {tests!r})
from test_analytics_store import PaneStore, batch_of, panes_of, source
store = PaneStore({path!r})
number = store.resume("outcomes", "w0") // 100
while True:
    store.apply(panes_of(batch_of(number % 50)), [source(number)])
    print(number, flush=True)
    number += 1
"""


def test_a_killed_writer_loses_nothing_it_acknowledged(tmp_path):
    path = tmp_path / "panes.db"
    root, tests = str(Path(__file__).parents[1]), str(Path(__file__).parent)
    script = WRITER.format(root=root, tests=tests, path=str(path))
    acknowledged = -1
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            goal = acknowledged + 25
            for line in process.stdout:
                acknowledged = int(line)
                if acknowledged >= goal:
                    os.kill(process.pid, signal.SIGKILL)  # in the middle of what comes next
                    break
            acknowledged = max([acknowledged, *(int(line) for line in process.stdout if line.endswith("\n"))])
        with StoredPanes(path) as store:
            assert sum(p.offered for p in store.panes(RUN)) >= (acknowledged + 1) * 20
    with PaneStore(path) as writer:
        count = writer.resume("outcomes", "w0") // 100
        assert acknowledged + 1 <= count <= acknowledged + 2  # one more may have been committed and not yet told
        expected = panes_of(*[batch_of(number % 50) for number in range(count)])
        found = list(windows(writer.panes(RUN), every_s=5, over_s=5, start_s=START))
        assert found == list(windows(expected, every_s=5, over_s=5, start_s=START))


def test_the_aggregator_goes_on_where_the_store_stands(tmp_path):
    bus = FileBus(tmp_path / RUN)
    writer = bus.writer("outcomes", "w0", manifest())
    path = tmp_path / "panes.db"
    writer.write_records(batch_of(0))
    with PaneStore(path) as store:
        aggregator = Aggregator(bus, store)
        assert aggregator.poll() == 20
        assert aggregator.poll() == 0
        other = bus.writer("outcomes", "w1", manifest("w1"))  # a worker that joins
        other.write_records(batch_of(1))
        writer.write_records(batch_of(2))
        assert aggregator.poll() == 40
        aggregator.close()
    writer.write_records(batch_of(3))
    writer.end()
    other.end()
    with PaneStore(path) as store:
        again = Aggregator(bus, store)
        assert again.poll() == 20  # only what is new
        assert again.ended
        assert sum(p.offered for p in store.panes(RUN)) == 80
        again.close()


def test_it_goes_on_behind_damage_that_came_between_two_polls(tmp_path):
    """Each range begins where the last one ended: a gap would be taken for the place to go on from."""
    bus, path = FileBus(tmp_path / RUN), tmp_path / "panes.db"
    with bus.writer("outcomes", "w0", manifest()) as writer:
        writer.write_records(batch_of(0))
        with PaneStore(path) as store:
            aggregator = Aggregator(bus, store)
            assert aggregator.poll() == 20
            at = writer.next_offset
            writer.write_records(batch_of(1))
            with open(writer.path, "r+b") as file:
                file.seek(at + 20)
                file.write(b"\xff" * 16)
            writer.write_records(batch_of(2))
            assert aggregator.poll() == 20
            aggregator.close()
        writer.write_records(batch_of(3))
    with PaneStore(path) as store:
        aggregator = Aggregator(bus, store)
        aggregator.drain()
        assert sum(p.offered for p in store.panes(RUN)) == 60
        aggregator.close()


def test_windows_of_a_finished_run_count_every_outcome(tmp_path):
    run_dir = tmp_path / RUN
    bus = FileBus(run_dir)
    with bus.writer("outcomes", "w0", manifest()) as writer:
        for number in range(5):
            writer.write_records(batch_of(number))
        assert not any(w["final"] for w in window_dicts(run_dir, every="2s"))
        writer.end()
    found = window_dicts(run_dir, every="2s")
    assert sum(w["offered"] for w in found if w["route"] == "*") == 100
    assert all(w["final"] for w in found)
    assert (run_dir / PANES_FILE).exists()
    assert [w.as_dict() for w in stored_windows(run_dir, every="2s")] == found
    assert aggregate(run_dir) == run_dir / PANES_FILE


def test_a_damaged_batch_is_counted_and_the_rest_is_read(tmp_path):
    bus = FileBus(tmp_path / RUN)
    with bus.writer("outcomes", "w0", manifest()) as writer, PaneStore(tmp_path / "panes.db") as store:
        writer.write_records(batch_of(0))
        writer.write(b"LF\x01\x09" + b"\xff" * 60)
        writer.write_records(batch_of(1))
        aggregator = Aggregator(bus, store)
        aggregator.drain()
        assert (aggregator.progress.outcomes, aggregator.progress.unreadable) == (40, 1)


def test_the_last_request_is_the_last_of_all_batches_of_a_poll(tmp_path):
    """What is shed by a stop is booked after the last request that left, and must not hide it."""
    bus = FileBus(tmp_path / RUN)
    sent = batch_of(1)
    with bus.writer("outcomes", "w0", manifest()) as writer, PaneStore(tmp_path / "panes.db") as store:
        writer.write_records(sent)
        writer.write_records([msgspec.structs.replace(outcome(0, failure=Failure.SHED_STOP), sent_ns=0, done_ns=0)])
        aggregator = Aggregator(bus, store)
        aggregator.poll()
        assert aggregator.progress.last_sent_ns == max(o.sent_ns for o in sent)
        writer.write_records(batch_of(0))  # another worker's, behind by a little
        aggregator.poll()
        assert aggregator.progress.last_sent_ns == max(o.sent_ns for o in sent)


def test_draining_goes_on_behind_what_counts_for_nothing(tmp_path):
    live = tmp_path / "live.lf"
    with LogWriter(live, Manifest("raw", "0", "rec", START * NS, "test")) as writer:
        for _ in range(3):
            writer.write(codec.encode([exchange(1, server="10.0.0.9:5432")]))
        writer.write(codec.encode([exchange(2)]))
    with PaneStore(tmp_path / "panes.db") as store:
        reader = ProductionReader(RUN, MATCHER, [":8080"], START * NS)
        settings = AnalyticsSettings(batches=1)
        aggregator = Aggregator(FileBus(tmp_path / RUN), store, settings, recording=live, production=reader)
        aggregator.drain()
        assert aggregator.progress.production == 1


def test_the_watermark_stands_before_what_is_open(tmp_path):
    with PaneStore(tmp_path / "panes.db") as store:
        aggregator = Aggregator(FileBus(tmp_path), store)
        assert aggregator.watermark_s({}) is None
        beat = Beat(RUN, "w0", (START + 10) * NS, 1, 0, 5, 5, 1, 4 * NS, 0, 0.1)
        assert aggregator.watermark_s({"w0": beat}) == START + 5


# ---------------------------------------------------------------------------- production beside stress

MATCHER = RouteMatcher(RouteTable("rec", (Route("GET /orders/{id}", "GET", ("orders", "{id}")),)))


def exchange(at_s: float = 1.0, *, head: bytes = b"", server: str = "127.0.0.1:8080", **changes) -> Exchange:
    start = START * NS + int(at_s * NS)
    fields = {
        "exchange_id": b"e" * 16,
        "session_id": b"s" * 16,
        "connection_id": b"c" * 16,
        "client": "127.0.0.1:5000",
        "server": server,
        "request": Request(head or b"GET /orders/17?x=1 HTTP/1.1\r\nHost: a\r\n\r\n"),
        "response": Response(200, b"HTTP/1.1 200 OK\r\n\r\n", b"hi", 2),
        "request_start_ns": start,
        "request_end_ns": start + 1000,
        "response_start_ns": start + 20_000_000,
        "response_end_ns": start + 30_000_000,
    }
    return Exchange(**{**fields, **changes})


def test_unmarked_exchanges_of_the_entry_server_are_production():
    reader = ProductionReader(RUN, MATCHER, [":8080"], START * NS)
    made = reader.outcome(exchange())
    assert made is not None
    assert (made.kind, made.route, made.status, made.step) == (Kind.PRODUCTION, "GET /orders/{id}", 200, -1)
    assert made.done_ns - made.due_ns == 30_000_000
    assert reader.outcome(exchange(head=b"GET /wp-login HTTP/1.1\r\n\r\n")).route == "GET (other)"


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("marked", {"head": b"GET /orders/1 HTTP/1.1\r\nLIVEFIRE-marker: v1;forged\r\n\r\n"}),
        ("other_server", {"server": "127.0.0.1:18080"}),
        ("before", {"at_s": -0.5}),
        ("opaque", {"mode": Mode.OPAQUE}),
        ("answer_not_seen", {"response": None, "faults": (Fault.GAP,)}),
    ],
)
def test_what_is_not_production_is_left_out_and_counted(reason, changes):
    reader = ProductionReader(RUN, MATCHER, ["127.0.0.1:8080"], START * NS)
    assert reader.outcome(exchange(**changes)) is None
    assert reader.skipped == {reason: 1}


def test_an_exchange_that_was_never_answered_is_a_failure_of_production():
    made = ProductionReader(RUN, MATCHER, [], START * NS).outcome(exchange(response=None))
    assert made is not None
    assert made.failure is Failure.RESET


def test_production_is_read_from_a_recording_that_grows(tmp_path):
    live = tmp_path / "live.lf"
    bus = FileBus(tmp_path / RUN)
    with PaneStore(tmp_path / "panes.db") as store:
        reader = ProductionReader(RUN, MATCHER, [":8080"], START * NS)
        aggregator = Aggregator(bus, store, recording=live, production=reader)
        assert aggregator.poll() == 0  # not there yet
        with LogWriter(live, Manifest("raw", "0", "rec", START * NS, "test")) as writer:
            writer.write(codec.encode([exchange(1), exchange(2, head=b"GET / HTTP/1.1\r\nLivefire-Marker: x\r\n\r\n")]))
            assert aggregator.poll() == 1
            writer.write(codec.encode([exchange(3)]))
            assert aggregator.poll() == 1
        assert sum(p.completed for p in store.panes(RUN) if p.kind is Kind.PRODUCTION) == 2
        assert reader.skipped == {"marked": 1}
