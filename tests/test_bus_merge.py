"""Streams that are nearly in order become one that is, in bounded memory; what is too late is counted."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cleanse_app import exchange

from bus.logfile import FileBus
from bus.logwriter import LogWriter
from bus.merge import Merge
from cleanse.rules.unreplayable import started_ns
from wire.codec import RecordType
from wire.records import Exchange, Manifest, SourceRange

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND


def at(number: int, start_s: float, took_s: float = 0.01) -> Exchange:
    start = START + round(start_s * SECOND)
    return msgspec.structs.replace(
        exchange(number), request_start_ns=start, request_end_ns=start, response_start_ns=start,
        response_end_ns=start + round(took_s * SECOND),
    )  # fmt: skip


def merge(bus: FileBus, **more: object) -> Merge:
    return Merge(bus, "raw", RecordType.EXCHANGE, started_ns, **more)  # type: ignore[arg-type]


def writer(bus: FileBus, stream: str, agents: tuple[str, ...] = ()) -> LogWriter:
    return bus.writer("raw", stream, Manifest("raw", stream, "monday", START, "test", agents))


def in_order(records: Sequence[Exchange]) -> bool:
    times = [started_ns(record) for record in records]
    return times == sorted(times)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 30), streams=st.integers(1, 5), skew_ms=st.integers(-200, 200))
def test_what_is_written_when_it_is_complete_comes_out_in_the_order_of_its_beginning(
    seed: int, streams: int, skew_ms: int
) -> None:
    """Any exchanges of up to 30 s, dealt over any streams, in any batches, read while they are written. Clocks of agents
    that differ by 200 ms (after all correction) change nothing: they are within the look-ahead."""
    rng = random.Random(seed)
    made = [
        at(n, rng.uniform(0, 300) + (n % 2) * skew_ms / 1000, rng.choice((0.01, 0.5, 5, 30)))
        for n in range(rng.randint(1, 120))
    ]
    by_end = sorted(made, key=lambda e: e.response_end_ns)
    with tempfile.TemporaryDirectory() as folder:
        bus = FileBus(folder)
        names = [f"a.{k}" for k in range(streams)]
        writers = [writer(bus, name, ("a",)) for name in names]
        merged = merge(bus)
        out: list[Exchange] = []
        place = 0
        while place < len(by_end):
            size = rng.randint(1, 9)
            rng.choice(writers).write_records(by_end[place : place + size])
            place += size
            for _ in range(rng.randint(0, 2)):
                out += merged.poll()
        assert not merged.whole
        for one in writers:
            one.end()
        for _ in range(200):
            out += merged.poll()
        assert merged.whole and merged.held == 0
        assert (merged.late, merged.hurried, merged.unreadable) == (0, 0, 0)
        assert in_order(out)
        assert sorted(e.exchange_id for e in out) == sorted(e.exchange_id for e in made)
        merged.close()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1 << 30), hold=st.sampled_from([8_000, 40_000]))
def test_in_little_memory_it_is_still_in_order_and_nothing_is_lost_uncounted(seed: int, hold: int) -> None:
    rng = random.Random(seed)
    made = sorted((at(n, rng.uniform(0, 50), 30) for n in range(150)), key=lambda e: (e.response_end_ns, rng.random()))
    with tempfile.TemporaryDirectory() as folder:
        bus = FileBus(folder)
        writers = [writer(bus, f"a.{k}") for k in range(3)]
        for place in range(0, len(made), 2):
            writers[rng.randrange(3)].write_records(made[place : place + 2])
        for one in writers:
            one.end()
        merged = merge(bus, hold_bytes=hold)
        out: list[Exchange] = []
        for _ in range(2000):
            out += merged.poll()
            if merged.whole:
                break
        assert merged.whole and in_order(out)
        assert len(out) + merged.late == len(made)


def test_an_exchange_of_thirty_seconds_is_waited_for_and_a_longer_one_is_late(tmp_path: Path) -> None:
    bus = FileBus(tmp_path)
    one, other = writer(bus, "a.0"), writer(bus, "b.0")
    one.write_records([at(1, 10)])
    other.write_records([at(2, 10.2)])
    merged = merge(bus)
    assert merged.poll() == []
    for second in range(11, 42):
        one.write_records([at(100 + second, second)])
        other.write_records([at(200 + second, second + 0.2)])
    one.write_records([at(3, 9.5, 30)])  # began before all of these, and is over by now
    assert merged.poll() == []
    for second in range(42, 90):
        one.write_records([at(100 + second, second)])
        other.write_records([at(200 + second, second + 0.2)])
    out = merged.poll()
    assert out and out[0].exchange_id == at(3, 9.5).exchange_id and in_order(out) and merged.late == 0
    one.write_records([at(4, 12, 75)])  # longer than the look-ahead: its place is gone
    one.end()
    other.end()
    for _ in range(20):
        out += merged.poll()
    assert merged.late == 1 and in_order(out) and merged.whole


def test_nothing_comes_out_before_every_agent_is_there(tmp_path: Path) -> None:
    bus = FileBus(tmp_path)
    one = writer(bus, "east.0", ("east", "west"))
    one.write_records([at(n, n * 100) for n in range(10)])
    one.end()
    merged = merge(bus)
    assert merged.poll() == merged.poll() == []
    assert merged.missing == {"west"} and not merged.whole
    other = writer(bus, "west.0")
    other.write_records([at(50, 5)])
    other.end()
    out = [record for _ in range(9) for record in merged.poll()]
    assert len(out) == 11 and in_order(out) and merged.whole


def test_a_stream_that_is_ahead_is_not_read_until_the_others_have_come_after(tmp_path: Path) -> None:
    bus = FileBus(tmp_path)
    ahead, behind = writer(bus, "a.0"), writer(bus, "b.0")
    for n in range(2000):
        ahead.write_records([at(n, n)])
    merged = merge(bus, look_ahead_ns=10 * SECOND)
    for _ in range(50):
        assert merged.poll() == []
    assert merged.held <= 64  # one read of the stream that is ahead, and no more
    for n in range(0, 2000, 5):
        behind.write_records([at(5000 + n, n + 0.5)])
    ahead.end()
    behind.end()
    out: list[Exchange] = []
    most = 0
    for _ in range(3000):
        out += merged.poll()
        most = max(most, merged.held)
        if merged.whole:
            break
    assert len(out) == 2400 and in_order(out) and merged.late == 0 and most < 600


@pytest.mark.parametrize(("idle_ns", "comes"), [(0, False), (5 * SECOND, True)])
def test_a_silent_stream_holds_the_others_back_only_so_long(tmp_path: Path, idle_ns: int, comes: bool) -> None:
    bus = FileBus(tmp_path)
    busy, _silent = writer(bus, "a.0"), writer(bus, "b.0")
    merged = merge(bus, idle_ns=idle_ns)
    out: list[Exchange] = []
    for second in range(120):
        busy.write_records([at(second, second)])
        out += merged.poll(second * SECOND)
    assert bool(out) == comes and in_order(out)


def test_what_was_written_twice_comes_once_and_what_is_no_batch_is_counted(tmp_path: Path) -> None:
    bus = FileBus(tmp_path)
    one = writer(bus, "a.0.1")
    for offset in (5, 6, 5, 6, 7):
        one.write_records([at(offset, offset)], sources=(SourceRange("raw", "a.0", offset, offset + 1),))
    one.write(b"no batch")
    one.end()
    merged = merge(bus)
    out = [record for _ in range(5) for record in merged.poll()]
    assert [started_ns(e) for e in out] == [START + n * SECOND for n in (5, 6, 7)]
    assert (merged.repeats, merged.unreadable) == (2, 1)
