"""A bus that goes away in the middle of a run: what is claimed has one outcome, and nothing that is not claimed is fired."""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import MS, SECOND, even, exchange, make_clean

from bus.logfile import FileBus, LogWriter
from bus.ports import Bus, BusAway, BusHeld
from replay import summary
from replay.amplify import Draws
from replay.away import Away, patiently
from replay.book import Books, manifest_of, name_of, records_of, write_outcomes
from replay.conductor import Conductor
from replay.exemplars import Exemplars
from replay.feeder import Feeder
from replay.hearing import FLEET, FleetControl
from replay.home import Home
from replay.identity import Identities
from replay.orders import Orders
from replay.recording import Recording
from replay.recover import recover
from replay.schedule import Schedule
from replay.settings import AWAY_NS, WorkerSettings
from replay.steps import Step, Timeline
from wire import topics
from wire.codec import RecordType
from wire.ids import ulid
from wire.records import Action, Control, Failure, Manifest, Outcome, ShotKey, Verdict

NOW = 1_800_000_000 * SECOND
SETTINGS = WorkerSettings(
    run_id="r1", run_dir="", worker="w0", index=0, workers=1, recording="", target="http://t", key_id="k",
    key_hex="00" * 32,
)  # fmt: skip


class Shaky:
    """The embedded bus, whose writers are away when told so: before a message is written, or behind it, as a bus over
    a network may be. As `bus.ports` asks, a message that is written again is there once."""

    def __init__(self, folder: Path, away: Callable[[], str]) -> None:
        self.files, self.away = FileBus(folder), away

    def writer(self, topic: str, partition: str, manifest: Manifest) -> Any:
        return _ShakyWriter(self.files.writer(topic, partition, manifest), self.away)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.files, name)


class _ShakyWriter:
    def __init__(self, writer: LogWriter, away: Callable[[], str]) -> None:
        self._writer, self._away = writer, away
        self._doubtful: bytes | None = None  # written, and the caller does not know

    def write_records(self, records: Any, type: Any = None, **more: Any) -> int:
        data = repr(records).encode()
        how = self._away()
        if how == "before":
            raise BusAway("away")
        if data != self._doubtful:
            self._writer.write_records(records, type, **more)
        self._doubtful = data if how == "behind" else None
        if how == "behind":
            raise BusAway("away")
        return 0

    def end(self, end: Any) -> None:
        if self._away():
            raise BusAway("away")
        self._writer.end(end)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)


class Fired:
    """The place of the firer: keeps what it is handed."""

    def __init__(self) -> None:
        self.serials: list[int] = []
        self.writer = self
        self.waiting_bytes = 0

    def shot(self, serial: int, ready_ns: int, flags: int, first: bytes, last: bytes) -> None:
        self.serials.append(serial)

    def send_shots(self) -> None: ...

    def end(self) -> None: ...

    def stop(self, effective_ns: int) -> list[int]:
        return []


def run(
    folder: Path, claims: Callable[[], str], outcomes: Callable[[], str], turns: int
) -> tuple[Feeder, Books, Fired]:
    """A feeder's part of a run of 100 shots, and how it leaves; a shot that is handed over is answered a while later."""
    bus: Any = Shaky(folder, lambda: "")
    books = Books(bus, manifest_of(SETTINGS, topics.CLAIMS, 1), "r1", "w0", SETTINGS.kind)
    books._claims._away, books._outcomes._away = claims, outcomes  # type: ignore[attr-defined]
    timeline = Timeline()
    timeline.add(Step(NOW, 0, 1.0))
    recording = Recording(make_clean(folder / "clean.lf", even(100, 100.0)))
    schedule = Schedule(
        recording.stamped, timeline, Draws(0, 1, 0), speed=1.0, spread_ns=0, laps=1, lap_ns=SECOND, skip_unsafe=False
    )
    clock = [NOW]
    link: Any = Fired()
    unused: Any = None
    feeder = Feeder(
        SETTINGS, bus, link, schedule, timeline, Identities(()), None, books, unused, b"t", lambda: clock[0]
    )
    feeder._lease_told = NOW + 100 * SECOND
    answered = 0

    def answer(count: int) -> None:
        nonlocal answered
        for serial in link.serials[answered : answered + count]:
            flight = feeder._flights.pop(serial)
            books.outcome(flight.key, Failure.NONE, sent_ns=clock[0], done_ns=clock[0], status=200)
            answered += 1

    for _ in range(turns):
        clock[0] += 50 * MS
        feeder._make(clock[0])
        answer(2)
        feeder._away.attempt(lambda: books.flush(clock[0]))
    answer(1000)
    feeder._stop("stopped", "enough")

    def leave() -> None:
        feeder.settle_unclaimed()
        books.end(clock[0], "stopped")

    def later() -> int:
        clock[0] += SECOND
        return clock[0]

    patiently(leave, later, for_ns=10_000 * SECOND)
    return feeder, books, link


SHARES = st.sampled_from([0.0, 0.1, 0.5, 0.9])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 30), shares=st.tuples(SHARES, SHARES), turns=st.integers(1, 40))
def test_every_claimed_shot_has_one_outcome_however_often_the_bus_is_away(
    seed: int, shares: tuple[float, float], turns: int
) -> None:
    rng = random.Random(seed)

    def away(share: float) -> Callable[[], str]:
        return lambda: rng.choice(("before", "behind")) if rng.random() < share else ""

    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as text:
        patch.setattr("replay.away.time.sleep", lambda s: None)
        folder = Path(text)
        _, _, link = run(folder, away(shares[0]), away(shares[1]), turns)
        found, _ = summary.read(folder)
        assert found.balanced and found.twice == 0 and found.unknown == 0
        assert found.answered == len(link.serials), "what was fired was claimed, and is booked"
        assert found.planned >= found.answered
        if not any(shares) and turns == 40:
            assert found.answered == 100
        assert recover(folder) == 0


def test_the_check_sees_outcomes_that_are_written_with_others_the_second_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flush(books: Books, now_ns: int, *, force: bool = False) -> None:
        if books._pending:
            write_outcomes(books._outcomes, books._pending)
            books._pending.clear()

    monkeypatch.setattr(Books, "flush", flush)
    monkeypatch.setattr("replay.away.time.sleep", lambda s: None)
    rng = random.Random(1)
    run(tmp_path, lambda: "", lambda: rng.choice(("", "behind")), 40)
    found, _ = summary.read(tmp_path)
    assert found.twice and not found.balanced


def test_the_books_of_a_run_that_never_gets_its_bus_back_are_settled_by_others(tmp_path: Path) -> None:
    """The worker gives up: what it had fired and could not write is unknown."""
    bus: Any = Shaky(tmp_path, lambda: "")
    books = Books(bus, manifest_of(SETTINGS, topics.CLAIMS, 1), "r1", "w0", SETTINGS.kind)
    keys = tuple(ShotKey(exchange(n, 0).exchange_id, 0, 0, 0, "GET /", NOW) for n in range(10))
    books.claim(keys)
    books._outcomes._away = lambda: "before"  # type: ignore[attr-defined]
    for key in keys:
        books.outcome(key, Failure.NONE, status=200)
    clock = iter(range(0, 1000 * SECOND, 10 * SECOND))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(BusAway):
        patch.setattr("replay.away.time.sleep", lambda s: None)
        patiently(lambda: books.end(NOW, "done"), lambda: next(clock))
    assert next(clock) == AWAY_NS + 10 * SECOND
    for writer in (books._claims, books._outcomes):
        writer.close()
    assert recover(tmp_path) == 10 and recover(tmp_path) == 0
    found, _ = summary.read(tmp_path)
    assert found.balanced and found.unknown == 10


def test_away_asks_rarely_and_knows_since_when() -> None:
    clock, calls = [NOW], []

    def fails() -> None:
        calls.append(clock[0])
        raise BusAway("kafka://x: no broker answers")

    away = Away(lambda: clock[0])
    for _ in range(100):
        assert not away.attempt(fails)
        clock[0] += 20 * MS
    assert len(calls) == 10 and away.since_ns == NOW
    assert away.said == ": the bus is away (kafka://x: no broker answers)"
    clock[0] += SECOND
    assert away.attempt(lambda: None)
    assert (away.since_ns, away.said) == (0, "")


# ---------------------------------------------------------------------------- what is said to all


def say(bus: Bus, now_ns: int, run_id: str = "*", action: Action = Action.STOP, name: str = "") -> None:
    name = name or f"stop-{ulid(now_ns)}"
    writer = bus.writer(topics.CONTROL, name, Manifest(topics.CONTROL, name, FLEET, now_ns, "tests"))
    writer.write_records((Control(run_id, 0, action, now_ns, reason=name, issued_ns=now_ns),))
    writer.close()


def orders(folder: Path, since_ns: int) -> Orders:
    return Orders(FileBus(folder / "r1"), "r1", Timeline(), FleetControl(FileBus(folder / FLEET), since_ns))


def test_a_stop_of_all_is_heard_by_its_runs_and_not_by_those_that_begin_later(tmp_path: Path) -> None:
    fleet = FileBus(tmp_path / FLEET)
    running = orders(tmp_path, NOW)
    running.poll(NOW, 0)
    say(fleet, NOW + SECOND)
    later = orders(tmp_path, NOW + 2 * SECOND)
    running.poll(NOW + SECOND, 0)
    later.poll(NOW + 2 * SECOND, 0)
    assert running.stop_ns == NOW + SECOND and later.stop_ns is None
    again = orders(tmp_path, NOW)  # the feeder of the same run, started once more
    again.poll(NOW + 3 * SECOND, 0)
    assert again.stop_ns == NOW + SECOND


def test_a_stop_counts_although_the_clock_of_who_said_it_is_hours_behind(tmp_path: Path) -> None:
    running = orders(tmp_path, NOW)
    running.poll(NOW, 0)
    say(FileBus(tmp_path / FLEET), NOW - 7200 * SECOND)
    running.poll(NOW + SECOND, 0)
    assert running.stop_ns is not None and running.stop_ns <= NOW + SECOND


def test_a_stop_of_another_run_is_none_of_ours(tmp_path: Path) -> None:
    running = orders(tmp_path, NOW)
    running.poll(NOW, 0)
    fleet = FileBus(tmp_path / FLEET)
    say(fleet, NOW + 1, run_id="r2")
    say(fleet, NOW + 2, action=Action.PLAN, run_id="r1")
    running.poll(NOW + SECOND, 0)
    assert running.stop_ns is None
    say(fleet, NOW + 3, run_id="r1")
    running.poll(NOW + 2 * SECOND, 0)
    assert running.stop_ns is not None


def test_old_speakers_are_not_even_opened(tmp_path: Path) -> None:
    fleet = FileBus(tmp_path / FLEET)
    for age in range(30):
        say(fleet, NOW - 3600 * SECOND - age)
    say(fleet, NOW - SECOND)
    control = FleetControl(fleet, NOW)
    assert list(control.poll()) == []
    assert len(control._reader.readers) == 1


# ---------------------------------------------------------------------------- books that come home


def test_books_come_home_as_they_are_and_once(tmp_path: Path) -> None:
    away, home = FileBus(tmp_path / "away"), tmp_path / "home"
    books = Books(away, manifest_of(SETTINGS, topics.CLAIMS, 1), "r1", "w0", SETTINGS.kind)
    keys = [ShotKey(exchange(n, 0).exchange_id, 0, 0, 0, "GET /", NOW) for n in range(30)]
    copying = Home(away, home)
    for at in range(0, 30, 3):
        books.claim(tuple(keys[at : at + 3]))
        for key in keys[at : at + 3]:
            books.outcome(key, Failure.NONE, status=200, sent_ns=NOW, done_ns=NOW)
        books.flush(NOW, force=True)
        copying.poll()
        if at % 6 == 0:  # who brings home is killed, and another goes on
            copying.close()
            copying = Home(away, home)
    assert not copying.whole
    with pytest.raises(BusHeld):
        Home(away, home).poll()
    books.end(NOW, "done")
    copying.poll()
    assert copying.whole
    copying.close()
    Home(away, home).poll()
    for topic, kind in ((topics.CLAIMS, RecordType.CLAIM), (topics.OUTCOMES, RecordType.OUTCOME)):
        there, here = (list(records_of(bus.reader(topic, "w0"), kind)) for bus in (away, FileBus(home)))
        assert there == here
    outcomes = list(records_of(FileBus(home).reader(topics.OUTCOMES, "w0"), RecordType.OUTCOME))
    assert set(Counter(map(name_of, outcomes)).values()) == {1} and len(outcomes) == 30
    assert summary.read(home)[0].balanced and recover(home) == 0


def test_a_conductor_of_other_machines_stamps_beats_when_it_hears_them(tmp_path: Path) -> None:
    from wire.records import Beat

    bus = FileBus(tmp_path)
    writer = bus.writer(topics.BEATS, "w0", Manifest(topics.BEATS, "w0", "r1", 1, "tests"))
    writer.write_records((Beat("r1", "w0", NOW - 3600 * SECOND, 1, 0, 0, 0, 0, 0, 0, 0.0),))
    for restamp, at_ns in ((True, NOW), (False, NOW - 3600 * SECOND)):
        conductor = Conductor(bus, "r1", lambda: NOW, restamp=restamp)
        assert conductor.beats()["w0"].at_ns == at_ns
        conductor._writer.close()
    writer.close()


# ---------------------------------------------------------------------------- exemplars


def test_exemplars_are_the_slowest_and_the_first_failed_of_a_route_with_masked_heads(tmp_path: Path) -> None:
    bus = FileBus(tmp_path)
    kept = Exemplars(bus, manifest_of(SETTINGS, topics.EXEMPLARS, 1), bytes(range(32)))
    books = Books(bus, manifest_of(SETTINGS, topics.CLAIMS, 1), "r1", "w0", SETTINGS.kind)
    rendered = []

    def head(number: int) -> bytes:
        rendered.append(number)
        return b"GET /item?email=jane.doe@example.com HTTP/1.1\r\nAuthorization: Bearer sEcr3tT0ken9Zz81\r\n\r\n"

    def shot(number: int, latency_ms: int, failure: Failure = Failure.NONE, status: int = 200, sent: int = 1) -> None:
        key = ShotKey(exchange(number, 0).exchange_id, 0, 0, 0, f"GET /{number % 2}", NOW)
        outcome = books.outcome(key, failure, sent_ns=NOW * sent, done_ns=NOW + latency_ms * MS, status=status)
        kept.consider(outcome, lambda: head(number), b"HTTP/1.1 200 OK\r\nSet-Cookie: sid=0123456789abcdef\r\n\r\n")

    for number in range(200):
        shot(number, (number * 37) % 200)
    for number in range(200, 206):
        shot(number, 5, status=503)
    shot(300, 9, Failure.TIMEOUT, 0)
    shot(302, 9, Failure.SHED_RATE, 0, sent=0)
    kept.flush(NOW)
    assert len(rendered) == 8, "only what is written is rendered"
    shot(400, 1)
    kept.flush(NOW + SECOND)
    assert len(rendered) == 8, "not due"
    kept.end(NOW, "done")
    found = list(records_of(bus.reader(topics.EXEMPLARS, "w0"), RecordType.EXEMPLAR))
    of_route = [e for e in found[:8] if e.outcome.route == "GET /0"]
    assert sorted((e.outcome.done_ns - NOW) // MS for e in of_route) == [5, 5, 196, 198]
    assert [e.outcome.status for e in of_route[:2]] == [503, 503] and len(found) == 9
    for exemplar in found:
        shown = exemplar.request_head + exemplar.response_head
        assert b"GET /item" in shown and b"Set-Cookie: sid=" in shown
        for secret in (b"jane.doe", b"sEcr3tT0ken9Zz81", b"0123456789abcdef"):
            assert secret not in shown


def test_of_what_is_known_of_an_answer_its_status_is_the_least(tmp_path: Path) -> None:
    bus = FileBus(tmp_path)
    kept = Exemplars(bus, manifest_of(SETTINGS, topics.EXEMPLARS, 1), bytes(range(32)))
    key = ShotKey(exchange(1, 0).exchange_id, 0, 0, 0, "GET /", NOW)
    for status, failure in ((200, Failure.NONE), (0, Failure.RESET)):
        outcome = Outcome(
            "r1", key.exchange_id, 0, 0, 0, "GET /", SETTINGS.kind, NOW, NOW, 0, NOW + 1, 0, status, failure, 0, 0,
            Verdict.NONE,
        )  # fmt: skip
        kept.consider(outcome, lambda: b"GET / HTTP/1.1\r\n\r\n", b"")
    kept.end(NOW, "done")
    found = list(records_of(bus.reader(topics.EXEMPLARS, "w0"), RecordType.EXEMPLAR))
    assert [e.response_head for e in found] == [b"", b"HTTP/1.1 200\r\n\r\n"]
