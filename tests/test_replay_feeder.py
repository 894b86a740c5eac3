"""The feeder without its firer: what it makes of a slice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from recordings import MS, SECOND, even, exchange, make_clean

from bus.logfile import FileBus
from livefire.commands.outcomes import outcomes_of
from replay import pipes, summary
from replay.amplify import Draws
from replay.book import Books, manifest_of
from replay.feeder import Feeder
from replay.identity import Identities
from replay.recording import Recording
from replay.schedule import Schedule
from replay.settings import WorkerSettings
from replay.steps import Step, Timeline
from wire import topics
from wire.records import Failure, Flow, Place, PlaceKind, Verdict

BASE = 1_800_000_000 * SECOND


class Handed:
    """A link that keeps what it is handed."""

    def __init__(self) -> None:
        self.shots: list[tuple[int, bytes]] = []
        self.said: list[int | str] = []  # serials of shots, "end"
        self.writer = self
        self.waiting_bytes = 0

    def shot(self, serial: int, ready_ns: int, flags: int, first: bytes, last: bytes) -> None:
        self.shots.append((ready_ns, first))
        self.said.append(serial)

    def send_shots(self) -> None: ...

    def end(self) -> None:
        self.said.append("end")


def feeder_of(
    folder: Path, exchanges: list[Any], flows: list[Flow], *, now: int = BASE
) -> tuple[Feeder, Handed, Books]:
    settings = WorkerSettings(
        run_id="r1", run_dir=str(folder), worker="w0", index=0, workers=1, recording="", target="http://t", key_id="k",
        key_hex="00" * 32,
    )  # fmt: skip
    bus = FileBus(folder)
    books = Books(bus, manifest_of(settings, topics.CLAIMS, 1), "r1", "w0", settings.kind)
    recording = Recording(make_clean(folder / "clean.lf", exchanges, flows=flows))
    timeline = Timeline()
    timeline.add(Step(BASE, 0, 1.0))
    schedule = Schedule(
        recording.stamped, timeline, Draws(0, 1, 0), speed=1.0, spread_ns=0, laps=1, lap_ns=SECOND, skip_unsafe=False
    )
    link: Any = Handed()
    beats = bus.writer(topics.BEATS, "w0", manifest_of(settings, topics.BEATS, 1))
    identities = Identities(recording.flows())
    feeder = Feeder(settings, bus, link, schedule, timeline, identities, None, books, beats, b"t", lambda: now)
    feeder._orders.lease_ns = feeder._lease_told = BASE + 100 * SECOND
    feeder._make(now)
    return feeder, link, books


@pytest.mark.parametrize(
    ("behind_ns", "late"), [(0, 0), (SECOND - 250 * MS, 0), (SECOND + 30 * MS, 30), (60 * SECOND, 100)]
)
def test_what_is_too_late_when_it_is_made_is_claimed_and_booked_and_not_handed_over(
    tmp_path: Path, behind_ns: int, late: int
) -> None:
    """Otherwise a feeder that fell behind renders for ever what the firer sheds for ever."""
    now = BASE + behind_ns
    _, link, books = feeder_of(tmp_path, even(100, 1000.0), [], now=now)
    assert len(link.shots) == 100 - late
    assert len({first for _, first in link.shots}) == 100 - late
    books.flush(now, force=True)
    found, _ = summary.read(tmp_path)
    assert found.planned == 100
    assert found.failures == ({"shed_late": late} if late else {})
    books.close(now)


JSON = [("Content-Type", "application/json")]
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"


def result(serial: int, *, status: int = 200, failure: Failure = Failure.NONE, received: int = 2) -> bytes:
    number = pipes.FAILURES.index(failure)
    return pipes.RESULT.pack(serial, BASE + 1, BASE + 2, BASE + 3, 0, status, number, 10, received)


def test_a_shot_does_not_wait_for_its_own_answer(tmp_path: Path) -> None:
    """A rolling cookie, of a session whose beginning nobody saw, in a request that waits for something else."""
    sid, cookie = [("Cookie", "sid=recorded-1")], ("Set-Cookie", "sid=recorded-1; Path=/")
    exchanges = [
        exchange(0, 0, target="/start", fields=sid, answer=b'{"csrf":"recorded-2"}', answer_fields=JSON, route="S"),
        exchange(1, MS, target="/page", fields=[*sid, ("X-Csrf", "recorded-2")], answer_fields=[cookie], route="P"),
    ]
    flows = [
        Flow("S", Place(PlaceKind.JSON, "$.csrf"), "P", Place(PlaceKind.HEADER, "x-csrf")),
        Flow("P", Place(PlaceKind.COOKIE, "sid"), "P", Place(PlaceKind.COOKIE, "sid")),
    ]
    feeder, link, _ = feeder_of(tmp_path, exchanges, flows)
    assert link.said == [1]  # the control: the second one waits for the first
    feeder._answer(1, OK, b'{"csrf":"live-2"}')
    feeder._results(result(1))
    assert link.said == [1, 2, "end"]


def test_the_end_is_told_once_and_behind_the_last_shot(tmp_path: Path) -> None:
    answer = b'{"a":"aaaaaa-11","b":"bbbbbb-22"}'
    exchanges = [
        exchange(0, 0, target="/p", answer=answer, answer_fields=JSON, route="P"),
        exchange(1, MS, target="/c?a=aaaaaa-11", answer=b'{"v":"vvvvvv-33"}', answer_fields=JSON, route="C"),
        exchange(2, 2 * MS, target="/x?v=vvvvvv-33", route="X"),
        exchange(3, 3 * MS, target="/d?b=bbbbbb-22", route="D"),
    ]
    flows = [
        Flow("P", Place(PlaceKind.JSON, "$.a"), "C", Place(PlaceKind.QUERY, "a")),
        Flow("P", Place(PlaceKind.JSON, "$.b"), "D", Place(PlaceKind.QUERY, "b")),
        Flow("C", Place(PlaceKind.JSON, "$.v"), "X", Place(PlaceKind.QUERY, "v")),
    ]
    feeder, link, _ = feeder_of(tmp_path, exchanges, flows)
    feeder._answer(1, OK, b'{"b":"live-b"}')  # no "a": what waits for it is shed, and what waits for that
    feeder._results(result(1))
    assert link.said == [1, 4, "end"]


def test_an_answer_that_broke_off_is_no_answer_that_differs(tmp_path: Path) -> None:
    feeder, _, books = feeder_of(tmp_path, even(3, 1000.0), [])
    feeder._results(result(1, received=2) + result(2, failure=Failure.RESET, received=1) + result(3, status=500))
    books.flush(BASE, force=True)
    verdicts = {outcome.exchange_id: outcome.verdict for outcome in outcomes_of(tmp_path)}
    assert sorted(verdicts.values()).count(Verdict.NONE) == 1
    assert sum(verdict not in (Verdict.NONE, Verdict.SAME) for verdict in verdicts.values()) >= 1  # the control
