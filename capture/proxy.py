"""A recording proxy: a process of its own that passes TCP bytes on unchanged and hands copies to the recorder.

It needs no privilege. Production comes first: bytes are passed on before they are copied, and the hand-over
never waits. The recorder reads copies from a pipe; when it falls behind, `HandOver` fills up to its
bound and whole connections are shed from the recording, counted, while their bytes go on flowing.

What a client and a server can tell of each other stays as it is: a half-close is passed on as a half-close, a
reset as a reset, and a slow reader slows its writer down. What changes: the server sees the proxy's address,
and a client is connected before it is known that the server is there.

    python -m capture.proxy     one line of ProxySettings on stdin, which then stays open as a lifeline
    stdout                      frames for `capture.source_proxy`
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol, cast

import msgspec

from capture.handover import (
    CLIENT_END,
    FAILED,
    FROM_CLIENT,
    FROM_SERVER,
    OPENED,
    READY,
    RESET,
    SERVER_END,
    SHED,
    TOTALS,
    HandOver,
)
from capture.privileges import become, user_of

_PIPE_BYTES = 1 << 20
_QUIET_NS = 100_000_000
_PASS_BYTES = 256 << 10  # per direction: what is held for a slow reader before its writer is slowed


class Pair(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    listen_host: str  # "" = every address
    listen_port: int
    upstream_host: str
    upstream_port: int


class ProxySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pairs: tuple[Pair, ...]
    anchor_ns: int  # unix time at monotonic 0
    hand_over_bytes: int = 16 << 20
    drain_ns: int = 1_000_000_000  # how long busy connections may go on when the lifeline ends
    connect_timeout_s: float = 10.0
    user: str = ""  # who goes on when it listens


class Totals(msgspec.Struct, array_like=True):
    """What the proxy did, counted apart from what it handed over."""

    connections: int = 0
    passed_bytes: int = 0  # received from either side
    shed_connections: int = 0
    shed_bytes: int = 0  # received, not handed over
    upstream_failures: int = 0


class _Side(asyncio.Protocol):
    """One of the two ends of a connection: what it receives goes to `other`."""

    def __init__(self, connection: _Connection, kind: int) -> None:
        self._connection = connection
        self._kind = kind  # FROM_CLIENT or FROM_SERVER
        self.transport: asyncio.Transport | None = None
        self.other: _Side | None = None
        self.ended = False
        self.early: list[bytes] = []  # received before the upstream was there

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(_PASS_BYTES)
        if self._kind == FROM_CLIENT:
            self.transport.pause_reading()
            self._connection.accepted(self)

    def data_received(self, data: bytes) -> None:
        other = self.other
        if other is None or other.transport is None:
            self.early.append(data)
            return
        other.transport.write(data)
        self._connection.received(self._kind, data)

    def eof_received(self) -> bool:
        if not self.ended:  # before Python 3.11.3 asyncio tells it again when reading is resumed
            self.ended = True
            self._connection.direction_ended(self)
        return True  # the other direction goes on

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None and not self.other.ended:
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.lost(self)

    def reset(self) -> None:
        """End with RST: what was not sent yet is of no use to anybody."""
        transport = self.transport
        if transport is None:
            return
        sock: Any = transport.get_extra_info("socket")
        if sock is not None:
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            except OSError:
                pass
        transport.abort()


class _Connection:
    def __init__(self, proxy: Proxy, pair: Pair) -> None:
        self._proxy = proxy
        self._pair = pair
        self.client = _Side(self, FROM_CLIENT)
        self.server = _Side(self, FROM_SERVER)
        self._number = 0  # 0 = not open
        self._shed = False
        self._over = False
        self._last_kind = FROM_CLIENT
        self._last_ns = 0
        self._task: asyncio.Task[None] | None = None

    def accepted(self, side: _Side) -> None:
        self._proxy.open.add(self)
        self._task = self._proxy.loop.create_task(self._connect())

    async def _connect(self) -> None:
        pair, proxy = self._pair, self._proxy
        try:
            async with asyncio.timeout(proxy.settings.connect_timeout_s):
                await proxy.loop.create_connection(lambda: self.server, pair.upstream_host, pair.upstream_port)
        except OSError:  # TimeoutError is one
            proxy.totals.upstream_failures += 1
            self._end()
            self.client.reset()
            return
        client, server = self.client.transport, self.server.transport
        if self._over or client is None or server is None:
            self.server.reset()
            return
        self.client.other, self.server.other = self.server, self.client
        self._number = proxy.next_number()
        names = f"{peer(client)}\0{peer(server)}".encode()
        if not proxy.hand_over.offer(OPENED, self._number, proxy.now_ns(), names):
            self._begin_shedding(known=False)
        for data in self.client.early:
            self.client.data_received(data)
        self.client.early.clear()
        if self.client.ended:
            self.direction_ended(self.client)
        client.resume_reading()

    def received(self, kind: int, data: bytes) -> None:
        totals, now_ns = self._proxy.totals, self._proxy.now_ns()
        self._last_kind, self._last_ns = kind, now_ns
        totals.passed_bytes += len(data)
        if not self._shed and not self._proxy.hand_over.offer(kind, self._number, now_ns, data):
            self._begin_shedding()
        if self._shed:
            totals.shed_bytes += len(data)

    def _begin_shedding(self, *, known: bool = True) -> None:
        # The whole rest of the connection: half of a stream would be read as if bytes had been lost on the wire.
        self._shed = True
        self._proxy.totals.shed_connections += 1
        if known:  # to the recorder; of others a recorder that hangs would be told without bound
            self._tell(SHED)

    def _tell(self, kind: int) -> None:
        self._proxy.hand_over.offer(kind, self._number, self._proxy.now_ns())

    def direction_ended(self, side: _Side) -> None:
        if side.other is None or side.other.transport is None:
            return
        if not self._shed:
            self._tell(CLIENT_END if side is self.client else SERVER_END)
        if side.other.ended:
            self._end()
            for each in (self.client, self.server):
                if each.transport is not None:
                    each.transport.close()  # what is still to be sent is sent first
        elif not side.other.transport.is_closing():
            side.other.transport.write_eof()

    def lost(self, side: _Side) -> None:
        """A side is gone. Unless both directions had ended, that was a reset, and the other side is told by one."""
        if self._over:
            return
        self._end()
        if self._number and not self._shed:
            self._tell(RESET)
        other = self.server if side is self.client else self.client
        other.reset()

    def busy(self, now_ns: int) -> bool:
        """Whether something seems to be under way: the client spoke last, or the server just now."""
        return self._last_kind == FROM_CLIENT or now_ns - self._last_ns < _QUIET_NS

    def abandon(self) -> None:
        """End it where it stands: what was received is still passed on."""
        if self._number and not self._shed:
            self._tell(RESET)
        self._end()
        for side in (self.client, self.server):
            if side.transport is not None:
                side.transport.close()

    def _end(self) -> None:
        self._over = True
        self._proxy.open.discard(self)


class Open(Protocol):
    """A connection that is open."""

    def busy(self, now_ns: int) -> bool: ...

    def abandon(self) -> None: ...


class Proxy:
    def __init__(self, settings: ProxySettings, fd: int, loop: asyncio.AbstractEventLoop) -> None:
        self.settings = settings
        self.loop = loop
        self.totals = Totals()
        self.hand_over = HandOver(fd, settings.hand_over_bytes, loop)
        self.open: set[Open] = set()
        self._servers: list[asyncio.Server] = []

    def now_ns(self) -> int:
        return self.settings.anchor_ns + time.monotonic_ns()

    def next_number(self) -> int:
        self.totals.connections += 1
        return self.totals.connections

    async def listen(self) -> None:
        """Raises OSError when an address cannot be listened on."""
        for pair in self.settings.pairs:
            host, port = pair.listen_host, pair.listen_port
            try:
                server = await self.loop.create_server(self._factory(pair), host or None, port, backlog=1024)
            except OSError as error:  # asyncio's own text is long, and names no address that does not exist
                code = error.errno or 0
                why = os.strerror(code).lower() if code > 0 else str(error.strerror or error).lower()
                hint = f" (by whom: ss -ltnp sport = :{port})" if code == errno.EADDRINUSE else ""
                raise OSError(code, f"{f'[{host}]' if ':' in host else host}:{port}: {why}{hint}") from None
            self._servers.append(server)
        if self.settings.user and (user := user_of(self.settings.user)) is not None:
            become(user)
        ports = [server.sockets[0].getsockname()[1] for server in self._servers]
        self.hand_over.offer(READY, 0, self.now_ns(), msgspec.json.encode(ports))

    def _factory(self, pair: Pair) -> Callable[[], asyncio.Protocol]:
        return lambda: _Connection(self, pair).client

    async def run(self, ended: asyncio.Event) -> None:
        """Until `ended`; then no new connections, and a moment for those that are open."""
        while not ended.is_set():
            await _wait(ended, 0.5)
            self.tell_totals()
        for server in self._servers:
            server.close()
        until = time.monotonic_ns() + self.settings.drain_ns
        while any(c.busy(self.now_ns()) for c in self.open) and time.monotonic_ns() < until:
            await asyncio.sleep(0.01)
        for connection in list(self.open):
            connection.abandon()
        await asyncio.sleep(0.05)  # for what is still to be sent; a reader that is slower has had its second
        while not self.tell_totals() and not self.hand_over.broken:
            await asyncio.sleep(0.005)
        await self.hand_over.empty()

    def tell_totals(self) -> bool:
        """Without room they are told the next time, or at the end, when the recorder has read the rest."""
        return self.hand_over.offer(TOTALS, 0, self.now_ns(), msgspec.json.encode(self.totals))


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass


def peer(transport: asyncio.Transport, of: str = "peername") -> str:
    name = transport.get_extra_info(of) or ("", 0)
    host = str(name[0]).removeprefix("::ffff:") if "." in str(name[0]) else str(name[0])
    return f"[{host}]:{name[1]}" if ":" in host else f"{host}:{name[1]}"


async def _main(make: type[Proxy], settings: ProxySettings, stdin: int, stdout: int) -> int:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def lifeline() -> None:
        if not os.read(stdin, 4096):
            loop.remove_reader(stdin)
            ended.set()

    loop.add_reader(stdin, lifeline)
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    proxy = make(settings, stdout, loop)
    try:
        await proxy.listen()
    except OSError as error:
        proxy.hand_over.offer(FAILED, 0, proxy.now_ns(), str(error.strerror or error).encode())
        await proxy.hand_over.empty()
        return 2
    await proxy.run(ended)
    return 0


def main(make: type[Proxy] = Proxy) -> int:
    # Ctrl-C and the end of a terminal go to the whole group of processes; the recorder ends first, and its end is ours.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    line = b""
    while not line.endswith(b"\n"):
        more = os.read(0, 1 << 16)
        if not more:
            return 0
        line += more
    os.set_blocking(1, False)
    try:
        fcntl.fcntl(1, getattr(fcntl, "F_SETPIPE_SZ", 1031), _PIPE_BYTES)
    except OSError:
        pass  # smaller pipes only mean more system calls
    return asyncio.run(_main(make, msgspec.json.decode(line, type=ProxySettings), 0, 1))


if __name__ == "__main__":
    sys.exit(main())
