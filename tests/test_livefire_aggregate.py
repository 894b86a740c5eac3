"""Outcomes on a bus into several stores at once: each goes on for itself, each ends with what the outcomes are."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from elastic_place import Place, place_of
from test_analytics_store_contract import of_run
from test_analytics_windows import START, outcome, panes_of

from analytics.fields import SERIES, pattern_of
from analytics.following import StoreFollower, Wanted
from analytics.store_address import open_reader
from analytics.store_port import StoreError
from analytics.tail import WHOLE
from analytics.windows import windows
from bus.logfile import FileBus
from bus.ports import Bus
from wire import topics
from wire.ids import ulid
from wire.records import Action, Beat, Control, End, Exemplar, Manifest, Outcome

ROOT = Path(__file__).parents[1]
NS = 1_000_000_000
_ids = itertools.count(1)


def new_run() -> str:
    return ulid(time.time_ns() + next(_ids) * 1_000_000)


def until(happened: Callable[[], bool], why: str, patience_s: float = 40) -> None:
    deadline = time.monotonic() + patience_s
    while not happened():
        assert time.monotonic() < deadline, why
        time.sleep(0.02)


class Run:
    """A run on files: two workers that write outcomes, and a conductor that says the step."""

    def __init__(self, root: Path, run_id: str) -> None:
        self.run_id, self.made = run_id, list[Outcome]()
        self.bus = FileBus(root / run_id)
        settings = {"speed": 2.0}
        self.writers = [
            self.bus.writer(
                topics.OUTCOMES, name, Manifest(topics.OUTCOMES, name, run_id, START * NS, "test", settings=settings)
            )
            for name in ("w0", "w1")
        ]
        manifest = Manifest(topics.CONTROL, "conductor", run_id, START * NS, "test")
        self.control = self.bus.writer(topics.CONTROL, "conductor", manifest)
        self.control.write_records([Control(run_id, 1, Action.STEP, (START + 2) * NS, 0, 1.5)])
        self.beats = self.bus.writer(topics.BEATS, "w0", Manifest(topics.BEATS, "w0", run_id, START * NS, "test"))

    def write(self, first_ms: int, count: int = 40) -> None:
        made = of_run(
            [outcome(first_ms + 25 * i, 3000 + 10 * i, route=f"GET /{i % 3}") for i in range(count)], self.run_id
        )
        for index, writer in enumerate(self.writers):
            writer.write_records(made[index::2])
        self.made += made

    def beat(self, at_s: int) -> None:
        self.beats.write_records([Beat(self.run_id, "w0", (START + at_s) * NS, 1, 0, 1, 1, 0, 0, 0, 0.0)])

    def end(self) -> None:
        for writer in self.writers:
            writer.end()
        now = START * NS
        self.control.end(End(self.run_id, "conductor", 1, now, now))


@pytest.fixture(scope="module")
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with place_of(request) as made:
        yield made


def right(run: Run, **at: int) -> list:
    return list(windows(panes_of(run.made), every_s=10, over_s=10, start_s=START + 2, watermark_s=1 << 40, **at))


def windows_of(address: str, run_id: str) -> list:
    reader = open_reader(address, run_id)
    try:
        assert reader.note("start_s") == str(START + 2)  # when the first step took effect
        mark = reader.note("watermark_s")
        return reader.windows(
            run_id, every_s=10, over_s=10, start_s=START + 2, watermark_s=None if mark is None else int(mark)
        )
    finally:
        reader.close()


def followers(
    root: Path, stores: list[str], wanted: Wanted, names: Callable[[], list[str]] = list
) -> list[StoreFollower]:
    def bus_of(scope: str) -> Bus:
        return FileBus(root / scope)

    return [StoreFollower(store, wanted, bus_of, names) for store in stores]


def test_several_stores_hold_the_same_windows(tmp_path, place):
    run = Run(tmp_path, new_run())
    run.write(0)
    stores = [str(tmp_path / "one.db"), place.address]
    started = followers(tmp_path, stores, Wanted((run.run_id,), service="shop"))
    for follower in started:
        follower.start()
    until(lambda: all(f.state.outcomes == 40 for f in started), "the first batch")
    run.write(8000)
    run.beat(30)
    run.end()
    assert all(follower.join(40) for follower in started), [f.state for f in started]
    assert [f.state.failed for f in started] == [(), ()]
    for store in stores:
        assert windows_of(store, run.run_id) == right(run), store
    documents = place.sources(pattern_of(SERIES[0], name=place.name), {"term": {"livefire.run_id": run.run_id}})
    shown = {(w.route, w.start_s * 1000): w.tally.completed for w in right(run) if w.route != "*"}
    assert sum(d["livefire.count"] for d in documents) == sum(shown.values()) == 80
    assert {(d["livefire.speed"], d["livefire.copies"], d["livefire.final"], d["service.name"]) for d in documents} == {
        (2.0, 1.5, True, "shop")
    }
    assert min(d["livefire.elapsed_s"] for d in documents) == -10  # due before the first step took effect


def test_a_store_that_is_down_stops_nobody_and_catches_up(tmp_path):
    run = Run(tmp_path, new_run())
    run.write(0)
    blocked = tmp_path / "blocked.db"
    other = str(tmp_path / "fine.db")
    down = "elasticsearch://127.0.0.1:9/nobody"  # the discard port: nothing listens
    one, two = followers(tmp_path, [other, down], Wanted((run.run_id,)))
    for follower in (one, two):
        follower.start()
    until(lambda: bool(two.state.away), "it says that it waits")
    run.write(5000)
    run.end()
    assert one.join(40)
    assert windows_of(other, run.run_id) == right(run)
    assert "not there" in two.state.away and two.state.failed == () and two.state.outcomes == 0
    two.stop()
    assert two.join(20)
    assert not blocked.exists()


def test_all_new_runs_are_found_and_whole_ones_are_left_alone(tmp_path):
    store = f"{tmp_path / 'stores'}/"
    os.mkdir(tmp_path / "stores")
    runs = [Run(tmp_path / "bus", new_run())]
    runs[0].write(0)
    (follower,) = followers(tmp_path / "bus", [store], Wanted(None), lambda: [run.run_id for run in runs])
    follower.start()
    until(lambda: follower.state.outcomes == 40, "the first run")
    runs.append(Run(tmp_path / "bus", new_run()))
    runs[1].write(0)
    until(lambda: len(follower.state.open) == 2, "a run that began later")
    runs[0].end()
    until(lambda: follower.state.over == 1, "the first run is over")
    follower.stop()
    assert follower.join(20)
    assert windows_of(store, runs[0].run_id) == right(runs[0])
    (again,) = followers(tmp_path / "bus", [store], Wanted(None), lambda: [run.run_id for run in runs])
    again.start()
    until(lambda: again.state.open == (runs[1].run_id,), "only the one that is not whole")
    runs[1].end()
    until(lambda: again.state.over == 1, "the second run is over")
    assert again.state.outcomes == 0  # nothing was taken in twice
    again.stop()
    assert again.join(20)


def test_a_run_whose_workers_were_killed_is_left_and_taken_up_again_when_it_is_settled(tmp_path):
    run, clock, store = Run(tmp_path / "bus", new_run()), [0.0], f"{tmp_path}/"
    run.write(0)

    def follower(wanted: Wanted) -> StoreFollower:
        return StoreFollower(
            store, wanted, lambda scope: FileBus(tmp_path / "bus" / scope), lambda: [run.run_id], now=lambda: clock[0]
        )

    one = follower(Wanted(None))

    def after(seconds: float) -> tuple[int, int, int]:
        clock[0] += seconds
        one.step()
        return len(one.state.open), one.state.left, one.state.over

    assert after(1) == (1, 0, 0) and one.state.outcomes == 40
    assert after(2000) == after(2000) == (1, 0, 0)  # its workers live: they may be waiting for a step
    for writer in (*run.writers, run.control, run.beats):
        writer.close()  # as the system does it for a process that is killed
    assert after(590) == (1, 0, 0) and after(20) == (0, 1, 0)
    assert windows_of(store, run.run_id)[0].final is False
    again = Run(tmp_path / "bus", run.run_id)  # somebody settles its books
    again.write(9000)
    again.end()
    run.made += again.made
    assert after(590) == (0, 1, 0) and one.state.outcomes == 40  # it is looked at once in ten minutes
    assert after(20)[:2] == (1, 1) and after(3) == (0, 0, 1) and one.state.outcomes == 80
    assert windows_of(store, run.run_id) == right(run)


def test_a_run_that_was_asked_for_is_not_waited_for_when_nobody_writes_it(tmp_path):
    run, clock = Run(tmp_path, new_run()), itertools.count(0, 400)
    run.write(0)
    for writer in run.writers:
        writer.close()
    store = str(tmp_path / "one.db")
    one = StoreFollower(
        store, Wanted((run.run_id,)), lambda scope: FileBus(tmp_path / scope), list, now=lambda: next(clock)
    )
    one.start()
    assert one.join(40)
    assert one.state.failed == (f"{run.run_id}: has no end, and nobody writes it any more: what came is in the store",)
    assert sum(window.tally.offered for window in windows_of(store, run.run_id) if window.route == "*") == 40


def test_what_a_store_refuses_is_given_up_in_one_line_and_others_go_on(tmp_path):
    first, second = Run(tmp_path, new_run()), Run(tmp_path, new_run())
    for run in (first, second):
        run.write(0)
        run.end()
    one, two = followers(tmp_path, [str(tmp_path / "one.db"), f"{tmp_path}/"], Wanted((first.run_id, second.run_id)))
    for follower in (one, two):
        follower.start()
        assert follower.join(40)
    assert len(one.state.failed) == 1 and "one.db" in one.state.failed[0]  # a file is one run's
    assert "\n" not in one.state.failed[0]
    assert two.state.failed == () and two.state.over == 2


def test_exemplars_on_the_bus_are_kept(tmp_path, place):
    run = Run(tmp_path, new_run())
    run.write(0)
    with run.bus.writer(topics.EXEMPLARS, "w0", Manifest(topics.EXEMPLARS, "w0", run.run_id, 1, "test")) as writer:
        writer.write_records([Exemplar(run.made[0], b"GET /0 HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n")])
    run.end()
    (follower,) = followers(tmp_path, [place.address], Wanted((run.run_id,)))
    follower.start()
    assert follower.join(40)
    found = place.sources(f"{place.name}-exemplars", {"term": {"livefire.run_id": run.run_id}})
    assert [d["url.path"] for d in found] == ["/0"]


def holds_more(store: str, run_id: str, than: int) -> bool:
    try:
        reader = open_reader(store, run_id)
    except StoreError:
        return False
    with contextlib.closing(reader):
        return sum(pane.offered for pane in reader.panes(run_id)) > than


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "livefire", *words]


def test_the_command_is_killed_again_and_again_and_counts_once(tmp_path, place):
    run = Run(tmp_path / "bus", new_run())
    stores = [str(tmp_path / "one.db"), place.address]
    words = command(
        "aggregate", "--bus", str(tmp_path / "bus"), "--run", run.run_id, "--store", stores[0], "--store", stores[1]
    )
    for round_ in range(3):
        run.write(round_ * 4000, 200)
        with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
            until(partial(holds_more, stores[round_ % 2], run.run_id, 200 * round_), "something is in a store")
            os.kill(process.pid, signal.SIGKILL)
    run.write(60_000)
    run.end()
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    assert f"{stores[0]}: " in done.stderr and "1 over" in done.stderr
    for store in stores:
        assert windows_of(store, run.run_id) == right(run), store
    query = {"term": {"livefire.run_id": run.run_id}}
    documents = place.sources(pattern_of(SERIES[0], name=place.name), query)
    assert sum(d["livefire.offered"] for d in documents) == len(run.made)


def test_it_is_stopped_gracefully_with_windows_written(tmp_path, place):
    run = Run(tmp_path / "bus", new_run())
    run.write(0)
    words = command("aggregate", "--bus", str(tmp_path / "bus"), "--store", place.address)
    with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        query = {"term": {"livefire.run_id": run.run_id}}

        def seen() -> bool:
            place.ask("POST", f"/{place.name}-*/_refresh")
            return bool(place.ask("POST", f"/{place.name}-windows-*/_search", {"query": query})["hits"]["hits"])

        until(seen, "windows")
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait(20) == 0, said
    assert ("aggregating new runs" in said and "40 outcomes, 1 open" in said) or "0 open" in said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--store", "one.db"], "nothing says which bus"),
        (["--bus", "x", "--store", "mongodb://h"], "no such kind of store"),
        (["--bus", "x", "--store", "a.db", "--store", "a.db"], "given twice"),
        (["--bus", "x", "--store", "a.db", "--recording", "monday"], "--recording needs --learned FILE"),
        (["--bus", "ftp://x", "--store", "a.db", "--run", "r"], "a bus is a folder or kafka://"),
    ],
)
def test_wrong_usage_is_one_line(tmp_path, words, told):
    done = subprocess.run(command("aggregate", *words), cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert told in done.stderr and done.stderr.count("\n") == 1


def test_topics_that_nobody_made_end_it_at_once(kafka_server, tmp_path):
    words = command(
        "aggregate", "--bus", f"kafka://{kafka_server.address}/nobody-made", "--store", str(tmp_path / "x/")
    )
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "livefire topics create --bus" in done.stderr and done.stderr.count("\n") == 1


def test_a_store_that_is_down_or_empty_is_one_line(clickhouse_server):
    for store, told in (
        ("clickhouse://127.0.0.1:1/default", "Connection refused"),
        ("elasticsearch://127.0.0.1:1", "not there"),
        (f"clickhouse://{clickhouse_server.address}/nobody_made", "CREATE DATABASE nobody_made"),
    ):
        words = command("windows", "--store", store, new_run())
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2 and told in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_the_note_of_what_is_whole_is_the_one_that_drills_set():
    assert int(WHOLE) == 1 << 40


def test_a_wrong_password_is_one_line(tmp_path, clickhouse_server, monkeypatch):
    run = Run(tmp_path / "bus", new_run())
    run.write(0)
    run.end()
    monkeypatch.setenv("LF_WRONG", "s3cret")
    store = f"clickhouse://default:LF_WRONG@{clickhouse_server.address}/default"
    words = command("aggregate", "--bus", str(tmp_path / "bus"), "--run", run.run_id, "--store", store)
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    (told,) = [line for line in done.stderr.splitlines() if line.startswith("livefire: ")]
    assert done.returncode == 2 and told.endswith("user or password is refused") and run.run_id in told
    assert "s3cret" not in done.stderr
