"""Connections whose bytes a service hands over itself, through a unix socket (docs/recording.md has the protocol).

Clients are processes of this machine that may open the socket: its mode is 0600. Reading is the record loop's; what it
does not read in time waits in the sockets, and clients shed (`livefire_shadow.tap`), so nobody waits for a recorder.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import stat
from collections.abc import Callable
from typing import Final

from capture.source import Channel, StreamSink
from capture.steps import Steps
from livefire_shadow.tap import (
    CLIENT_END,
    FRAME,
    FROM_CLIENT,
    FROM_SERVER,
    HELLO,
    MAX_DATA,
    OPENED,
    RESET,
    SERVER_END,
    SHED,
    SHED_BYTES,
)
from wire.account import UNREAD
from wire.config import ConfigError

_INTERFACE: Final = "socket"
_READ_BYTES: Final = 256 << 10
_MAX_CLIENTS: Final = 256
_BACKLOG: Final = 64  # that connected and were not looked at yet
_MAX_NAMES: Final = 512
_MAX_CONNECTIONS: Final = 1 << 16  # of a client: one that never says when they are over must not fill the memory


class SocketSource:
    """Listens at `path`. Called by one thread; in memory is at most one frame a client."""

    kernel_times = False  # clients stamp with the system's clock, which may be set: see `steps`

    def __init__(
        self, path: str, anchor_ns: int, *, monotonic_ns: Callable[[], int], steps: Steps | None = None
    ) -> None:
        """Raises ConfigError for a path that cannot be listened at; what a killed recorder left there is removed."""
        self._path = path
        self._anchor_ns = anchor_ns
        self._monotonic_ns = monotonic_ns
        self._steps = steps or Steps(monotonic_ns=monotonic_ns)
        self._clients: dict[int, _Client] = {}
        self._selector = selectors.DefaultSelector()
        self._listener = _listen(path)
        self._identity = _identity(path)
        self._selector.register(self._listener, selectors.EVENT_READ)

    @property
    def inputs(self) -> tuple[str, ...]:
        return (f"socket {self._path}",)

    @property
    def described(self) -> str:
        return f"socket {self._path}"

    def feed(self, sink: StreamSink, timeout_s: float) -> int:
        taken = 0
        found = self._selector.select(timeout_s)
        time_of = self._steps.look() if found else None
        for key, _ in found:
            if key.fileobj is self._listener:
                self._accept(sink)
                continue
            client = self._clients[key.fd]
            taken += 1
            if not client.read(sink, self._anchor_ns + self._monotonic_ns(), time_of):
                self._part(client)
        return taken

    def _accept(self, sink: StreamSink) -> bool:
        """Whether one was waiting."""
        try:
            made, _ = self._listener.accept()
        except OSError:
            return False  # it is gone again
        if len(self._clients) >= _MAX_CLIENTS:
            made.close()
            sink.account.note("socket_clients_refused")
            return True
        made.setblocking(False)
        self._clients[made.fileno()] = _Client(made)
        self._selector.register(made, selectors.EVENT_READ)
        return True

    def _part(self, client: _Client) -> None:
        self._selector.unregister(client.socket)
        del self._clients[client.socket.fileno()]
        client.socket.close()

    def count(self, sink: StreamSink) -> None:
        """Clients tell what they shed as they go."""

    def finish(self, sink: StreamSink) -> None:
        """Nobody new but those who have connected; what has been sent is read."""
        for _ in range(_BACKLOG):
            if not self._accept(sink):
                break
        self._selector.unregister(self._listener)
        self._listener.close()
        while self._clients and self.feed(sink, 0):
            pass

    def close(self) -> None:
        for client in list(self._clients.values()):
            self._part(client)
        self._selector.close()
        self._listener.close()
        if _identity(self._path) == self._identity:
            with contextlib.suppress(OSError):  # of a folder that who records now may not write to; see _remove_stale
                os.unlink(self._path)


class _Client:
    """A process that hands over."""

    def __init__(self, made: socket.socket) -> None:
        self.socket = made
        self._buffer = bytearray()
        self._channels: dict[int, Channel] = {}
        self._half_closed: set[int] = set()
        self._greeted = False

    def read(self, sink: StreamSink, now_ns: int, time_of: Callable[[int], int] | None = None) -> bool:
        """Take what is there; False when it is over, by the client or because it does not keep to the protocol."""
        try:
            data = self.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        self._buffer += data
        told = self._take(sink, now_ns, time_of)
        if not told:
            sink.account.note("socket_protocol_errors")
        if told and data:
            return True
        for channel in self._channels.values():
            channel.reset(now_ns)
        self._channels.clear()
        return False

    def _take(self, sink: StreamSink, now_ns: int, time_of: Callable[[int], int] | None) -> bool:
        buffer, at = self._buffer, 0
        if not self._greeted:
            if len(buffer) < len(HELLO):
                return HELLO.startswith(buffer)
            if not buffer.startswith(HELLO):
                return False
            self._greeted, at = True, len(HELLO)
        while len(buffer) - at >= FRAME.size:
            kind, number, ts_ns, length = FRAME.unpack_from(buffer, at)
            if length > MAX_DATA:
                return False
            if len(buffer) - at - FRAME.size < length:
                break
            at += FRAME.size
            data = bytes(buffer[at : at + length])
            at += length
            # A stamp of the future would make all that is open look idle.
            if time_of is not None and ts_ns > 0:
                ts_ns = time_of(ts_ns)
            if not self._frame(sink, kind, number, min(ts_ns, now_ns) if ts_ns > 0 else now_ns, data):
                return False
        del buffer[:at]
        return True

    def _frame(self, sink: StreamSink, kind: int, number: int, ts_ns: int, data: bytes) -> bool:
        channel = self._channels.get(number)
        if kind in (FROM_CLIENT, FROM_SERVER):
            if channel is None:
                _dropped(sink, "after_end", len(data))
            else:
                channel.data(kind == FROM_CLIENT, data, ts_ns)
        elif kind == OPENED:
            if channel is not None or len(data) > _MAX_NAMES or data.count(b"\0") != 1 or not data.isascii():
                return False
            if len(self._channels) >= _MAX_CONNECTIONS:
                sink.account.note("socket_connections_refused")
                return True
            client, _, server = data.decode("ascii").partition("\0")
            self._channels[number] = sink.connection_opened(client, server, ts_ns, _INTERFACE)
        elif kind in (CLIENT_END, SERVER_END):
            if channel is not None:
                channel.closed(kind == CLIENT_END, ts_ns)
                if number in self._half_closed:
                    self._forget(number)
                else:
                    self._half_closed.add(number)
        elif kind in (RESET, SHED):
            if kind == SHED:
                if len(data) != SHED_BYTES.size:
                    return False
                count = min(SHED_BYTES.unpack(data)[0], 1 << 48)
                _dropped(sink, "shed", count)
                sink.account.note("shed_connections")
                sink.account.note(UNREAD, count)
            if channel is not None:
                channel.reset(ts_ns)
                self._forget(number)
        else:
            return False
        return True

    def _forget(self, number: int) -> None:
        self._half_closed.discard(number)
        del self._channels[number]


def _dropped(sink: StreamSink, reason: str, count: int) -> None:
    ledger = sink.account.ledger("bytes")
    ledger.seen += count
    ledger.drop(reason, count)


def _listen(path: str) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)  # between bind and a chmod anybody could connect
    try:
        try:
            made.bind(path)
        except OSError:
            _remove_stale(path)
            made.bind(path)
        made.listen(_BACKLOG)
        made.setblocking(False)
    except ConfigError:
        made.close()
        raise
    except OSError as error:
        made.close()
        why = str(error) if error.errno is None else os.strerror(error.errno).lower()
        raise ConfigError(f"socket {path}: cannot be listened at: {why}") from None
    finally:
        os.umask(before)
    return made


def _remove_stale(path: str) -> None:
    """The socket of a recorder that was killed. Raises ConfigError when it is something else, or somebody listens."""
    try:
        kind = os.lstat(path).st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(kind):
        raise ConfigError(f"socket {path}: is there already, and is no socket; it is left as it is")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError as error:
            raise ConfigError(f"socket {path}: is there already: {os.strerror(error.errno or 0).lower()}") from None
    raise ConfigError(f"socket {path}: another recorder listens there")


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
