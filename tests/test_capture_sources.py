"""The same traffic through every source: identical exchanges for identical bytes."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pcap_build import Conversation, Packet, pcap

from capture.assembler import Assembler
from capture.bpf import Selection
from capture.choose import choose, open_source
from capture.handover import FROM_CLIENT
from capture.mirror import Mirrored, MirrorServer
from capture.proxy import ProxySettings
from capture.settings import CaptureSettings, RecordSettings
from capture.source import Source
from capture.source_pcap import PcapSource
from capture.source_ring import explained, open_error
from capture.source_socket import SocketSource
from capture.source_udp import UdpSource, listens_of
from capture.steps import Steps
from livefire_shadow import tap
from wire.config import ConfigError
from wire.records import Exchange

DEADLINE_S = 30.0
_refused = open_error()
needs_ring = pytest.mark.skipif(_refused is not None, reason=f"no packet ring: {explained(_refused or OSError())}")

#: A turn: what the client sends, and the answer.
Turn = tuple[bytes, bytes]
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nX-Number: %d\r\n\r\n%b"
TALKS: list[list[Turn]] = [
    [
        (b"GET /a/%d HTTP/1.1\r\nHost: shop\r\nCookie: s=%d\r\n\r\n" % (n, n), ANSWER % (4, n, b"body"))
        for n in range(5)
    ],
    [
        (
            b"POST /orders HTTP/1.1\r\nHost: shop\r\nContent-Length: 5000\r\n\r\n" + b"p" * 5000,
            b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nT: v\r\n\r\n",
        ),
        (b"HEAD /h HTTP/1.1\r\nHost: shop\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 77\r\n\r\n"),
        (
            b"PUT /c HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\n\r\n",
            b"HTTP/1.1 204 No Content\r\n\r\n",
        ),
    ],
    [(b"GET /last HTTP/1.0\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\nuntil the end")],
]


def seen(exchanges: Sequence[Exchange]) -> list[Any]:
    """All that is made of bytes; ids, times and peers are the source's."""
    rows = [(e.request, e.response, e.mode, e.protocol, e.faults) for e in exchanges]
    return sorted(rows, key=lambda row: row[0].head)


def assembler() -> Assembler:
    return Assembler("r", CaptureSettings(), None, b"k")


def frames(server: tuple[str, int] = ("10.0.0.2", 80)) -> list[Packet]:
    found: list[Packet] = []
    for number, turns in enumerate(TALKS):
        talk = Conversation(client=("10.0.0.1", 40000 + number), server=server, client_isn=1000 * number).open()
        for request, answer in turns:
            talk.client(request).ack(1).server(answer).ack(0)
        found += talk.close().packets
    return found


def from_file(data: bytes) -> list[Exchange]:
    made = assembler()
    for frame in PcapSource("-", stream=io.BytesIO(data)).frames():
        made.packet(*frame)
    done = made.finish()
    assert made.account.balanced
    return done


@pytest.fixture(scope="module")
def expected() -> list[Any]:
    found = seen(from_file(pcap(frames())))
    assert len(found) == sum(map(len, TALKS))
    return found


def pcapng(packets: Sequence[Packet]) -> bytes:
    def block(kind: int, body: bytes) -> bytes:
        body += bytes(-len(body) % 4)
        return struct.pack("<II", kind, len(body) + 12) + body + struct.pack("<I", len(body) + 12)

    out = block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))
    out += block(1, struct.pack("<HHI", 1, 0, 0) + struct.pack("<HHBxxx", 9, 1, 9) + bytes(4))
    for ts_ns, frame in packets:
        head = struct.pack("<IIIII", 0, ts_ns >> 32, ts_ns & 0xFFFFFFFF, len(frame), len(frame))
        out += block(6, head + frame)
    return out


class Live:
    """A source, fed from another thread while this one reads it."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.assembler = assembler()
        self.found: list[Exchange] = []

    def read_until(self, enough: Callable[[list[Exchange]], bool]) -> None:
        end = time.monotonic() + DEADLINE_S
        while not enough(self.found):
            assert time.monotonic() < end, f"{len(self.found)} exchanges came, {self.assembler.account.as_json()}"
            self.source.feed(self.assembler, 0.02)
            if self.assembler.now_ns:
                self.assembler.expire(self.assembler.now_ns)
            self.found += self.assembler.take()

    def finish(self) -> list[Exchange]:
        self.source.finish(self.assembler)
        self.found += self.assembler.finish()
        self.source.close()
        assert self.assembler.account.balanced, self.assembler.account.as_json()
        return self.found


def opened(**fields: Any) -> Live:
    chosen = RecordSettings(to="x.lf", **fields)
    anchor_ns = time.time_ns() - time.monotonic_ns()
    return Live(open_source(chosen, choose(chosen), anchor_ns=anchor_ns, monotonic_ns=time.monotonic_ns))


def all_of(talks: Sequence[Sequence[Turn]] = TALKS) -> Callable[[list[Exchange]], bool]:
    return lambda found: len(found) >= sum(map(len, talks))


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Server:
    """Answers what it is told to, whatever the bytes say."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        for turns in TALKS:
            client, _ = self._listener.accept()
            with client:
                client.settimeout(DEADLINE_S)
                for request, answer in turns:
                    receive(client, len(request))
                    client.sendall(answer)
                client.shutdown(socket.SHUT_WR)
                client.recv(1)
        self._listener.close()


def receive(sock: socket.socket, length: int) -> None:
    while length:
        part = sock.recv(length)
        assert part
        length -= len(part)


def talk_to(port: int) -> None:
    for turns in TALKS:
        with socket.create_connection(("127.0.0.1", port), DEADLINE_S) as client:
            for request, answer in turns:
                client.sendall(request)
                receive(client, len(answer))


def in_background(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


# ---------------------------------------------------------------------------- files


def test_pcapng_and_stdin_are_as_pcap(expected: list[Any], tmp_path: Path) -> None:
    assert seen(from_file(pcapng(frames()))) == expected
    to = tmp_path / "stdin.lf"
    command = [sys.executable, "-m", "livefire", "import", "-", "--to", str(to), "--unmasked"]
    subprocess.run(command, input=pcap(frames()), check=True, capture_output=True, timeout=DEADLINE_S * 2)
    from livefire.recording import Recording

    assert seen(list(Recording(to).exchanges())) == expected


# ---------------------------------------------------------------------------- the wire


@needs_ring
@pytest.mark.parametrize("engine", ["ring", "scapy"])
def test_the_wire_of_real_connections(expected: list[Any], engine: str) -> None:
    if engine == "scapy":
        pytest.importorskip("scapy")
    server = Server()
    live = opened(interfaces=("lo",), ports=(server.port,), source=engine)
    thread = in_background(lambda: talk_to(server.port))
    live.read_until(all_of())
    thread.join()
    assert seen(live.finish()) == expected


@needs_ring
def test_the_wire_of_frames(expected: list[Any]) -> None:
    port = free_port()
    live = opened(interfaces=("lo",), ports=(port,), source="ring")
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as raw:
        raw.bind(("lo", 0))
        for _, frame in frames(("10.0.0.2", port)):
            raw.send(frame)
    live.read_until(all_of())
    assert seen(live.finish()) == expected


@needs_ring
def test_what_had_no_room_beside_scapy_is_counted_to_the_packet() -> None:
    """Nobody reads while they come; each frame of loopback counts once."""
    pytest.importorskip("scapy")
    port, frame = free_port(), bytearray(Conversation(client=("10.0.0.1", 4000)).client(bytes(1000)).packets[0][1])
    frame[36:38] = struct.pack(">H", port)
    live = opened(interfaces=("lo",), ports=(port,), source="scapy")
    sent = 30_000
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as raw:
        raw.bind(("lo", 0))
        for _ in range(sent):
            raw.send(frame)
    live.source.finish(live.assembler)
    live.source.count(live.assembler)
    live.source.count(live.assembler)  # told once
    live.source.close()
    packets = live.assembler.account.ledger("packets")
    assert packets.emitted > 1000 and packets.drops["kernel"] > sent / 4
    others = packets.intentional.get("not_selected", 0)  # of others, before the filter was there
    assert packets.seen - others == sent == packets.emitted + packets.drops["kernel"]


def test_what_had_no_room_is_asked_for_where_it_only_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of macOS and the BSDs, in 32 bits."""
    source_scapy = pytest.importorskip("capture.source_scapy")

    class Told:
        def __init__(self, *counts: int) -> None:
            self.counts = list(counts)

        def get_stats(self) -> tuple[int, int]:
            return 0, self.counts.pop(0)

    monkeypatch.setattr(source_scapy.sys, "platform", "darwin")
    source = object.__new__(source_scapy.ScapySource)
    source._sockets = {"en0": Told(5, 5, 2), "en1": Told(0, 0, 0)}
    source._lost = {"en0": 0xFFFFFFFF, "en1": 0}
    made = assembler()
    found = []
    for _ in range(3):
        source.count(made)
        found.append(made.account.ledger("packets").drops.get("kernel", 0))
    assert found == [6, 6, 6 + 0xFFFFFFFD]


# ---------------------------------------------------------------------------- proxy, mirror


def test_the_proxy(expected: list[Any]) -> None:
    server, listen = Server(), free_port()
    live = opened(proxies=((f"127.0.0.1:{listen}", f"127.0.0.1:{server.port}"),))
    thread = in_background(lambda: talk_to(listen))
    live.read_until(all_of())
    thread.join()
    assert seen(live.finish()) == expected


def test_a_mirror_has_the_requests_and_answers_each_at_once(expected: list[Any]) -> None:
    listen = free_port()
    live = opened(mirrors=(f"127.0.0.1:{listen}",))
    answers: list[bytes] = []

    def gateway() -> None:
        for turns in TALKS:
            with socket.create_connection(("127.0.0.1", listen), DEADLINE_S) as sock:
                for request, _ in turns:
                    sock.sendall(request)
                    answers.append(sock.recv(1000))

    thread = in_background(gateway)
    live.read_until(all_of())
    thread.join()
    found = live.finish()
    assert [request for request, *_ in seen(found)] == [request for request, *_ in expected]
    assert all(e.response is None and e.faults == () and e.interface == "mirror" for e in found)
    assert len(answers) == len(expected) and all(a.startswith(b"HTTP/1.1 200 OK\r\n") for a in answers)
    assert live.assembler.account.notes["requests_only_connections"] == len(TALKS)


def test_a_mirror_answers_while_nobody_reads_what_it_hands_over() -> None:
    """The recorder is stuck: the gateway notices nothing, and what was shed is counted."""
    listen = free_port()
    live = opened(mirrors=(f"127.0.0.1:{listen}",))
    body = b"x" * (1 << 20)
    request = b"POST /m HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with socket.create_connection(("127.0.0.1", listen), DEADLINE_S) as sock:
        for _ in range(30):
            sock.sendall(request)
            assert sock.recv(1000).startswith(b"HTTP/1.1 200 OK\r\n")
    found = live.finish()
    ledger = live.assembler.account.ledger("bytes")
    assert ledger.seen == 30 * len(request)
    assert ledger.drops["shed"] >= 10 * len(request) and 1 <= len(found) < 30
    notes = live.assembler.account.notes
    assert (notes["shed_connections"], notes["shed_unread_bytes"]) == (1, ledger.drops["shed"])


@pytest.mark.parametrize(
    ("sent", "answers"),
    [
        (b"POST /u HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"\x16\x03\x01\x00\x05hello", b"HTTP/1.1 400 Bad Request\r\n"),
        (b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close"),
    ],
)
def test_what_a_mirror_says(sent: bytes, answers: bytes) -> None:
    listen = free_port()
    live = opened(mirrors=(f"127.0.0.1:{listen}",))
    with socket.create_connection(("127.0.0.1", listen), DEADLINE_S) as sock:
        sock.sendall(sent)
        assert sock.recv(1000).startswith(answers)
    live.finish()


@pytest.mark.parametrize(
    "begin",
    [
        b"GET / HTTP/1.1\r\nX-Long: ",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX-Long: ",
    ],
    ids=["head", "trailer"],
)
def test_a_field_without_end_is_answered_400_before_it_fills_the_memory(begin: bytes) -> None:
    listen = free_port()
    live = opened(mirrors=(f"127.0.0.1:{listen}",))
    with socket.create_connection(("127.0.0.1", listen), DEADLINE_S) as sock:
        sock.sendall(begin)
        with contextlib.suppress(ConnectionError):
            for _ in range(64):
                sock.sendall(b"x" * (1 << 20))
            pytest.fail("it took all of it")
    live.finish()


def test_a_mirror_does_not_read_on_from_who_does_not_read_its_answers() -> None:
    async def gateway() -> None:
        loop, (ours, theirs) = asyncio.get_running_loop(), socket.socketpair()
        theirs.setblocking(False)
        with open(os.devnull, "wb") as nobody, theirs:
            server = MirrorServer(ProxySettings((), 0), nobody.fileno(), loop)
            transport, _ = await loop.connect_accepted_socket(lambda: Mirrored(server), ours)
            reads = cast(asyncio.Transport, transport)
            for _ in range(10_000):
                if not reads.is_reading():
                    break
                with contextlib.suppress(BlockingIOError):
                    theirs.send(b"GET / HTTP/1.1\r\n\r\n" * 200)
                await asyncio.sleep(0)
            assert not reads.is_reading() and reads.get_write_buffer_size() < 1 << 20
            while not reads.is_reading():
                assert b"HTTP/1.1 200 OK" in await loop.sock_recv(theirs, 1 << 16)
            transport.close()

    asyncio.run(asyncio.wait_for(gateway(), DEADLINE_S))


def test_connections_that_come_while_the_recorder_hangs_take_no_memory() -> None:
    async def gateways() -> None:
        loop, (_reads, full) = asyncio.get_running_loop(), os.pipe()
        os.set_blocking(full, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(full, bytes(1 << 16))
        server = MirrorServer(ProxySettings((), 0), full, loop)
        assert server.hand_over.offer(FROM_CLIENT, 1, 0, bytes(ProxySettings((), 0).hand_over_bytes - 10))
        before = server.hand_over.bytes
        for _ in range(20):
            ours, theirs = socket.socketpair()
            theirs.close()
            _, connection = await loop.connect_accepted_socket(lambda: Mirrored(server), ours)
            while connection in server.open:
                await asyncio.sleep(0)
        assert (server.hand_over.bytes, server.totals.shed_connections) == (before, 20)
        loop.remove_writer(full)
        for fd in (_reads, full):
            os.close(fd)

    asyncio.run(asyncio.wait_for(gateways(), DEADLINE_S))


# ---------------------------------------------------------------------------- VXLAN, Geneve


def vxlan(frame: bytes, vni: int = 7) -> bytes:
    return struct.pack(">BxxxI", 8, vni << 8) + frame


def geneve(frame: bytes, vni: int = 7) -> bytes:
    return struct.pack(">BBHI", 1, 0, 0x6558, vni << 8) + bytes(4) + frame


@pytest.mark.parametrize(("kind", "wrap"), [("vxlan", vxlan), ("geneve", geneve)])
def test_frames_in_udp(expected: list[Any], kind: str, wrap: Callable[[bytes], bytes]) -> None:
    port = free_port(socket.SOCK_DGRAM)
    live = opened(ports=(80,), **{kind: (f"127.0.0.1:{port}",)})
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, frame in frames():
            sock.sendto(wrap(frame), ("127.0.0.1", port))
        for _, frame in frames(("10.0.0.2", 81)):  # not asked for
            sock.sendto(wrap(frame), ("127.0.0.1", port))
    live.read_until(all_of())
    assert seen(live.finish()) == expected
    ledger = live.assembler.account.ledger("packets")
    assert ledger.seen == 2 * len(frames()) and ledger.intentional == {"not_selected": len(frames())}


def test_frames_in_udp_that_were_cut_say_how_much_is_missing() -> None:
    port = free_port(socket.SOCK_DGRAM)
    live = opened(vxlan=(f"127.0.0.1:{port}",))
    talk = Conversation().open().client(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").ack(1)
    talk.server(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"b" * 1000).ack(0)
    talk.client(b"GET /2 HTTP/1.1\r\nHost: a\r\n\r\n").ack(1).server(ANSWER % (4, 1, b"body")).ack(0).close()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, frame in talk.packets:
            sock.sendto(vxlan(frame[:200]), ("127.0.0.1", port))
    live.read_until(lambda found: len(found) == 2)
    first, second = live.finish()
    assert first.response is not None and first.response.missing_bytes == 54 + 41 + 1000 - 200
    assert second.response is not None and second.response.body == b"body" and second.response.missing_bytes == 0


def test_datagrams_that_find_no_room_are_counted() -> None:
    port = free_port(socket.SOCK_DGRAM)
    source = UdpSource(listens_of("vxlan", (f"127.0.0.1:{port}",)), Selection(), 0, monotonic_ns=time.monotonic_ns)
    for door in source._doors.values():
        door.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    live = Live(source)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _ in range(100):
            sock.sendto(vxlan(frames()[0][1] + bytes(1000)), ("127.0.0.1", port))
    live.finish()
    ledger = live.assembler.account.ledger("packets")
    assert ledger.seen == 100 and 0 < ledger.drops["kernel"] < 100


# ---------------------------------------------------------------------------- the unix socket


def hand_over(client: tap.Tap) -> None:
    for number, turns in enumerate(TALKS):
        connection = client.opened(f"10.0.0.1:{40000 + number}", "10.0.0.2:80")
        for request, answer in turns:
            connection.from_client(request)
            connection.from_server(answer)
        connection.client_end()
        connection.server_end()
    end = time.monotonic() + DEADLINE_S
    while not client.flush():
        assert time.monotonic() < end


def test_the_unix_socket(expected: list[Any], tmp_path: Path) -> None:
    path = str(tmp_path / "tap")
    live = opened(socket=path)
    assert os.stat(path).st_mode & 0o777 == 0o600
    client = tap.Tap(path)
    hand_over(client)
    live.read_until(all_of())
    client.close()
    assert seen(live.finish()) == expected
    assert not os.path.exists(path)
    assert {(e.client, e.server, e.interface) for e in live.found} == {
        (f"10.0.0.1:{40000 + number}", "10.0.0.2:80", "socket") for number in range(len(TALKS))
    }


@pytest.mark.parametrize(("by_s", "seen_by_us"), [(-3600, True), (3600, True), (-3600, False)])
def test_the_clock_is_set_while_a_service_hands_over(tmp_path: Path, by_s: int, seen_by_us: bool) -> None:
    """Times go on as if it had not been; where the recorder does not see the step they jump."""
    path, ahead, anchor_ns = str(tmp_path / "tap"), [0], time.time_ns() - time.monotonic_ns()

    def wall_ns() -> int:
        return anchor_ns + time.monotonic_ns() + ahead[0]

    steps = Steps(wall_ns=wall_ns if seen_by_us else (lambda: anchor_ns + time.monotonic_ns()))
    live = Live(SocketSource(path, anchor_ns, monotonic_ns=time.monotonic_ns, steps=steps))
    client = tap.Tap(path, now_ns=wall_ns)
    for count in (1, 2, 3):
        connection = client.opened(f"10.0.0.1:{count}", "10.0.0.2:80")
        connection.from_client(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % count)
        connection.from_server(b"HTTP/1.1 204 No Content\r\n\r\n")
        end = time.monotonic() + DEADLINE_S
        while not client.flush():
            assert time.monotonic() < end
        live.read_until(lambda found, count=count: len(found) == count)  # type: ignore[misc]
        ahead[0] = by_s * 1_000_000_000
    client.close()
    found = sorted(live.finish(), key=lambda e: e.client)
    times = [e.request_start_ns for e in found]
    assert len(times) == 3
    assert (0 < times[1] - times[0] < 60 * 10**9 and times[2] > times[1]) == seen_by_us
    assert steps.count == seen_by_us


def test_a_client_of_the_socket_never_waits_and_tells_what_it_shed(tmp_path: Path) -> None:
    path = str(tmp_path / "tap")
    live = opened(socket=path)
    client = tap.Tap(path, max_bytes=1 << 16)
    first = client.opened("10.0.0.1:1", "10.0.0.2:80")
    body = b"x" * (1 << 20)
    request = b"POST /m HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body)
    first.from_client(request)
    for _ in range(8):
        first.from_client(body)  # nobody reads: the socket is full, then the client's bound
    first.client_end()
    assert client.shed_connections == 1 and client.waiting_bytes < 1 << 17
    passed = len(request) + 8 * len(body) - client.shed_bytes
    live.read_until(lambda _: client.flush())
    second = client.opened("10.0.0.1:2", "10.0.0.2:80")
    second.from_client(TALKS[0][0][0])
    second.from_server(TALKS[0][0][1])
    live.read_until(lambda found: any(e.client == "10.0.0.1:2" for e in found))
    live.finish()
    ledger = live.assembler.account.ledger("bytes")
    assert ledger.drops["shed"] == client.shed_bytes == live.assembler.account.notes["shed_unread_bytes"]
    assert ledger.seen == client.shed_bytes + passed + len(TALKS[0][0][0]) + len(TALKS[0][0][1])


def test_what_waits_at_the_end_is_waited_for_or_told_as_lost(tmp_path: Path) -> None:
    """More than the socket holds, then the service ends."""
    path = str(tmp_path / "tap")
    live = opened(socket=path)
    told = []
    for number, wait_s in enumerate((DEADLINE_S, 0.0)):
        client = tap.Tap(path)
        for n in range(40):
            connection = client.opened(f"10.0.0.{number}:{n + 1}", "10.0.0.2:443")
            connection.from_client(b"PUT /%d HTTP/1.1\r\nHost: a\r\nContent-Length: 50000\r\n\r\n" % n + bytes(50_000))
            connection.client_end()
            connection.server_end()
        assert client.waiting_bytes > 1_000_000 and not client.shed_connections
        closing = threading.Thread(target=client.close, args=(wait_s,))
        closing.start()
        if wait_s:
            live.read_until(lambda found: len(found) >= 40)
        closing.join(DEADLINE_S)
        told.append(client.lost_bytes)
    found = live.finish()
    assert told[0] == 0 and told[1] > 1_000_000
    whole = [e.client.partition(":")[0] for e in found if len(e.request.body) == 50_000]
    assert whole.count("10.0.0.0") == 40 and 0 < whole.count("10.0.0.1") < 40, "or this shows nothing"


def test_what_waits_in_a_client_takes_no_more_than_its_bytes(tmp_path: Path) -> None:
    live = opened(socket=str(tmp_path / "tap"))
    client = tap.Tap(str(tmp_path / "tap"), max_bytes=1 << 17)
    connection = client.opened("10.0.0.1:1", "10.0.0.2:80")
    tracemalloc.start()
    while not client.shed_connections:
        connection.from_client(b"x")  # nobody reads
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert client.waiting_bytes > 1 << 16 and used < 3 << 17
    live.finish()


def test_a_client_that_never_says_when_connections_are_over_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("capture.source_socket._MAX_CONNECTIONS", 3)
    live = opened(socket=str(tmp_path / "tap"))
    client = tap.Tap(str(tmp_path / "tap"))
    for number in range(5):
        client.opened(f"10.0.0.1:{number + 1}", "10.0.0.2:80").from_client(b"GET / HTTP/1.1\r\n\r\n")
    account = live.assembler.account
    live.read_until(lambda _: account.ledger("bytes").drops.get("after_end") == 2 * 18)
    assert account.notes["socket_connections_refused"] == 2
    client.close()
    live.finish()
    assert live.assembler.account.balanced


def test_a_client_without_a_recorder_costs_nothing_and_finds_the_next_one(tmp_path: Path) -> None:
    path, now = str(tmp_path / "tap"), [0]
    client = tap.Tap(path, monotonic_ns=lambda: now[0])
    lost = client.opened("10.0.0.1:1", "10.0.0.2:80")
    lost.from_client(b"GET /lost HTTP/1.1\r\n\r\n")
    assert client.shed_bytes == 22 and not client.waiting_bytes
    live = opened(socket=path)
    client.opened("10.0.0.1:2", "10.0.0.2:80").from_client(b"GET /lost HTTP/1.1\r\n\r\n")  # too soon to try again
    now[0] += 2_000_000_000
    hand_over(client)
    lost.from_client(b"GET /lost HTTP/1.1\r\n\r\n")  # the new recorder does not know this one
    live.read_until(all_of())
    assert len(live.finish()) == sum(map(len, TALKS))
    assert client.shed_bytes == 66


def test_a_socket_that_a_killed_recorder_left_is_taken_over_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "tap"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind(str(path))
    live = opened(socket=str(path))
    with pytest.raises(ConfigError, match="another recorder listens there"):
        opened(socket=str(path))
    live.finish()
    path.write_text("mine")
    with pytest.raises(ConfigError, match="is no socket; it is left as it is"):
        opened(socket=str(path))
    assert path.read_text() == "mine"


@given(st.binary(max_size=200), st.booleans(), st.integers(0, 9), st.integers(0, 2))
@settings(max_examples=60, deadline=None)
def test_whatever_comes_through_the_socket_the_account_balances(
    noise: bytes, greeted: bool, kind: int, number: int
) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "tap")
        source = SocketSource(path, 0, monotonic_ns=time.monotonic_ns)
        live = Live(source)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(path)
            sock.sendall(
                (tap.HELLO if greeted else b"")
                + tap.FRAME.pack(tap.OPENED, 1, 1, 3)
                + b"a\0b"
                + tap.FRAME.pack(kind, number, 1, len(noise))
                + noise
                + noise
            )
        source.feed(live.assembler, 1.0)
        live.finish()
        assert live.assembler.account.balanced


# ---------------------------------------------------------------------------- what is said


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"mirrors": (":9000",), "socket": "x"}, "--mirror and --socket: one kind of source a recorder"),
        ({"vxlan": (":4789",), "proxies": ((":1", "h:2"),)}, "--vxlan and --proxy: one kind of source"),
        ({"vxlan": (":4789",), "interfaces": ("lo",)}, "--vxlan and --interface: what is sent here, or the wire"),
        ({"vxlan": ("nowhere:x",)}, r"--vxlan 'nowhere:x': write where to listen, as :4789"),
        ({"geneve": ("192.0.2.1:6081",)}, "geneve 192.0.2.1:6081: cannot be listened on"),
        ({"mirrors": ("nowhere",)}, "'nowhere' is no address to listen on"),
        ({"socket": "/no/such/folder/tap"}, "socket /no/such/folder/tap: cannot be listened at: no such file"),
        ({"vxlan": ("127.0.0.1:0",), "hosts": ("shop",)}, "host 'shop'"),
    ],
)
def test_what_cannot_be_recorded_is_one_line(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        opened(**fields)
