"""The recording proxy with real sockets: bytes, ends and back-pressure pass unchanged; what is shed is counted."""

from __future__ import annotations

import hashlib
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from capture.handover import CLIENT_END, FRAME, FROM_SERVER, HandOver
from capture.proxy import _Connection
from capture.source_proxy import ProxySource, pairs_of
from wire.account import Account
from wire.config import ConfigError

DEADLINE_S = 120.0


class Recorded:
    """A channel that keeps what it is given."""

    def __init__(self, account: Account, client: str, server: str) -> None:
        self.account, self.client, self.server = account, client, server
        self.streams = {True: bytearray(), False: bytearray()}
        self.times: list[int] = []
        self.ends: list[str] = []

    def data(self, from_client: bool, data: bytes, ts_ns: int) -> None:
        self.streams[from_client] += data
        self.times.append(ts_ns)
        ledger = self.account.ledger("bytes")
        ledger.seen += len(data)
        ledger.emitted += len(data)

    def closed(self, from_client: bool, ts_ns: int) -> None:
        self.ends.append("client" if from_client else "server")

    def reset(self, ts_ns: int) -> None:
        self.ends.append("reset")


class Sink:
    def __init__(self) -> None:
        self.account = Account()
        self.channels: list[Recorded] = []

    def connection_opened(self, client: str, server: str, ts_ns: int, interface: str = "") -> Recorded:
        self.channels.append(Recorded(self.account, client, server))
        return self.channels[-1]


def until(condition: Callable[[], Any], source: ProxySource | None = None, sink: Sink | None = None) -> None:
    """Feeds while it waits. Fails when the condition does not come true."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"it did not happen in {DEADLINE_S:.0f} s"
        if source is not None and sink is not None:
            source.feed(sink, 0.01)
        else:
            time.sleep(0.005)


def receive_all(sock: socket.socket) -> bytes:
    sock.settimeout(DEADLINE_S)
    parts = []
    while data := sock.recv(1 << 16):
        parts.append(data)
    return b"".join(parts)


@contextmanager
def proxied(
    *servers: socket.socket, listen: str = "127.0.0.1:0", kind: type[ProxySource] = ProxySource, room: int = 16 << 20
) -> Iterator[tuple[ProxySource, Sink]]:
    pairs = []
    for server in servers:
        host, port = server.getsockname()[:2]
        pairs.append((listen, f"[{host}]:{port}" if ":" in host else f"{host}:{port}"))
    anchor = time.time_ns() - time.monotonic_ns()
    source = kind(pairs_of(tuple(pairs)), anchor, hand_over_bytes=room, monotonic_ns=time.monotonic_ns)
    try:
        yield source, Sink()
    finally:
        source.close()


@contextmanager
def listening(family: socket.AddressFamily = socket.AF_INET) -> Iterator[socket.socket]:
    address = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.create_server((address, 0), family=family) as server:
        server.settimeout(DEADLINE_S)
        yield server


def test_bytes_pass_unchanged_and_are_recorded() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    with listening() as one, listening() as two, proxied(one, two) as (source, sink):
        sent: dict[str, tuple[bytes, bytes]] = {}
        threads, problems = [], []

        def talk(server: socket.socket, port: int, up: bytes, down: bytes) -> None:
            try:
                client = socket.create_connection(("127.0.0.1", port), DEADLINE_S)
                name = "{}:{}".format(*client.getsockname())
                sent[name] = (up, down)
                theirs, _ = server.accept()
                writer = threading.Thread(target=lambda: (client.sendall(up), client.shutdown(socket.SHUT_WR)))
                writer.start()
                got_up = receive_all(theirs)  # ends by the half-close; the answer comes after it
                theirs.sendall(down)
                theirs.close()
                got_down = receive_all(client)
                writer.join()
                client.close()
                if (got_up, got_down) != (up, down):
                    problems.append(name)
            except Exception as error:
                problems.append(repr(error))

        def talker(server: socket.socket, port: int) -> None:
            for _ in range(5):
                talk(server, port, rng.randbytes(rng.randrange(300_000)), rng.randbytes(rng.randrange(900_000)))

        started = time.time_ns()
        names = {"{}:{}".format(*server.getsockname()) for server in (one, two)}
        for server, port in zip((one, two), source.ports, strict=True):
            threads.append(threading.Thread(target=talker, args=(server, port)))
            threads[-1].start()
        until(lambda: not any(thread.is_alive() for thread in threads), source, sink)
        source.finish(sink)
    assert not problems
    assert len(sink.channels) == len(sent) == 10
    for channel in sink.channels:
        up, down = sent[channel.client]
        assert (bytes(channel.streams[True]), bytes(channel.streams[False])) == (up, down)
        assert channel.ends == ["client", "server"]
        assert all(started - 10**9 < at <= time.time_ns() + 10**9 for at in channel.times)
    assert {channel.server for channel in sink.channels} == names
    assert sink.account.balanced


def test_an_end_that_is_told_twice_ends_one_direction_once() -> None:
    """asyncio of Python 3.11.2 tells the end again when reading is resumed after it, as flow control does."""

    class Told(HandOver):
        def __init__(self) -> None:
            self.kinds: list[int] = []

        def offer(self, kind: int, connection: int, now_ns: int, data: bytes = b"") -> bool:
            self.kinds.append(kind)
            return True

    class Transport:
        def __init__(self) -> None:
            self.resumed = 0

        def is_closing(self) -> bool:
            return False

        def write_eof(self) -> None:
            pass

        def resume_reading(self) -> None:
            self.resumed += 1

    class Here:
        hand_over = Told()

        def now_ns(self) -> int:
            return 1

    connection = _Connection(cast(Any, Here()), cast(Any, None))
    connection._number = 1
    client, server = connection.client, connection.server
    client.other, server.other = server, client
    client.transport, server.transport = cast(Any, Transport()), cast(Any, Transport())
    server.resume_writing()
    assert cast(Any, client.transport).resumed == 1
    client.eof_received()
    client.eof_received()
    server.resume_writing()
    assert Here.hand_over.kinds == [CLIENT_END]
    assert cast(Any, client.transport).resumed == 1, "there is nothing more to read"


def test_bytes_of_a_connection_that_is_over_are_seen_and_dropped() -> None:
    with listening() as server, proxied(server) as (source, sink):
        client = socket.create_connection(("127.0.0.1", source.ports[0]), DEADLINE_S)
        theirs, _ = server.accept()
        client.sendall(b"one")
        until(lambda: sink.channels and sink.channels[0].streams[True], source, sink)
        source._channels.clear()  # as after a reset that is not the end
        client.sendall(b"four")
        until(lambda: sink.account.ledger("bytes").dropped, source, sink)
        theirs.close()
        client.close()
        source.finish(sink)
    assert sink.account.ledger("bytes").drops == {"after_end": 4}
    assert sink.account.balanced


def test_ipv6_on_both_sides() -> None:
    with listening(socket.AF_INET6) as server, proxied(server, listen="[::1]:0") as (source, sink):
        client = socket.create_connection(("::1", source.ports[0]), DEADLINE_S)
        theirs, _ = server.accept()
        with client, theirs:
            client.sendall(b"hello")
            assert theirs.recv(10) == b"hello"
            until(lambda: sink.channels and sink.channels[0].streams[True] == b"hello", source, sink)
            assert sink.channels[0].server == f"[::1]:{server.getsockname()[1]}"
            assert sink.channels[0].client == f"[::1]:{client.getsockname()[1]}"


@pytest.mark.parametrize("who", ["client", "server"])
def test_a_reset_is_passed_on(who: str) -> None:
    with listening() as server, proxied(server) as (source, sink):
        client = socket.create_connection(("127.0.0.1", source.ports[0]), DEADLINE_S)
        theirs, _ = server.accept()
        client.sendall(b"x")
        assert theirs.recv(1) == b"x"
        leaves, stays = (client, theirs) if who == "client" else (theirs, client)
        leaves.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        leaves.close()
        stays.settimeout(DEADLINE_S)
        with pytest.raises(ConnectionResetError):
            stays.recv(1)
        stays.close()
        until(lambda: sink.channels and sink.channels[0].ends == ["reset"], source, sink)


def test_an_upstream_that_is_not_there_resets_the_client_and_is_counted() -> None:
    with listening() as gone:
        port = gone.getsockname()[1]
    with proxied_to(port) as (source, sink):
        with pytest.raises(ConnectionResetError):  # as soon as it is connected, or a little later
            socket.create_connection(("127.0.0.1", source.ports[0]), DEADLINE_S).recv(1)
        source.finish(sink)
    assert not sink.channels
    assert sink.account.notes == {"upstream_failures": 1}


@contextmanager
def proxied_to(port: int) -> Iterator[tuple[ProxySource, Sink]]:
    pairs = pairs_of((("127.0.0.1:0", f"127.0.0.1:{port}"),))
    source = ProxySource(pairs, time.time_ns() - time.monotonic_ns(), monotonic_ns=time.monotonic_ns)
    try:
        yield source, Sink()
    finally:
        source.close()


@pytest.mark.parametrize("slow", ["server", "client"])
def test_a_slow_reader_slows_its_writer_down(slow: str) -> None:
    # What the kernel holds between them at most, whatever the machine grants to a connection, is less than half of it.
    received, sent = (int(Path(f"/proc/sys/net/ipv4/tcp_{way}mem").read_text().split()[2]) for way in "rw")
    whole = random.Random(5).randbytes(max(40 << 20, 2 * (received + 2 * sent)))
    with listening() as server, proxied(server, room=64 << 20) as (source, sink):
        # What the kernel holds for the reader is set: left alone it grows with what a busy machine does, and that
        # would be taken for the proxy's.
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        client.settimeout(DEADLINE_S)
        client.connect(("127.0.0.1", source.ports[0]))
        theirs, _ = server.accept()
        reader, writer = (theirs, client) if slow == "server" else (client, theirs)
        writer.setblocking(False)
        at, quiet = 0, 0
        while quiet < 12 and at < len(whole):  # nothing more is taken for 0.1 s, with all the proxy's work fed away
            source.feed(sink, 0.01)
            try:
                at += writer.send(memoryview(whole)[at : at + (1 << 18)])
                quiet = 0
            except BlockingIOError:
                quiet += 1
        assert at < len(whole) * 3 // 4, "the proxy took all of it: nothing holds a fast writer back"
        writer.settimeout(DEADLINE_S)
        result: list[bytes] = []
        drain = threading.Thread(target=lambda: result.append(hashlib.sha256(receive_all(reader)).digest()))
        drain.start()
        send = threading.Thread(
            target=lambda: (writer.sendall(memoryview(whole)[at:]), writer.shutdown(socket.SHUT_WR))
        )
        send.start()
        until(lambda: not drain.is_alive(), source, sink)
        send.join()
        client.close()
        theirs.close()
        source.finish(sink)
    assert result == [hashlib.sha256(whole).digest()]
    assert sink.account.balanced
    assert hashlib.sha256(sink.channels[0].streams[slow == "server"]).digest() == result[0]


def test_a_recorder_that_does_not_read_sheds_whole_connections_and_delays_nobody() -> None:
    whole = random.Random(6).randbytes(6 << 20)
    with listening() as server, proxied(server, room=128 << 10) as (source, sink):

        def transfer(data: bytes) -> None:
            client = socket.create_connection(("127.0.0.1", source.ports[0]), DEADLINE_S)
            theirs, _ = server.accept()
            send = threading.Thread(target=lambda: (client.sendall(data), client.shutdown(socket.SHUT_WR)))
            send.start()
            assert receive_all(theirs) == data
            theirs.close()
            assert receive_all(client) == b""
            send.join()
            client.close()

        transfer(whole)  # not one feed meanwhile
        until(lambda: source.totals.shed_bytes, source, sink)
        transfer(b"after")
        until(lambda: len(sink.channels) > 1 and len(sink.channels[-1].ends) == 2, source, sink)
        source.finish(sink)
    first, second = sink.channels
    assert first.ends == ["reset"] and len(first.streams[True]) < len(whole)
    assert whole.startswith(first.streams[True])
    assert bytes(second.streams[True]) == b"after" and second.ends == ["client", "server"]
    ledger = sink.account.ledger("bytes")
    assert ledger.seen == len(whole) + 5
    assert ledger.drops == {"shed": len(whole) - len(first.streams[True])}
    assert sink.account.notes == {"shed_connections": 1, "shed_unread_bytes": ledger.drops["shed"]}
    assert sink.account.balanced


class Lossy(ProxySource):
    """Loses the first bytes that a server sent, and says nothing of it."""

    lost = 0

    def _take(self, sink: Any) -> int:
        at = 0
        while not self.lost and len(self._buffer) - at >= FRAME.size:
            kind, _, _, length = FRAME.unpack_from(self._buffer, at)
            if kind == FROM_SERVER and len(self._buffer) - at - FRAME.size >= length:
                self.lost = length
                del self._buffer[at : at + FRAME.size + length]
            at += FRAME.size + length
        return super()._take(sink)


def test_a_source_that_loses_bytes_silently_does_not_balance() -> None:
    with listening() as server, proxied(server, kind=Lossy) as (source, sink):
        with socket.create_connection(("127.0.0.1", source.ports[0]), DEADLINE_S) as client:
            theirs, _ = server.accept()
            theirs.sendall(b"0123456789")
            assert client.recv(10) == b"0123456789"
            theirs.close()
        source.finish(sink)
        assert isinstance(source, Lossy) and source.lost
    assert not sink.account.balanced
    assert sink.account.ledger("bytes").difference == source.lost


def test_addresses_that_cannot_be_used_are_told_in_one_line() -> None:
    with listening() as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"cannot listen on 127\.0\.0\.1:{port}: address already in use"):
            ProxySource(pairs_of(((f"127.0.0.1:{port}", "127.0.0.1:9"),)), 0, monotonic_ns=time.monotonic_ns)
    for listen, upstream in ((":8080", ":9080"), ("8080", "h:1"), ("a:b", "h:1"), ("h:70000", "h:1")):
        with pytest.raises(ConfigError, match="write host:port"):
            pairs_of(((listen, upstream),))
    with pytest.raises(ConfigError, match="itself"):
        pairs_of((("h:1", "h:1"),))
