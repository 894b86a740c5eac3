"""What waits on disk while the bus is away: once, in order, whatever goes away and whoever is killed."""

from __future__ import annotations

import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bus import frames
from bus.logfile import FileBus, LogWriter
from bus.ports import BusAway, BusError, BusFull, BusHeld, Reader
from bus.spool import Mark, Spool
from bus.spooled import SpooledWriter
from wire import codec
from wire.account import Account, Increment, Ledger
from wire.records import Drop, End, Manifest

SECOND = 1_000_000_000


class Killed(Exception):
    """Here the process ends."""


@contextmanager
def room(limit: int = resource.RLIM_INFINITY) -> Iterator[None]:
    """So long may a file become."""
    was, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (was, most))


class Awayable(LogWriter):
    """A real log file that cannot be reached when the bus says so, before or after it took what it was given."""

    def __init__(self, bus: AwayableBus, path: Path, manifest: Manifest) -> None:
        super().__init__(path, manifest)
        self._bus = bus
        self._doubtful: list[bytes] | None = None

    def write_many(self, messages: Sequence[bytes]) -> list[int]:
        given = list(messages)
        assert self._doubtful in (None, given), "after BusAway the same call comes again, before any other"
        self._bus.ask("before")
        with room():  # only the spool's disk is ever full here
            offsets = self._offsets if self._doubtful is not None else super().write_many(given)
        self._offsets = offsets
        self._doubtful = given
        self._bus.ask("after")
        self._doubtful = None
        return offsets

    def end(self, end: End | None = None, *, reason: str = "done", sorted: bool = False, stopped_ns: int = 0) -> None:
        self._bus.ask("before")
        super().end(end, reason=reason, sorted=sorted, stopped_ns=stopped_ns)


class AwayableBus(FileBus):
    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.away = ""  # "before", "after": where calls fail; "killed before", "killed after"

    def ask(self, when: str) -> None:
        if self.away == f"killed {when}":
            raise Killed
        if self.away == "full":
            raise BusFull(f"{self.root}: full")
        if self.away == when:
            raise BusAway(f"{self.root}: away")

    def writer(self, topic: str, partition: str, manifest: Manifest) -> LogWriter:
        self.ask("before")
        self.root.mkdir(parents=True, exist_ok=True)
        return Awayable(self, self.path(topic, partition), manifest)

    def reader(self, topic: str, partition: str, offset: int = 0) -> Any:
        self.ask("before")
        return super().reader(topic, partition, offset)


def closing(in_flight: Mapping[str, int], blind_ns: int) -> Increment | None:
    return Increment({name: Ledger(drops={"crash": count}) for name, count in in_flight.items()}, {"blind": 1})


class Recorder:
    """Writes numbered messages; each carries the growth of a ledger."""

    def __init__(self, folder: Path, bus: AwayableBus, clock: list[int], began_ns: int, max_bytes: int) -> None:
        manifest = Manifest("raw", "a.0", "monday", began_ns, "test")
        self.clock = clock
        self.spool = Spool(folder, max_bytes, monotonic_ns=lambda: clock[0])
        self.writer = SpooledWriter(self.spool, bus, "raw", "a.0", manifest, closing, monotonic_ns=lambda: clock[0])
        self.in_flight = 0

    def message(self, number: int, in_flight: int) -> bytes:
        """Seen: what is emitted here, and what is newly in flight."""
        ledger = Ledger(seen=1 + in_flight - self.in_flight, emitted=1, in_flight=in_flight)
        return codec.encode(
            [Drop("n", "late", False, number)], first_ns=number + 1, last_ns=number + 1,
            increment=Increment({"messages": ledger}),
        )  # fmt: skip

    def write(self, number: int, in_flight: int) -> None:
        self.writer.write(self.message(number, in_flight))
        self.in_flight = in_flight


def read_all(reader: Reader) -> list[codec.Batch]:
    found = []
    while messages := reader.read():
        found += [codec.decode(message.data) for message in messages]
    reader.close()
    return found


def numbers(batches: Sequence[codec.Batch]) -> list[int]:
    return [record.count for batch in batches for record in batch.records if isinstance(record, Drop)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def recorder(folder: Path, bus: AwayableBus, clock: list[int], began_ns: int = 5, max_bytes: int = 4 << 20) -> Recorder:
    return Recorder(folder / "spool", bus, clock, began_ns, max_bytes)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 5)),
        st.tuples(st.just("away"), st.sampled_from(["before", "after"])),
        st.tuples(st.just("back"), st.none()),
        st.tuples(st.just("drain"), st.none()),
        st.tuples(st.just("kill"), st.none()),
        st.tuples(st.just("kill in"), st.sampled_from(["killed before", "killed after", "mark before", "mark after"])),
    ),
    max_size=40,
)


def play(
    steps: Sequence[tuple[str, Any]], root: Path, ends: str = "back", *, silent: bool = False
) -> tuple[list[int], list[int]]:
    """Take the steps with a recorder that is killed and started again; judge what is on the bus at the end.

    `ends`: whether the bus is back when the recorder ends. `silent`: the last process writes nothing more, if it has
    nothing in flight (of an agent's streams some get no batch before it ends). Returns what must be on the bus, and of that what is.
    """
    make = recorder
    bus, clock, number = AwayableBus(root / "bus"), [SECOND], 0
    sure: list[int] = []  # accepted: must be there
    maybe: set[int] = set()  # the process was killed while it wrote them
    began = 5
    now = make(root, bus, clock, began)
    kills = 0

    def killed() -> None:
        nonlocal now, began, kills
        now.writer.close()
        kills += 1
        began += 1000
        now = make(root, bus, clock, began)

    for step, how in steps:
        clock[0] += SECOND
        if step == "write":
            now.write(number, how)
            sure.append(number)
            number += 1
        elif step == "away":
            bus.away = how
        elif step == "back":
            bus.away = ""
        elif step == "drain":
            now.writer.drain()
        elif step == "kill":
            killed()
        else:
            was, bus.away = bus.away, how if how.startswith("killed") else ""
            lane = now.writer._lane
            mark_at = lane.mark_at

            def dies(mark: Mark, how: str = how, mark_at: Callable[[Mark], None] = mark_at) -> None:
                if how == "mark after":
                    mark_at(mark)
                raise Killed

            if not how.startswith("killed"):
                lane.mark_at = dies  # type: ignore[method-assign]
            try:
                try:
                    now.write(number, 1)
                    now.writer.drain()
                    sure.append(number)
                except Killed:
                    maybe.add(number)
                number += 1
            finally:
                bus.away = was
                killed()
    bus.away = "" if ends == "back" else "before"
    if not silent or now.in_flight:
        now.write(number, 0)
        sure.append(number)
    now.writer.end(reason="done")
    bus.away = ""
    while not now.writer.drain():
        clock[0] += SECOND
    assert now.writer.ended
    now.writer.close()
    reader = FileBus(bus.root).reader("raw", "a.0")
    batches = read_all(reader)
    found = numbers(batches)
    assert [n for n in found if n not in maybe] == sure
    assert found == sorted(set(found)), "in order, and none twice"
    account = Account.total(batch.header.increment for batch in batches)
    assert account.balanced, account.as_json()
    assert account.ledger("messages").in_flight == 0
    assert account.notes.get("blind", 0) <= kills
    (end,) = [record for batch in batches for record in batch.records if isinstance(record, End)]
    assert (end.count, end.first_ns, end.last_ns) == ((len(found), found[0] + 1, found[-1] + 1) if found else (0, 0, 0))
    left = [path.name for path in (root / "spool").iterdir() if path.suffix == ".lf"]
    assert left == [], "segments are removed once the bus has them"
    return sure, [n for n in found if n not in maybe]


@settings(max_examples=150, deadline=None)
@given(STEPS, st.sampled_from(["back", "away"]), st.booleans())
@example([("write", 3), ("kill", None)], "back", True)
@example([("away", "before"), ("write", 3), ("kill", None)], "away", True)
def test_all_arrives_once_and_in_order_and_the_books_balance(
    steps: list[tuple[str, Any]], ends: str, silent: bool
) -> None:
    root = Path(tempfile.mkdtemp())
    try:
        sure, found = play(steps, root, ends, silent=silent)
        assert found == sure
    finally:
        shutil.rmtree(root)


OUTAGE = [("write", 1), ("write", 2), ("away", "after"), ("write", 3), ("write", 4), ("kill", None), ("write", 2)]


@pytest.mark.parametrize("broken", ["comparing", "closing"])
def test_the_property_sees_a_spool_that_forgets_to(broken: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play(OUTAGE, folder / "whole")
    if broken == "comparing":
        monkeypatch.setattr("bus.spooled._digest", _Unequal())
    else:
        monkeypatch.setattr(f"{__name__}.closing", lambda in_flight, blind_ns: None)
    with pytest.raises(AssertionError):
        play(OUTAGE, folder / "broken")


class _Unequal:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self, data: bytes) -> bytes:
        self.count += 1
        return str(self.count).encode()


def test_a_full_spool_keeps_nothing_of_what_it_refuses_and_goes_on_when_the_bus_is_back(folder: Path) -> None:
    bus, clock = AwayableBus(folder / "bus"), [SECOND]
    now = recorder(folder, bus, clock, max_bytes=1 << 20)
    bus.away = "before"
    written = 0
    with pytest.raises(BusFull, match=r"spool is full \(1 MB\)"):
        while True:
            now.writer.write(codec.encode([Drop("x" * 100_000, "late", False, written)], compress=False))
            written += 1
    assert 9 <= written <= 10 and 0.9 < now.spool.fill <= 1
    assert now.spool.used_bytes == sum(path.stat().st_size for path in (folder / "spool").glob("*.lf")) <= 1 << 20
    bus.away, clock[0] = "", 2 * SECOND
    while not now.writer.drain():
        pass
    assert now.spool.used_bytes == 0 == now.spool.fill
    now.write(written, 0)
    now.writer.close()
    assert numbers(read_all(bus.reader("raw", "a.0"))) == list(range(written + 1))


def test_a_full_disk_under_the_spool_is_told_and_survived(folder: Path) -> None:
    bus, clock = AwayableBus(folder / "bus"), [SECOND]
    now = recorder(folder, bus, clock)
    now.write(0, 0)
    bus.away = "after"  # what is refused had arrived nevertheless: it must not come twice
    with room(100):
        for _ in range(3):
            clock[0] += SECOND
            with pytest.raises(BusFull, match="no room"):
                now.write(1, 0)
        assert not list((folder / "spool").glob("*.lf"))
        bus.away = "before"
        with pytest.raises(BusFull, match="no room"):
            now.write(1, 0)
    now.write(1, 0)
    bus.away, clock[0] = "", clock[0] + 2 * SECOND
    now.write(2, 0)
    while not now.writer.drain():
        pass
    now.writer.close()
    assert numbers(read_all(bus.reader("raw", "a.0"))) == [0, 1, 2]


def test_a_spool_of_another_recording_and_one_that_is_in_use_are_refused(folder: Path) -> None:
    bus, clock = AwayableBus(folder / "bus"), [SECOND]
    now = recorder(folder, bus, clock)
    bus.away = "before"
    now.write(0, 0)
    with pytest.raises(BusHeld, match="another recorder writes"):
        recorder(folder, bus, clock)
    now.writer.close()
    other = Manifest("raw", "a.0", "tuesday", 5, "test")
    spool = Spool(folder / "spool", 1 << 20, monotonic_ns=lambda: clock[0])
    with pytest.raises(BusError, match="waits for monday, not for tuesday"):
        SpooledWriter(spool, bus, "raw", "a.0", other, closing, monotonic_ns=lambda: clock[0])


def test_the_hold_of_a_killed_writer_is_waited_for_and_that_of_a_living_one_told(folder: Path) -> None:
    bus, clock = AwayableBus(folder / "bus"), [SECOND]
    manifest = Manifest("raw", "a.0", "monday", 5, "test")
    other = bus.writer("raw", "a.0", manifest)
    now = recorder(folder, bus, clock)
    now.write(0, 0)
    clock[0] += 3 * SECOND
    assert not now.writer.drain()
    other.close()
    clock[0] += 3 * SECOND
    assert now.writer.drain() and numbers(read_all(bus.reader("raw", "a.0"))) == [0]
    now.writer.close()
    other = bus.writer("raw", "a.0", manifest)
    now = recorder(folder, bus, clock, 6)
    with pytest.raises(BusHeld, match="name of its own"):
        for _ in range(20):
            clock[0] += SECOND
            now.write(1, 0)
            now.writer.drain()
    now.writer.close()
    other.close()


def test_between_two_short_holds_an_outage_does_not_make_one_long_one(folder: Path) -> None:
    bus, clock = AwayableBus(folder / "bus"), [SECOND]
    manifest = Manifest("raw", "a.0", "monday", 5, "test")
    now = recorder(folder, bus, clock)
    other = bus.writer("raw", "a.0", manifest)
    now.write(0, 0)
    other.close()
    bus.away = "before"
    for _ in range(20):
        clock[0] += 10 * SECOND
        assert not now.writer.drain()
    bus.away = ""
    other = bus.writer("raw", "a.0", manifest)
    clock[0] += 10 * SECOND
    assert not now.writer.drain()
    other.close()
    clock[0] += 10 * SECOND
    assert now.writer.drain() and numbers(read_all(bus.reader("raw", "a.0"))) == [0]
    now.writer.close()


def test_a_mark_of_a_stream_that_is_gone_is_none(folder: Path) -> None:
    """As when its topic was made anew."""
    bus, clock = AwayableBus(folder / "bus"), [SECOND]
    now = recorder(folder, bus, clock)
    now.write(0, 0)
    now.write(1, 0)
    now.writer.close()
    shutil.rmtree(folder / "bus")
    now = recorder(folder, bus, clock, 6)
    now.write(2, 0)
    assert numbers(read_all(bus.reader("raw", "a.0"))) == [2] and not now.writer.waiting
    now.writer.close()


@pytest.mark.parametrize(("at", "kept", "damaged"), [("manifest", [0, 1, 2], 1), ("message", [0, 2], 1)])
def test_damage_in_the_spool_costs_what_it_struck_and_is_counted(
    at: str, kept: list[int], damaged: int, folder: Path
) -> None:
    bus, clock = AwayableBus(folder / "bus"), [SECOND]
    now = recorder(folder, bus, clock)
    bus.away = "before"
    offsets = []
    for number in range(3):
        now.write(number, 0)
        (segment,) = (folder / "spool").glob("*.lf")
        offsets.append(segment.stat().st_size)
    now.writer.close()
    data = bytearray(segment.read_bytes())
    data[60 if at == "manifest" else offsets[0] + 30] ^= 0x10
    segment.write_bytes(data)
    bus.away = ""
    now = recorder(folder, bus, clock, 6)
    clock[0] += 10 * SECOND
    while not now.writer.drain():
        pass
    now.writer.end()
    batches = read_all(bus.reader("raw", "a.0"))
    assert numbers(batches) == kept
    assert sum(batch.header.increment.notes.get("damaged_frames", 0) for batch in batches) == damaged
    now.writer.close()


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_segment_of_which_nothing_can_be_read_is_set_aside_and_counted(which: int, folder: Path) -> None:
    """As a machine that lost its power leaves it: its length, and zeros."""
    bus, clock = AwayableBus(folder / "bus"), [SECOND]
    bus.away = "before"
    for number in range(3):  # a process each: each begins a segment
        now = recorder(folder, bus, clock, 5 + number)
        now.write(number, 0)
        now.writer.close()
    segment = sorted((folder / "spool").glob("*.lf"))[which]
    segment.write_bytes(bytes(segment.stat().st_size))
    bus.away = ""
    now = recorder(folder, bus, clock, 9)
    clock[0] += 10 * SECOND
    while not now.writer.drain():
        pass
    now.writer.end()
    batches = read_all(bus.reader("raw", "a.0"))
    assert numbers(batches) == [number for number in range(3) if number != which]
    assert sum(batch.header.increment.notes.get("damaged_frames", 0) for batch in batches) == 1
    assert [path.name for path in (folder / "spool").glob("*.damaged")] == [f"{segment.name}.damaged"]
    now.writer.close()


def test_a_segment_of_a_later_version_is_left_alone(folder: Path) -> None:
    bus, clock = AwayableBus(folder / "bus"), [SECOND]
    bus.away = "before"
    now = recorder(folder, bus, clock)
    now.write(1, 0)
    now.writer.close()
    (segment,) = (folder / "spool").glob("*.lf")
    data = segment.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames, "FILE_VERSION", frames.FILE_VERSION + 1)
        segment.write_bytes(frames.file_header(1) + data[frames.FILE_BYTES :])
    with pytest.raises(BusError, match="upgrade livefire"):
        recorder(folder, bus, clock, 6)
    assert segment.exists()


def test_what_is_in_doubt_is_kept_before_what_comes_now(folder: Path) -> None:
    """A bus that was full may have taken it, so it comes again, and nothing takes its place."""
    bus, clock = AwayableBus(folder / "bus"), [SECOND]
    now = recorder(folder, bus, clock)
    now.write(1, 0)
    bus.away = "full"
    with pytest.raises(BusFull):
        now.write(2, 0)
    bus.away = "before"
    now.write(3, 0)
    bus.away = ""
    clock[0] += 10 * SECOND
    while not now.writer.drain():
        pass
    now.write(4, 0)
    assert numbers(read_all(bus.reader("raw", "a.0"))) == [1, 2, 3, 4]
    now.writer.close()


def test_a_mark_that_is_damaged_costs_reading_alone(folder: Path) -> None:
    bus, clock = AwayableBus(folder / "bus"), [SECOND]
    now = recorder(folder, bus, clock)
    now.write(0, 0)
    bus.away = "after"
    now.write(1, 0)
    now.writer.close()
    (mark,) = (folder / "spool").glob("*.mark")
    assert Mark.unpack(mark.read_bytes()) is not None
    mark.write_bytes(b"x" * len(mark.read_bytes()))
    bus.away = ""
    now = recorder(folder, bus, clock, 6)
    now.write(2, 0)
    while not now.writer.drain():
        pass
    now.writer.end()
    now.writer.close()
    batches = read_all(bus.reader("raw", "a.0"))
    assert numbers(batches) == [0, 1, 2] and batches[-1].records[0].count == 3
