"""The ring on the loopback interface, with real packets. Needs CAP_NET_RAW."""

from __future__ import annotations

import errno
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from capture.bpf import Selection
from capture.frames import Buffer
from capture.source_ring import BLOCK_BYTES, RingSource, explained, open_error
from wire.account import Account
from wire.config import ConfigError

DEADLINE_S = 30.0
_refused = open_error()
needs_ring = pytest.mark.skipif(_refused is not None, reason=f"no packet ring: {explained(_refused or OSError())}")


class Sink:
    def __init__(self, in_place: bool = False) -> None:
        self.lane = self if in_place else None
        self.account = Account()
        self.packets: list[tuple[int, bytes, int]] = []

    def frame(self, ts_ns: int, buffer: Buffer, at: int, caught: int, wire_len: int, interface: str) -> bool:
        self.packet(ts_ns, buffer[at : at + caught], wire_len, 1, interface)
        return True

    def packet(self, ts_ns: int, data: bytes, wire_len: int, linktype: int = 1, interface: str = "") -> None:
        assert linktype == 1 and interface == "lo"
        self.packets.append((ts_ns, data, wire_len))
        ledger = self.account.ledger("packets")
        ledger.seen += 1
        ledger.emitted += 1

    def kernel_dropped(self, count: int) -> None:
        ledger = self.account.ledger("packets")
        ledger.seen += count
        ledger.drop("kernel", count)


@contextmanager
def connected(address: str = "127.0.0.1") -> Iterator[tuple[socket.socket, socket.socket, int]]:
    """Two ends, and the port that nobody else uses."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as server:
        port = server.getsockname()[1]
        with socket.create_connection((address, port), DEADLINE_S) as client:
            theirs, _ = server.accept()
            theirs.settimeout(DEADLINE_S)
            with theirs:
                yield client, theirs, port


@contextmanager
def ring(port: int, **options: int) -> Iterator[RingSource]:
    source = RingSource("lo", Selection(ports=(port,)), retire_ms=10, **options)
    try:
        yield source
    finally:
        source.close()


def payload(frame: bytes) -> bytes:
    base = 14 + (20 if frame[12:14] == b"\x08\x00" else 40)
    length = struct.unpack_from(">H", frame, 16)[0] - 20 if base == 34 else struct.unpack_from(">H", frame, 18)[0]
    return frame[base + 4 * (frame[base + 12] >> 4) : base + length]


@needs_ring
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("in_place", [False, pytest.param(True, marks=pytest.mark.patches)])
def test_each_packet_is_seen_once_in_order_with_its_time(address: str, in_place: bool) -> None:
    with connected(address) as (client, theirs, port), ring(port) as source:
        sink = Sink(in_place)
        before = time.time_ns()
        for number in range(50):
            client.sendall(b"%04d" % number)
            assert theirs.recv(4) == b"%04d" % number
            theirs.sendall(b"answer")
            assert client.recv(6) == b"answer"
        after = time.time_ns()
        source.finish(sink)
    up = [data for _, frame, _ in sink.packets if (data := payload(frame)).isdigit()]
    assert up == [b"%04d" % number for number in range(50)]
    assert [payload(frame) for _, frame, _ in sink.packets].count(b"answer") == 50
    times = [at for at, _, _ in sink.packets]
    assert times == sorted(times) and before - 10**8 < times[0] <= times[-1] < after + 10**8
    assert all(len(frame) == wire for _, frame, wire in sink.packets)
    assert source.kernel_drops == 0 and sink.account.balanced


@needs_ring
def test_packets_come_while_it_runs() -> None:
    with connected() as (client, _, port), ring(port) as source:
        sink = Sink()
        client.sendall(b"now")
        until = time.monotonic() + DEADLINE_S
        while not any(payload(frame) == b"now" for _, frame, _ in sink.packets):
            assert time.monotonic() < until
            source.feed(sink, 0.2)


@needs_ring
@pytest.mark.parametrize("in_place", [False, pytest.param(True, marks=pytest.mark.patches)])
def test_the_vlan_tag_that_the_kernel_took_out_is_put_back(in_place: bool) -> None:
    with connected() as (_, _, port), ring(port) as source:
        packet = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 40, 1, 0, 64, 6, 0, b"\x7f\0\0\x01", b"\x7f\0\0\x01")
        segment = struct.pack(">HHIIBBHHH", 5, port, 1, 1, 0x50, 0x10, 1000, 0, 0)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as raw:
            raw.bind(("lo", 0))
            frame = bytes(12) + b"\x81\x00\x00\x2a" + b"\x08\x00" + packet + segment
            raw.send(frame)
        sink = Sink(in_place)
        source.finish(sink)
    assert [(data, wire) for _, data, wire in sink.packets] == [(frame, len(frame))]


@needs_ring
@pytest.mark.parametrize("in_place", [False, pytest.param(True, marks=pytest.mark.patches)])
def test_snaplen_cuts_packets_and_says_so(in_place: bool) -> None:
    with connected() as (client, theirs, port), ring(port, snaplen=100) as source:
        client.sendall(b"x" * 1000)
        assert len(theirs.recv(1000)) == 1000
        sink = Sink(in_place)
        source.finish(sink)
    cut = [(len(frame), wire) for _, frame, wire in sink.packets if len(frame) < wire]
    assert len(cut) == source.cut_packets == 1
    assert cut[0] == (100, 1000 + 14 + 20 + 32)


def overflow(client: socket.socket, theirs: socket.socket) -> None:
    for _ in range(60):
        client.sendall(b"x" * 60_000)
        left = 60_000
        while left:
            left -= len(theirs.recv(left))


@needs_ring
def test_what_the_kernel_has_no_room_for_is_counted() -> None:
    with connected() as (client, theirs, port), ring(port, ring_bytes=4 * BLOCK_BYTES) as source:
        assert source.ring_bytes == 4 * BLOCK_BYTES
        overflow(client, theirs)
        sink = Sink()
        source.count(sink)
        source.count(sink)  # reading the kernel's counters sets them to 0: the growth is counted once
        source.finish(sink)
    ledger = sink.account.ledger("packets")
    assert source.kernel_drops > 0
    assert ledger.drops == {"kernel": source.kernel_drops}
    assert ledger.seen == source.kernel_seen == len(sink.packets) + source.kernel_drops
    assert sink.account.balanced


class Lossy(RingSource):
    """Hands its first block back unread, and says nothing of it."""

    lost = False

    def _walk(self, sink: object) -> int:
        if not self.lost:
            self.lost = True
            sink = Sink()
            read, given = self.read, super()._walk(sink)
            self.read = read
            return given
        return super()._walk(sink)  # type: ignore[arg-type]


@pytest.mark.patches
@needs_ring
def test_a_source_that_loses_packets_silently_does_not_balance() -> None:
    with connected() as (client, theirs, port):
        source = Lossy("lo", Selection(ports=(port,)), retire_ms=10)
        try:
            client.sendall(b"x")
            assert theirs.recv(1) == b"x"
            sink = Sink()
            source.finish(sink)
        finally:
            source.close()
    assert source.lost and not sink.account.balanced
    assert sink.account.ledger("packets").difference == source.kernel_seen > 0


@needs_ring
def test_with_any_a_packet_on_the_loopback_passes_twice_and_is_taken_once() -> None:
    class Any(Sink):
        def packet(self, ts_ns: int, data: bytes, wire_len: int, linktype: int = 101, interface: str = "") -> None:
            assert (linktype, interface) == (101, "lo")
            self.packets.append((ts_ns, data, wire_len))
            self.account.ledger("packets").seen += 1

    sink = Any()
    with connected() as (client, server, port):
        source = RingSource("any", Selection(ports=(port,)), retire_ms=10)
        try:
            for number in range(5):
                client.sendall(b"only once %d" % number)
                assert server.recv(100)
            source.finish(sink)
            found = [data for _, data, _ in sink.packets]
            assert [sum(data.endswith(b"only once %d" % n) for data in found) for n in range(5)] == [1] * 5
            assert source.read == 2 * len(found), "or this shows nothing"
        finally:
            source.close()


@needs_ring
def test_an_interface_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"interface 'eht0': there is none of that name \(known: .*lo"):
        RingSource("eht0", Selection())


def test_a_refusal_says_what_to_do() -> None:
    assert "CAP_NET_RAW" in explained(PermissionError(errno.EPERM, "Operation not permitted"))
    assert "AF_PACKET" in explained(AttributeError())
