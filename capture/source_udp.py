"""Frames that a mirror sends here inside UDP: VXLAN (AWS traffic mirroring, switches) and Geneve. Needs no privilege.

The kernel strips the outer headers of what it delivers to a socket. They are put back, with the protocol's own port, so
that tunnels are opened by the one table of `capture.decode`, and a connection has the link (VNI) that a capture of the
same packets gives it. The outer length says nothing of the inner frame: AWS cuts frames to the length that was asked
for, and the inner IP header alone tells what is missing.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from capture.bpf import Selection
from capture.selected import Selected
from capture.source import PacketSink
from capture.steps import Steps
from wire.config import ConfigError

PORTS: Final = {"vxlan": 4789, "geneve": 6081}
RECEIVE_BYTES: Final = 32 << 20
_DATAGRAM: Final = 65535
_A_TURN: Final = 2000  # datagrams of one call of `feed`
_UNCUT: Final = 1 << 17  # as the frame's length on the wire: longer than any IP packet inside

# Constants that the socket module does not have.
_SO_RCVBUFFORCE, _SO_TIMESTAMPNS, _SO_MEMINFO = 33, 35, 55
_MEMINFO_DROPS: Final = 8  # SK_MEMINFO_DROPS: datagrams that found no room, or were broken
_TIMESPEC: Final = struct.Struct("@qq")
_ANCILLARY: Final = socket.CMSG_SPACE(_TIMESPEC.size)


class Listen(msgspec.Struct, frozen=True):
    kind: str  # of PORTS
    host: str  # "" = every address
    port: int

    @property
    def text(self) -> str:
        return f"{self.kind} {f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


class UdpSource:
    """Any number of addresses. Called by one thread; what waits is in the sockets' buffers."""

    kernel_times = False  # the wall clock may be set: see `steps`

    def __init__(
        self, listens: Sequence[Listen], selection: Selection, anchor_ns: int, *, monotonic_ns: Callable[[], int]
    ) -> None:
        """Raises ConfigError for an address that cannot be listened on."""
        self._selected = Selected(selection)
        self._anchor_ns = anchor_ns
        self._steps = Steps(anchor_ns, monotonic_ns=monotonic_ns)
        self._monotonic_ns = monotonic_ns
        self._poll = select.poll()
        self._doors: dict[int, _Door] = {}
        try:
            for listen in listens:
                door = _Door(listen)
                self._doors[door.socket.fileno()] = door
                self._poll.register(door.socket.fileno(), select.POLLIN)
        except BaseException:
            self.close()
            raise

    @property
    def ports(self) -> list[int]:
        return [door.socket.getsockname()[1] for door in self._doors.values()]

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(door.listen.text for door in self._doors.values())

    @property
    def described(self) -> str:
        return f"{', '.join(self.inputs)} ({sum(door.room for door in self._doors.values()) >> 10} KiB of buffer)"

    def feed(self, sink: PacketSink, timeout_s: float) -> int:
        taken = 0
        for fd, _ in self._poll.poll(round(timeout_s * 1000)):
            taken += self._read(self._doors[fd], sink)
        return taken

    def _read(self, door: _Door, sink: PacketSink) -> int:
        receive, take, offer = door.socket.recvmsg, sink.packet, self._selected.offer
        time_of = self._steps.look()
        for number in range(_A_TURN):
            try:
                data, ancillary, _, _ = receive(_DATAGRAM, _ANCILLARY)
            except BlockingIOError:
                self._steps.drained()
                return number
            except OSError:
                continue  # an ICMP error of somebody else's datagram
            if ancillary:
                seconds, ns = _TIMESPEC.unpack_from(ancillary[0][2])
                ts_ns = seconds * 1_000_000_000 + ns
                if time_of is not None:
                    ts_ns = time_of(ts_ns)
            else:
                ts_ns = self._anchor_ns + self._monotonic_ns()
            offer(take, sink, ts_ns, door.outer(len(data)) + data, _UNCUT, 1, door.listen.kind)
        return _A_TURN

    def count(self, sink: PacketSink) -> None:
        for door in self._doors.values():
            dropped = door.take_dropped()
            if dropped:
                sink.kernel_dropped(dropped)

    def finish(self, sink: PacketSink) -> None:
        """What is in the buffers now; a mirror never ends by itself."""
        for door in self._doors.values():
            for _ in range(1 + door.room // _A_TURN // 64):
                if self._read(door, sink) < _A_TURN:
                    break
        self.count(sink)

    def close(self) -> None:
        for door in self._doors.values():
            door.socket.close()


class _Door:
    """One address, and the outer headers of what comes through it."""

    def __init__(self, listen: Listen) -> None:
        self.listen = listen
        self._dropped = 0
        port = PORTS[listen.kind]
        self._ethernet = bytes(12) + b"\x08\0"
        self._port = struct.pack(">HH", 0, port)
        family = socket.AF_INET if listen.host and ":" not in listen.host else socket.AF_INET6
        try:
            self.socket = socket.socket(family, socket.SOCK_DGRAM)
            if family == socket.AF_INET6 and not listen.host:
                self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        except OSError:  # no IPv6 on this machine
            self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self.socket.bind((listen.host, listen.port))
        except OSError as error:
            self.socket.close()
            why = os.strerror(error.errno).lower() if error.errno and error.errno > 0 else str(error.strerror).lower()
            hint = f" (does the kernel have an interface of {listen.kind} on it? ip -d link show type {listen.kind})"
            hint = hint if error.errno == errno.EADDRINUSE else ""
            raise ConfigError(f"{listen.text}: cannot be listened on: {why}{hint}") from None
        self.socket.setblocking(False)
        for option in (socket.SO_RCVBUF, _SO_RCVBUFFORCE):  # the second passes the system's bound, where permitted
            try:
                self.socket.setsockopt(socket.SOL_SOCKET, option, RECEIVE_BYTES)
            except OSError:
                pass
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        except OSError:
            pass  # times are then those of reading
        self.room: int = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)

    def outer(self, length: int) -> bytes:
        ip = struct.pack(">BBHIBBH8x", 0x45, 0, min(28 + length, 0xFFFF), 0, 64, 17, 0)
        return self._ethernet + ip + self._port + struct.pack(">HH", min(8 + length, 0xFFFF), 0)

    def take_dropped(self) -> int:
        """How many datagrams found no room since the last call. 0 where the kernel does not say (Linux < 4.12)."""
        try:
            raw = self.socket.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 64)
        except OSError:
            return 0
        if len(raw) < 4 * (_MEMINFO_DROPS + 1):
            return 0
        (now,) = struct.unpack_from("=I", raw, 4 * _MEMINFO_DROPS)
        grown: int = (now - self._dropped) & 0xFFFFFFFF
        self._dropped = now
        return grown


def listens_of(kind: str, texts: Sequence[str]) -> tuple[Listen, ...]:
    """ ":4789", "10.0.0.5", "[fd00::5]:4789"; the protocol's own port where none is written. Raises ConfigError."""
    found = []
    for text in texts:
        host, colon, port = text.rpartition(":")
        if not colon or text.endswith("]"):
            host, port = text, str(PORTS[kind])
        host = host.strip("[]")
        if not port.isdigit() or int(port) > 65535:
            raise ConfigError(f"--{kind} {text!r}: write where to listen, as :{PORTS[kind]} or 10.0.0.5:{PORTS[kind]}")
        found.append(Listen(kind, host, int(port)))
    return tuple(found)
