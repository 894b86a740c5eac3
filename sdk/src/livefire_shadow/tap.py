"""Hands the bytes of a service's own connections to a recorder on the same machine, through a unix socket.

For where nothing else sees them in the clear: TLS that ends in the service, a mesh. Bounded and never blocking: what
the recorder does not take in time waits up to `max_bytes`; beyond that the whole connection is shed from the recording,
and the recorder is told how much that was. Without a recorder all of this costs a failed connect a second.

The frames are a contract, see docs/recording.md of Livefire; 17 bytes big-endian, then `length` bytes:

    u8 kind, u32 connection (this client's own number), i64 unix ns, u32 length
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Final

HELLO: Final = b"LFTAP\0\0\x01"  # the first bytes of a client, with the protocol's version
FRAME: Final = struct.Struct(">BIqI")
OPENED, FROM_CLIENT, FROM_SERVER, CLIENT_END, SERVER_END, RESET, SHED = range(1, 8)
MAX_DATA: Final = 1 << 20  # of one frame
SHED_BYTES: Final = struct.Struct(">Q")  # what SHED carries: how many bytes were not handed over
_SEND_BYTES: Final = 1 << 18
_RETRY_NS: Final = 1_000_000_000
_LOOK_S: Final = 0.005


class Tap:
    """One way to a recorder. Safe to use from several threads; no call waits for anything but the others' calls."""

    def __init__(
        self,
        path: str,
        max_bytes: int = 4 << 20,
        *,
        now_ns: Callable[[], int] = time.time_ns,  # noqa: TID251 - a frame's stamp is when it passed
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.path = path
        self.shed_connections = 0
        self.shed_bytes = 0  # of connections that were shed, or that nobody recorded
        self.lost_bytes = 0  # of frames that waited when the recorder went, or at the end
        self._max = max_bytes
        self._now_ns = now_ns
        self._monotonic_ns = monotonic_ns
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._generation = 0  # counts recorders: what one was told, the next does not know
        self._tried_ns: int | None = None
        self._numbers = 0
        self._waiting = bytearray()  # one piece: frames may be of a byte each

    @property
    def waiting_bytes(self) -> int:
        return len(self._waiting)

    def opened(self, client: str, server: str) -> TapConnection:
        """A connection: addresses as "ip:port", IPv6 in brackets."""
        with self._lock:
            self._connect()
            self._numbers = self._numbers % 0xFFFFFFFF + 1
            connection = TapConnection(self, self._numbers, self._generation if self._socket is not None else -1)
            if not self._offer(OPENED, connection.number, f"{client}\0{server}".encode()):
                connection.generation = -1
            self._flush()
        return connection

    def flush(self) -> bool:
        """Send what can be sent now; True when nothing waits. Every call does; a service that falls silent while
        something waits calls this."""
        with self._lock:
            self._flush()
            return not self.waiting_bytes

    def close(self, wait_s: float = 0.0) -> None:
        """Wait so long, at the most, for the recorder to take what waits; the rest is lost, see `lost_bytes`."""
        until = self._monotonic_ns() + round(wait_s * 1e9)
        while not self.flush() and self._monotonic_ns() < until:
            time.sleep(_LOOK_S)
        with self._lock:
            self._flush()
            self._drop()

    # -- for connections

    def tell(self, connection: TapConnection, kind: int, data: bytes = b"") -> None:
        with self._lock:
            if self._socket is None or connection.generation != self._generation:
                self.shed_bytes += len(data)
                return
            if connection.shed_bytes:
                connection.shed_bytes += len(data)
                self.shed_bytes += len(data)
                if kind not in (FROM_CLIENT, FROM_SERVER):
                    self._tell_shed(connection)
            else:
                for at in range(0, max(1, len(data)), MAX_DATA):
                    if not self._offer(kind, connection.number, data[at : at + MAX_DATA]):
                        # The whole rest of it: half of a stream reads as if bytes had been lost on the wire.
                        connection.shed_bytes = len(data) - at
                        self.shed_connections += 1
                        self.shed_bytes += len(data) - at
                        break
            self._flush()

    def _tell_shed(self, connection: TapConnection) -> None:
        if self._offer(SHED, connection.number, SHED_BYTES.pack(connection.shed_bytes), always=True):
            connection.generation = -1

    def _offer(self, kind: int, number: int, data: bytes, *, always: bool = False) -> bool:
        if self._socket is None:
            return False
        if data and not always and self.waiting_bytes + len(data) > self._max:
            self._flush()
            if self._socket is None or self.waiting_bytes + len(data) > self._max:
                return False
        self._waiting += FRAME.pack(kind, number, self._now_ns(), len(data))
        self._waiting += data
        return True

    # -- the socket

    def _connect(self) -> None:
        now = self._monotonic_ns()
        if self._socket is not None or (self._tried_ns is not None and now - self._tried_ns < _RETRY_NS):
            return
        self._tried_ns = now
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        made.setblocking(False)
        try:
            made.connect(self.path)
        except OSError:  # nobody records, or so many connect at once that it is as good as nobody
            made.close()
            return
        self._socket = made
        self._generation += 1
        self._waiting += HELLO

    def _flush(self) -> None:
        while self._waiting and self._socket is not None:
            try:
                with memoryview(self._waiting) as all_of_it, all_of_it[:_SEND_BYTES] as begin:
                    sent = self._socket.send(begin)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self._drop()
                return
            del self._waiting[:sent]

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self.lost_bytes += len(self._waiting)
        self._waiting.clear()


class TapConnection:
    """One connection of the service. Its calls come in the order of its bytes."""

    __slots__ = ("_tap", "generation", "number", "shed_bytes")

    def __init__(self, tap: Tap, number: int, generation: int) -> None:
        self._tap = tap
        self.number = number
        self.generation = generation  # -1: nobody records it
        self.shed_bytes = 0

    def from_client(self, data: bytes) -> None:
        if data:
            self._tap.tell(self, FROM_CLIENT, data)

    def from_server(self, data: bytes) -> None:
        if data:
            self._tap.tell(self, FROM_SERVER, data)

    def client_end(self) -> None:
        """The client sends no more."""
        self._tap.tell(self, CLIENT_END)

    def server_end(self) -> None:
        self._tap.tell(self, SERVER_END)

    def reset(self) -> None:
        """It ended abruptly."""
        self._tap.tell(self, RESET)
