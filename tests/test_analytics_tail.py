"""What follows a run into a store: nothing of it stays open, and what has no time is no production."""

from __future__ import annotations

from pathlib import Path

import msgspec

from analytics.beside import Recording
from analytics.following import StoreFollower, Wanted
from analytics.production import ProductionReader
from bus.logfile import FileBus
from wire import topics
from wire.ids import ulid
from wire.records import End, Exchange, Manifest, Request, Response
from wire.routes import RouteMatcher, RouteTable

START_NS = 1_800_000_000_000_000_000


class _Bus(FileBus):
    closed = False

    def close(self) -> None:
        self.closed = True
        super().close()


def ended(folder: Path, topic: str, partition: str, owner: str) -> None:
    with FileBus(folder).writer(topic, partition, Manifest(topic, partition, owner, START_NS, "test")) as writer:
        writer.end(End(owner, partition, 0, 0, 0))


def test_the_buses_of_what_went_on_beside_a_run_are_closed_with_it(tmp_path: Path) -> None:
    runs = [ulid(START_NS + number * 1_000_000) for number in range(2)]
    for run in runs:
        ended(tmp_path / run, topics.OUTCOMES, "w0", run)
    ended(tmp_path / "rec", topics.RAW, "a.0", "rec")
    (tmp_path / "store").mkdir()
    made: list[_Bus] = []

    def opened(scope: str) -> _Bus:
        made.append(_Bus(tmp_path / scope))
        return made[-1]

    seconds = [0.0]
    wanted = Wanted(tuple(runs), (Recording("rec", RouteTable("rec", ())),))
    follower = StoreFollower(f"{tmp_path / 'store'}/", wanted, opened, list, now=lambda: seconds[0])
    while not follower._done() and seconds[0] < 100:
        follower.step()
        seconds[0] += 1
    assert follower._done() and {bus.root.name for bus in made} >= {"rec", *runs}
    assert all(bus.closed for bus in made)


def test_an_exchange_without_a_time_is_in_no_window() -> None:
    reader = ProductionReader("rec", RouteMatcher(RouteTable("rec", ())), (), 0)
    request, answer = Request(b"GET / HTTP/1.1\r\n\r\n"), Response(200, b"HTTP/1.1 200 OK\r\n\r\n")
    times = (START_NS, START_NS, START_NS + 5, START_NS + 9)
    known = Exchange(b"e" * 16, b"s", b"c", "10.0.0.1:5", "10.0.0.2:80", request, answer, *times)
    assert reader.outcome(known) is not None  # the control
    assert reader.outcome(msgspec.structs.replace(known, request_start_ns=0)) is None
    assert reader.skipped == {"no_time": 1}
