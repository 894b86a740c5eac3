"""Recorders that write to a bus, in files and in Kafka: dealing, clocks, what is late, a bus that goes away."""

from __future__ import annotations

import itertools
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pcap_build import Conversation
from test_capture_record import DEADLINE_S, Counting, free_port, get, server, target, until

from bus.address import is_kafka, open_bus, parse_kafka
from bus.logfile import FileBus
from bus.ports import Bus, BusAway, BusError
from capture.app import drain
from capture.progress import Progress
from capture.record import record
from capture.settings import CaptureSettings, RecordSettings
from capture.shed import Shedder
from capture.source import Sink
from wire import codec
from wire.account import Account
from wire.codec import RecordType
from wire.records import Exchange, Manifest

__all__ = ["server"]  # a fixture
SECOND = 1_000_000_000


@pytest.fixture(params=["files", "kafka"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "files":
        yield str(tmp_path / "bus")
        return
    from bus.kafka_topics import Topics, Wanted

    where = f"kafka://{request.getfixturevalue('kafka_server').address}/test-{uuid.uuid4().hex[:8]}"
    with Topics(parse_kafka(where)) as topics:
        topics.create(Wanted(retention_ms=3_600_000))
        yield where
        topics.delete()


def settings_for(address: str, tmp_path: Path, agent: str = "a", **more: Any) -> RecordSettings:
    return RecordSettings(
        to="", bus=address, recording="monday", agent=agent, agents=("a", "b"), spool=str(tmp_path / "spool"), **more
    )


class Live:
    """A recorder in a thread of its own, listening as a proxy."""

    def __init__(self, settings: RecordSettings, upstream: int, ahead_ns: int = 0, bus: Bus | None = None) -> None:
        self.port = free_port()
        proxies = ((f"127.0.0.1:{self.port}", f"127.0.0.1:{upstream}"),)
        self.settings = msgspec.structs.replace(settings, proxies=proxies)
        self.seen: list[Progress] = []
        self.account = Account()
        self.error: BusError | None = None
        self._stop = threading.Event()
        self._ahead_ns = ahead_ns
        self._bus = bus or open_bus(settings.bus, settings.recording)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        until(lambda: self.seen or not self._thread.is_alive())
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        anchor_ns = time.time_ns() - time.monotonic_ns() + self._ahead_ns
        try:
            self.account = record(
                self.settings, None, b"k" * 32, self._stop.is_set, self.seen.append,
                anchor_ns=anchor_ns, bus=self._bus, wall_ns=time.time_ns,
            )  # fmt: skip
        except BusError as error:
            self.error = error

    def stop(self) -> Account:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error
        return self.account


@contextmanager
def live(*args: Any, **more: Any) -> Iterator[Live]:
    recorder = Live(*args, **more)
    try:
        yield recorder
    finally:
        recorder._stop.set()
        recorder._thread.join(60)


def patiently(call: Callable[[], Any]) -> Any:
    """A busy broker may not answer in time."""
    end = time.monotonic() + DEADLINE_S
    while True:
        try:
            return call()
        except BusAway:
            if time.monotonic() > end:
                raise


class Stream(msgspec.Struct):
    name: str
    manifest: Manifest
    account: Account
    exchanges: list[Exchange]
    batches: int
    ended: bool


def streams(address: str, recording: str = "monday") -> list[Stream]:
    return list(patiently(lambda: _streams(address, recording)))


def _streams(address: str, recording: str) -> list[Stream]:
    bus = open_bus(address, recording)
    try:
        found = []
        for name in bus.partitions("raw"):
            reader = bus.reader("raw", name)
            batches = []
            while messages := reader.read():
                batches += [codec.decode(message.data) for message in messages]
            assert reader.manifest is not None
            kept = [b for b in batches if b.header.type == RecordType.EXCHANGE]
            found.append(
                Stream(
                    name, reader.manifest, Account.total(b.header.increment for b in batches),
                    [e for b in kept for e in b.records], len(kept), reader.ended,
                )
            )  # fmt: skip
            reader.close()
        return found
    finally:
        bus.close()


def total(found: Sequence[Stream]) -> Account:
    account = Account()
    for stream in found:
        account.merge(stream.account)
    return account


# ---------------------------------------------------------------------------- the whole way


def test_all_that_was_served_is_on_the_bus_and_every_stream_balances(
    address: str, server: Counting, tmp_path: Path
) -> None:
    with live(settings_for(address, tmp_path), server.server_address[1]) as recorder:
        threads = [threading.Thread(target=get, args=(recorder.port, [f"/{n}/{i}" for i in range(50)])) for n in "abc"]
        for thread in threads:
            thread.start()
        until(lambda: recorder.seen[-1].exchanges)
        for thread in threads:
            thread.join()
        get(recorder.port, ["/last"])
        account = recorder.stop()
    found = streams(address)
    bus = open_bus(address, "monday")
    assert len(found) == patiently(lambda: bus.spread("raw")) == (8 if is_kafka(address) else 1)
    bus.close()
    assert [s.name for s in found] == [f"a.{k}" for k in range(len(found))]
    assert sorted(target(e) for s in found for e in s.exchanges) == sorted(server.seen)
    assert account.balanced and total(found).as_json() == account.as_json()
    for stream in found:
        assert stream.ended and stream.account.balanced, stream.name
        assert stream.manifest.owner_id == "monday" and stream.manifest.hosts == ("a", "b")
        assert {e.host for e in stream.exchanges} <= {"a"}
    dealt = [s.batches for s in found]
    assert max(dealt) - min(dealt) <= 1, "whole batches, one after another"
    assert not list((tmp_path / "spool").glob("**/*.*")), "nothing is left where nothing waits"


def test_a_recording_that_is_whole_and_one_that_was_masked_are_not_gone_on_with(
    address: str, server: Counting, tmp_path: Path
) -> None:
    manifest = Manifest("raw", "a.0", "monday", 5, "test", masked=True)
    bus = open_bus(address, "monday")
    patiently(lambda: bus.writer("raw", "a.0", manifest)).close()
    bus.close()
    with pytest.raises(BusError, match="begun masked"):
        Live(settings_for(address, tmp_path), server.server_address[1])
    with live(settings_for(address, tmp_path, agent="b"), server.server_address[1]) as recorder:
        recorder.stop()
    with pytest.raises(BusError, match="is whole already"):
        Live(settings_for(address, tmp_path, agent="b"), server.server_address[1])


def test_two_recorders_of_one_name_are_told_of_it_and_the_first_goes_on(
    address: str, server: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bus.spooled._HELD_NS", SECOND // 5)
    upstream = server.server_address[1]
    with live(settings_for(address, tmp_path), upstream) as first:
        get(first.port, ["/a"])
        until(lambda: first.seen[-1].exchanges and not first.seen[-1].waiting_bytes)
        with pytest.raises(BusError, match="another recorder writes"):
            Live(settings_for(address, tmp_path), upstream)
        other = msgspec.structs.replace(settings_for(address, tmp_path), spool=str(tmp_path / "elsewhere"))
        with pytest.raises(BusError, match="name of its own"), live(other, upstream) as second:
            until(lambda: second.error)
            second.stop()
        get(first.port, ["/b"])
        first.stop()
    assert sorted(target(e) for s in streams(address) for e in s.exchanges) == ["/a", "/b"]


# ---------------------------------------------------------------------------- clocks


def merged(found: Sequence[Stream]) -> list[str]:
    """As who reads both agents orders them."""
    exchanges = [e for s in found for e in s.exchanges]
    return [target(e) for e in sorted(exchanges, key=lambda e: e.request_start_ns)]


@pytest.mark.parametrize("corrected", [True, False])
def test_two_recorders_whose_clocks_differ_by_200_ms_agree(
    corrected: bool, kafka_server: Any, server: Counting, tmp_path: Path, request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if not corrected:
        monkeypatch.setattr("capture.assembler.Assembler.set_clock", lambda self, offset_ns: None)
    with topics_on(kafka_server.address) as address:
        upstream = server.server_address[1]
        with (
            live(settings_for(address, tmp_path, "a"), upstream) as a,
            live(settings_for(address, tmp_path, "b"), upstream, ahead_ns=200_000_000) as b,
        ):
            for number in range(30):
                get((a, b)[number % 2].port, [f"/{number:02}"])
            a.stop()
            b.stop()
        found = streams(address)
    offsets = {s.name[0]: (s.manifest.clock_offset_ns, s.manifest.clock_error_ns) for s in found}
    assert all(0 < error < 50_000_000 for _, error in offsets.values())
    apart = offsets["a"][0] - offsets["b"][0] - 200_000_000
    assert abs(apart) <= offsets["a"][1] + offsets["b"][1]
    order = merged(found)
    assert len(order) == 30
    # An exchange takes a millisecond or more, and so does what is not known of the clocks: neighbours may change places.
    displaced = max(abs(int(path[1:]) - place) for place, path in enumerate(order))
    assert (displaced <= 4) == corrected, order


@contextmanager
def topics_on(server: str) -> Iterator[str]:
    from bus.kafka_topics import Topics, Wanted

    where = f"kafka://{server}/test-{uuid.uuid4().hex[:8]}"
    with Topics(parse_kafka(where)) as topics:
        topics.create(Wanted(retention_ms=3_600_000))
        try:
            yield where
        finally:
            topics.delete()


def test_a_clock_that_drifts_is_measured_again_and_told(tmp_path: Path) -> None:
    now_ns = itertools.count(SECOND, SECOND // 10)
    told: list[int] = []

    class Clocked(FileBus):
        """Files have no clock; this one has, and it goes wrong by 7 ms between two measurements."""

        def clock_offset(self) -> tuple[int, int]:
            told.append(5_000_000 + 7_000_000 * len(told))
            return told[-1], 300_000

    settings = settings_for(str(tmp_path / "bus"), tmp_path)
    source = Late()
    account = record(
        settings, None, b"k" * 32, lambda: len(told) >= 3, anchor_ns=5, source=source,
        bus=Clocked(tmp_path / "bus" / "monday"), monotonic_ns=lambda: next(now_ns),
    )  # fmt: skip
    (stream,) = streams(settings.bus)
    assert (stream.manifest.clock_offset_ns, stream.manifest.clock_error_ns) == (5_000_000, 300_000)
    times = account.notes["clock_measured"]
    assert times >= 1 and account.notes["clock_drift_ns.a"] == 7_000_000 * times
    assert account.balanced and total([stream]).notes["clock_measured"] == times


# ---------------------------------------------------------------------------- what takes long


class Late:
    """Packets by their own clock: the answer to /slow takes 30 s, others come and go meanwhile."""

    described, kernel_times = "packets", True
    inputs: tuple[str, ...] = ("test",)

    def __init__(self, took_ns: int = 30 * SECOND) -> None:
        slow, quick = Conversation(("10.0.0.1", 1111)).open(), Conversation(("10.0.0.1", 2222)).open()
        slow.client(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        for number in range(29):
            quick.now_ns += SECOND
            quick.client(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number)
            quick.server(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        slow.now_ns += took_ns - slow.step_ns
        slow.server(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow")
        self.packets = sorted([*slow.packets, *quick.packets])

    def feed(self, sink: Sink, timeout_s: float) -> int:
        taken, self.packets = self.packets[:7], self.packets[7:]
        for at_ns, data in taken:
            sink.packet(at_ns, data, len(data))
        return len(taken)

    def count(self, sink: Sink) -> None: ...

    def finish(self, sink: Sink) -> None:
        while self.feed(sink, 0):
            pass

    def close(self) -> None: ...


def test_an_exchange_that_takes_30_s_comes_late_and_whole(address: str, tmp_path: Path) -> None:
    source = Late()
    settings = settings_for(address, tmp_path, capture=CaptureSettings(batch_bytes=1))
    account = record(
        settings, None, b"k" * 32, lambda: not source.packets, anchor_ns=time.time_ns() - time.monotonic_ns(),
        source=source, bus=open_bus(address, "monday"), wall_ns=time.time_ns,
    )  # fmt: skip
    found = streams(address)
    exchanges = [e for s in found for e in s.exchanges]
    assert account.balanced and len(exchanges) == 30
    slow = next(e for e in exchanges if target(e) == "/slow")
    assert slow.response is not None and slow.response.body == b"slow" and not slow.faults
    assert slow.response_end_ns - slow.request_start_ns == 30 * SECOND
    assert merged(found)[0] == "/slow"
    (carries,) = [s for s in found if slow in s.exchanges]
    assert carries.exchanges[-1] == slow and (len(carries.exchanges) > 1 or len(found) > 1)


@pytest.mark.parametrize("shared", [True, False])
def test_what_is_in_flight_is_shared_among_the_streams(
    shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wide(FileBus):
        def spread(self, topic: str) -> int:
            return 3

    if not shared:
        monkeypatch.setattr("capture.dealer.codec.with_increment", lambda data, header, increment: data)
    source, settings = Late(), settings_for(str(tmp_path / "bus"), tmp_path, capture=CaptureSettings(batch_bytes=1))
    account = record(
        settings, None, b"k" * 32, lambda: not source.packets, anchor_ns=5, source=source,
        bus=Wide(tmp_path / "bus" / "monday"),
    )  # fmt: skip
    found = streams(settings.bus)
    assert len(found) == 3 and account.balanced
    assert all(s.account.balanced for s in found) == shared
    assert (total(found).as_json() == account.as_json()) == shared


# ---------------------------------------------------------------------------- away


class AwayBus:
    """A real bus that says at times that it cannot be reached."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.away = False

    def _ask(self) -> Bus:
        if self.away:
            raise BusAway("the test said so")
        return self._bus

    def writer(self, topic: str, partition: str, manifest: Manifest) -> Any:
        return AwayWriter(self, self._ask().writer(topic, partition, manifest))

    def reader(self, topic: str, partition: str, offset: int = 0) -> Any:
        return self._ask().reader(topic, partition, offset)

    def spread(self, topic: str) -> int:
        return self._ask().spread(topic)

    def whole(self, topic: str, partition: str) -> bool:
        return self._ask().whole(topic, partition)

    def partitions(self, topic: str) -> list[str]:
        return self._ask().partitions(topic)

    def held(self, topic: str, partition: str) -> bool:
        return self._ask().held(topic, partition)

    def close(self) -> None:
        self._bus.close()


class AwayWriter:
    def __init__(self, bus: AwayBus, writer: Any) -> None:
        self._bus, self._writer = bus, writer

    def write_many(self, messages: Sequence[bytes]) -> list[int]:
        self._bus._ask()
        offsets: list[int] = self._writer.write_many(messages)
        return offsets

    def end(self, end: Any) -> None:
        self._bus._ask()
        self._writer.end(end)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)


@pytest.mark.parametrize("at_start", [False, True])
def test_a_bus_that_is_away_for_a_while_gets_everything_once(
    at_start: bool, address: str, server: Counting, tmp_path: Path
) -> None:
    bus = AwayBus(open_bus(address, "monday"))
    bus.away = at_start
    with live(settings_for(address, tmp_path), server.server_address[1], bus=bus) as recorder:
        get(recorder.port, [f"/before/{n}" for n in range(20)])
        if not at_start:
            until(lambda: recorder.seen[-1].exchanges)
            bus.away = True
        get(recorder.port, [f"/meanwhile/{n}" for n in range(20)])
        until(lambda: recorder.seen[-1].away and recorder.seen[-1].waiting_bytes)
        bus.away = False
        until(lambda: not recorder.seen[-1].waiting_bytes)
        get(recorder.port, [f"/after/{n}" for n in range(20)])
        account = recorder.stop()
    found = streams(address)
    assert sorted(target(e) for s in found for e in s.exchanges) == sorted(server.seen)
    assert account.balanced and total(found).as_json()["ledgers"] == account.as_json()["ledgers"]
    assert all(s.ended for s in found)


def test_a_bus_that_stays_away_is_told_and_what_waits_is_brought_later(
    address: str, server: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("capture.dealer.LINGER_S", 0.2)
    bus = AwayBus(open_bus(address, "monday"))
    bus.away = True
    settings = settings_for(address, tmp_path)
    with live(settings, server.server_address[1], bus=bus) as recorder:
        get(recorder.port, ["/a", "/b"])
        with pytest.raises(BusAway, match=r"bytes stay in .*--drain"):
            recorder.stop()
    monkeypatch.undo()
    assert drain(settings) > 0
    found = streams(address)
    assert sorted(target(e) for s in found for e in s.exchanges) == ["/a", "/b"]
    assert total(found).balanced and all(s.ended for s in found)
    assert drain(settings) == 0


# ---------------------------------------------------------------------------- no room


def test_as_the_spool_fills_whole_sessions_are_shed_the_same_ones_to_the_end() -> None:
    sessions = [number.to_bytes(4, "big") * 4 for number in range(0, 1 << 32, (1 << 32) // 4096)]
    shedder, kept = Shedder(), set(sessions)
    shares = []
    for fill in [0.0, 0.3, 0.5, 0.6, 0.75, 0.7, 0.875, 0.99, 0.9]:
        shedder.filled(fill)
        now = {session for session in sessions if not shedder.sheds(session)}
        assert now <= kept, "who is shed stays shed"
        kept = now
        shares.append(len(now) / len(sessions))
    assert shares == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 2**-6, 2**-6]
    shedder.filled(0.0)
    assert not any(map(shedder.sheds, sessions))


def test_a_full_spool_sheds_sessions_whole_and_the_account_says_so(server: Counting, tmp_path: Path) -> None:
    address = str(tmp_path / "bus")
    bus = AwayBus(open_bus(address, "monday"))
    capture = CaptureSettings(sessions=("header:x-session", "connection"), batch_bytes=1 << 14)
    settings = settings_for(address, tmp_path, spool_max_bytes=1 << 20, capture=capture)
    with live(settings, server.server_address[1], bus=bus) as recorder:
        bus.away = True
        lap = 0
        noise = iter(range(1 << 30))
        until_full = time.monotonic() + DEADLINE_S
        while recorder.seen[-1].shed < 200:
            assert time.monotonic() < until_full
            for session in range(16):
                salt = "".join(uuid.uuid4().hex for _ in range(60))
                get(recorder.port, [f"/{session}/{lap}/{next(noise)}"], {"X-Session": str(session), "X-Salt": salt})
            lap += 1
        bus.away = False
        account = recorder.stop()
    found = streams(address)
    messages = account.ledger("messages")
    recorded = Counter(target(e).split("/")[1] for s in found for e in s.exchanges)
    assert account.balanced and total(found).balanced
    assert messages.drops["no_room"] + messages.emitted == 2 * len(server.seen)
    whole = [session for session, count in recorded.items() if count == lap]
    assert whole, "some sessions lost nothing"
    assert any(count < lap for count in recorded.values()), "and some were shed"
