"""Production beside a run: which of it counts, under which id, in every store, over files and over Kafka."""

from __future__ import annotations

import contextlib
import subprocess
import time
from pathlib import Path

import msgspec
import pytest
from elastic_place import place_of
from fleet import Cluster
from recordings import id_of
from store_backends import clickhouse
from test_analytics_store import exchange
from test_analytics_store_contract import of_run
from test_analytics_windows import START as FUTURE
from test_analytics_windows import outcome, panes_of
from test_livefire_aggregate import ROOT, command, new_run, until

from analytics.beside import Beside, Recording
from analytics.fields import SERIES, pattern_of
from analytics.following import StoreFollower, Wanted
from analytics.panes import NS
from analytics.store_address import open_reader
from analytics.store_sqlite import PaneStore
from analytics.windows import windows
from bus.address import open_bus
from cleanse import learned
from wire import topics
from wire.records import Action, Beat, Control, End, Flows, Kind, Manifest, Route, RouteTable

ROUTES = RouteTable("live", (Route("GET /orders/{id}", "GET", ("orders", "{id}")),))
MARKED = b"GET /orders/17 HTTP/1.1\r\nHost: a\r\nLivefire-Marker: x\r\n\r\n"


START = FUTURE - 200_000_000  # a broker stamps what it gets, and nothing of a run is there before it


def moved(made):
    """Outcomes of then, as of START."""
    by = (START - FUTURE) * NS
    return msgspec.structs.replace(
        made, due_ns=made.due_ns + by, sent_ns=made.sent_ns + by, first_byte_ns=made.first_byte_ns + by,
        done_ns=made.done_ns + by,
    )  # fmt: skip


def seen(number: int, at_s: float, *, done_s: float = 0.03, **changes):
    done = START * NS + int((at_s + done_s) * NS)
    at_ns = START * NS + int(at_s * NS)
    times = {"request_start_ns": at_ns, "request_end_ns": at_ns, "response_start_ns": at_ns, "response_end_ns": done}
    return exchange(exchange_id=id_of("seen", number), **times, **changes)


def write(raw, exchanges):
    """As a recorder writes."""
    times = [one.request_start_ns for one in exchanges]
    raw.write_records(exchanges, first_ns=min(times), last_ns=max(times))


class Scene:
    """A run of ten seconds from START on, and two recorders that were there before and are afterwards."""

    def __init__(self, address: str) -> None:
        self.address, self.run_id = address, new_run()
        self.made = [
            moved(o) for o in of_run([outcome(100 * i, 30, route=f"GET /{i % 3}") for i in range(100)], self.run_id)
        ]
        self.inside = [seen(i, 0.25 * i) for i in range(38)]
        self.outside = [
            seen(100, -0.5), seen(101, -0.5, done_s=2.0), seen(102, 9.9, done_s=0.5), seen(103, 11.0),
            seen(104, 3.0, head=MARKED), seen(105, 3.0, server="127.0.0.1:9999"),
        ]  # fmt: skip
        self._stack = contextlib.ExitStack()
        self._run_bus, self._live_bus = (open_bus(address, scope) for scope in (self.run_id, "live"))
        self.books = self._writer(self._run_bus, topics.OUTCOMES, "w0", self.run_id)
        self.control = self._writer(self._run_bus, topics.CONTROL, "conductor", self.run_id)
        self.beats = self._writer(self._run_bus, topics.BEATS, "w0", self.run_id)
        self.raw = [self._writer(self._live_bus, topics.RAW, name, "live") for name in ("a.0", "b.0")]
        self.control.write_records([Control(self.run_id, 1, Action.STEP, START * NS, 0, 1.0)])

    def _writer(self, bus, topic, name, owner):
        return bus.writer(topic, name, Manifest(topic, name, owner, (START - 5) * NS, "test", settings={"speed": 1.0}))

    def part(self, first_s: int, end_s: int) -> None:
        """What is written of these seconds, by everybody; a beat closes it."""
        self.books.write_records([o for o in self.made if first_s <= o.due_ns / NS - START < end_s])
        for one, raw in enumerate(self.raw):
            mine = [e for e in self.inside + self.outside if first_s <= e.request_start_ns / NS - START < end_s][one::2]
            for at in range(0, len(mine), 3):
                write(raw, mine[at : at + 3])
        self.beats.write_records([Beat(self.run_id, "w0", (START + end_s) * NS, 1, 0, 1, 1, 0, 0, 0, 0.0)])

    def end(self) -> None:
        self.books.end(End(self.run_id, "w0", 1, 0, 0))
        self.control.end(End(self.run_id, "conductor", 1, 0, 0))
        for one, raw in enumerate(self.raw):  # recorders go on
            write(raw, [seen(200 + one, 12.0)])

    def close(self) -> None:
        self._run_bus.close()
        self._live_bus.close()

    def right(self) -> tuple[list, int]:
        """Windows of stress, and how much of production there is."""
        made = windows(panes_of(self.made), every_s=10, over_s=10, start_s=START, watermark_s=1 << 40)
        return list(made), len(self.inside)


def found(store: str, run_id: str) -> tuple[list, int]:
    with contextlib.closing(open_reader(store, run_id)) as reader:
        all_of_it = reader.windows(run_id, every_s=10, over_s=10, start_s=START, watermark_s=1 << 40)
        production = [w for w in all_of_it if w.kind is Kind.PRODUCTION and w.route != "*"]
        assert {w.route for w in production} <= {"GET /orders/{id}"}
        return [w for w in all_of_it if w.kind is Kind.STRESS], sum(w.tally.completed for w in production)


def follower(scene: Scene, store: str, *, whole: bool = False) -> StoreFollower:
    recording = Recording("live", ROUTES, (":8080",))
    wanted = Wanted((scene.run_id,), (recording,), whole=whole)
    return StoreFollower(store, wanted, lambda scope: open_bus(scene.address, scope), list)


@pytest.fixture(params=["files", "Kafka"])
def address(request, tmp_path):
    if request.param == "files":
        yield str(tmp_path / "bus")
        return
    with Cluster(request.getfixturevalue("kafka_server").address) as made:
        yield made


def test_every_store_holds_a_run_and_the_production_beside_it(address, tmp_path, request):
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(place_of(request))
        opener = stack.enter_context(clickhouse(request))
        with contextlib.closing(opener("any")) as store:
            stores = [str(tmp_path / "one.db"), place.address, store._executor.shown]
        scene = Scene(address)
        stack.callback(scene.close)
        file = tmp_path / "learned.lf"
        manifest = Manifest("raw", "0", "live", 1, "test")
        learned.save(file, learned.Learned(ROUTES, Flows("live", ())), manifest)
        words = command(
            "aggregate", "--bus", address, "--run", scene.run_id, "--recording", "live", "--server", ":8080"
        )
        words += ["--learned", str(file), *(word for store in stores for word in ("--store", store))]
        scene.part(-2, 4)
        with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
            until(lambda: all(production(store, scene.run_id) for store in stores), "the first of it")
            assert [production(store, scene.run_id) for store in stores] == [16, 16, 16]
            scene.part(4, 10)
            scene.end()
            assert process.stderr is not None
            said = process.stderr.read()
            assert process.wait(90) == 0, said
        assert f"run {scene.run_id}, beside recording live" in said
        for store in stores:
            assert found(store, scene.run_id) == scene.right(), store
        rows = place.sources(pattern_of(SERIES[0], name=place.name))  # what a naive sum goes over
        sums = {
            kind: sum(row["livefire.count"] for row in rows if row["livefire.kind"] == kind)
            for kind in ("production", "stress")
        }
        assert sums == {"production": len(scene.inside), "stress": len(scene.made)}
        assert {row["livefire.run_id"] for row in rows} == {scene.run_id}
        assert {row["livefire.final"] for row in rows} == {True}


def production(store: str, run_id: str) -> int:
    try:
        return found(store, run_id)[1]
    except Exception:  # not there yet
        return 0


def test_a_store_that_catches_up_holds_what_one_holds_that_reads_along(tmp_path):
    scene = Scene(str(tmp_path / "bus"))
    along = follower(scene, str(tmp_path / "along.db"))
    along.start()
    for first, end in ((-2, 3), (3, 7), (7, 10)):
        scene.part(first, end)
        until(lambda: along.state.outcomes == 10 * end, "the run's own")  # noqa: B023
    scene.end()
    assert along.join(60), along.state
    late = follower(scene, str(tmp_path / "late.db"))
    late.start()
    assert late.join(60), late.state
    assert found(along.state.store, scene.run_id) == found(late.state.store, scene.run_id) == scene.right()
    assert along.state.production == late.state.production == len(scene.inside)


def test_what_the_run_has_not_reached_waits_and_what_comes_after_it_never_counts(tmp_path):
    scene = Scene(str(tmp_path / "bus"))
    scene.part(-2, 10)
    with PaneStore(tmp_path / "panes.db", scene.run_id) as store:
        beside = Beside(
            open_bus(scene.address, "live"), store, scene.run_id, Recording("live", ROUTES, (":8080",)), START * NS
        )
        beside.poll()
        assert beside.progress.production == 0
        beside.reached((START + 5) * NS, ended=False)
        beside.poll()
        assert 0 < beside.progress.production <= 20  # whole messages
        beside.reached((START + 10) * NS, ended=False)
        beside.drain()
        assert not beside.complete
        scene.end()
        beside.reached((START + 10) * NS, ended=True)
        beside.drain()
        assert beside.complete and beside.progress.production == len(scene.inside)
        assert {pane.kind for pane in store.panes(scene.run_id)} == {Kind.PRODUCTION}


def test_a_recording_stands_under_its_own_name_when_it_is_asked_for(tmp_path):
    scene = Scene(str(tmp_path / "bus"))
    scene.part(-2, 10)
    scene.end()
    (tmp_path / "stores").mkdir()
    store = f"{tmp_path / 'stores'}/"
    one = follower(scene, store, whole=True)
    one.start()
    until(lambda: one.state.over == 1, "the run is over")
    until(lambda: production(store, "live") == 43, "all of the recording")
    one.stop()
    assert one.join(30)
    assert found(store, scene.run_id) == scene.right()


def test_recordings_whose_agents_have_one_name_are_held_apart(tmp_path):
    root = str(tmp_path / "bus")
    for name, count in (("monday", 5), ("tuesday", 7)):
        bus = open_bus(root, name)
        writer = bus.writer(topics.RAW, "a.0", Manifest(topics.RAW, "a.0", name, 1, "test"))
        write(writer, [seen(i, 0.1 * i) for i in range(count)])
        writer.end(End(name, "a.0", count, 0, 0))
    with PaneStore(Path(tmp_path / "panes.db"), "run") as store:
        for name in ("monday", "tuesday"):
            beside = Beside(open_bus(root, name), store, "run", Recording(name, ROUTES), START * NS)
            beside.reached(time.time_ns(), ended=True)
            beside.drain()
            assert beside.complete
        assert sum(pane.completed for pane in store.panes("run")) == 12
