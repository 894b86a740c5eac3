"""The two pipes between feeder and firer: frames of fixed little-endian layouts.

    frame   B type, u32 length of the payload, payload

Feeder to firer:
    CONFIG   JSON of FirerSettings, once, first
    SHOTS    a row of: u32 serial, i64 ready_ns (when to fire), u8 flags, u32 length of part 1, u32 of part 2, the
             parts; the marker stands between them
    LEASE    i64 expires_ns: nothing leaves after it
    STOP     i64 effective_ns: nothing leaves after it, open shots are given up after a grace
    END      no further shots: finish, then leave
Firer to feeder:
    READY    it stands
    RESULTS  a row of RESULT
    ANSWER   u32 serial, u32 length of head, head, body: the answer of a shot that hands out values; before its RESULT
    GAUGE    what is open, with ages, every 250 ms
    BYE      text of why it leaves: "" = done

Both ends are bounded: the feeder holds at most `replay.feeder.MAX_IN_FLIGHT` shots that have no result yet, and the
firer has nothing to say but of these.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from enum import IntEnum
from typing import Final

import msgspec

from wire.records import Failure

FRAME: Final = struct.Struct("<BI")
SHOT: Final = struct.Struct("<IqBII")
TIME: Final = struct.Struct("<q")
#: serial, sent, first byte, done, pool wait, status, failure, bytes out, bytes in
RESULT: Final = struct.Struct("<IqqqqHBIQ")
ANSWER: Final = struct.Struct("<II")

HEAD_ONLY: Final = 1  # flag of a shot: the answer has no body
WANTS_ANSWER: Final = 2  # flag of a shot: its answer hands out values

MAX_FRAME: Final = 1 << 28
_READ: Final = 1 << 18


class FrameType(IntEnum):
    CONFIG = 1
    SHOTS = 2
    LEASE = 3
    STOP = 4
    END = 5
    READY = 10
    RESULTS = 11
    ANSWER = 12
    GAUGE = 13
    BYE = 14


#: Failures by their number in a RESULT.
FAILURES: Final = (
    Failure.NONE, Failure.CONNECT, Failure.TIMEOUT, Failure.RESET, Failure.PROTOCOL, Failure.SHED_RATE,
    Failure.SHED_OPEN, Failure.SHED_LATE, Failure.SHED_FLOW, Failure.SHED_STEP, Failure.SHED_STOP, Failure.GIVEN_UP,
    Failure.UNKNOWN,
)  # fmt: skip
NUMBER_OF: Final = {failure: number for number, failure in enumerate(FAILURES)}


class FirerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the firer needs to know; it decides nothing else."""

    anchor_ns: int
    address: str
    port: int
    refused_sources: tuple[str, ...]
    named_sources: tuple[str, ...]
    run_id: str
    key_id: str
    key_hex: str
    marker_lifetime_s: int
    max_rate: float
    max_open: int
    timeout_ns: int
    late_ns: int
    grace_ns: int


class Gauge(msgspec.Struct, frozen=True, array_like=True):
    """The firer's state, every 250 ms."""

    at_ns: int
    sent: int
    answered: int
    open_shots: int
    open_ages_ns: tuple[int, ...]  # the oldest first, at most 64
    lag_ns: int
    last_sent_ns: int
    cpu_s: float
    queued: int


def frame(kind: FrameType, payload: bytes = b"") -> bytes:
    return FRAME.pack(kind, len(payload)) + payload


class FrameReader:
    """Bytes in, whole frames out; what is not whole yet is kept. Raises ValueError for what is no frame."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        buffer = self._buffer
        buffer += data
        frames: list[tuple[int, bytes]] = []
        at = 0
        while len(buffer) - at >= FRAME.size:
            kind, length = FRAME.unpack_from(buffer, at)
            if length > MAX_FRAME:
                raise ValueError(f"a frame of {length} bytes")
            end = at + FRAME.size + length
            if end > len(buffer):
                break
            frames.append((kind, bytes(buffer[at + FRAME.size : end])))
            at = end
        if at:
            del buffer[:at]
        return frames


class PipeReader:
    """Non-blocking reads of whole frames."""

    def __init__(self, fd: int, chunk: int = _READ) -> None:
        self.fd = fd
        self.ended = False
        self._chunk = chunk
        self._frames = FrameReader()
        os.set_blocking(fd, False)

    def read(self, most: int = 4) -> list[tuple[int, bytes]]:
        """The frames that are there; never waits. `ended` is True once the other end is closed."""
        frames: list[tuple[int, bytes]] = []
        for _ in range(most):
            try:
                data = os.read(self.fd, self._chunk)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                self.ended = True
                break
            frames += self._frames.feed(data)
            if len(data) < self._chunk:
                break
        return frames


class PipeWriter:
    """Non-blocking writes, in whole frames. What does not go out at once waits in order."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.broken = False  # the other end is gone
        self.waiting_bytes = 0
        self._waiting: deque[tuple[memoryview, tuple[int, ...]]] = deque()
        self._begun = False
        os.set_blocking(fd, False)
        _widen(fd)

    def put(self, data: bytes, serials: tuple[int, ...] = ()) -> None:
        """Queue one or more whole frames; `serials` names the shots in them."""
        self._waiting.append((memoryview(data), serials))
        self.waiting_bytes += len(data)
        self.flush()

    def flush(self) -> bool:
        """Write what can be written. True when nothing waits."""
        while self._waiting and not self.broken:
            view, serials = self._waiting[0]
            try:
                written = os.write(self.fd, view)
            except BlockingIOError:
                return False
            except OSError:
                self.broken = True
                return False
            self.waiting_bytes -= written
            if written < len(view):
                self._waiting[0] = (view[written:], serials)
                self._begun = True
            else:
                self._waiting.popleft()
                self._begun = False
        return not self._waiting

    def withdraw(self) -> list[int]:
        """Forget all shots of which not a byte was written; their serials."""
        kept: deque[tuple[memoryview, tuple[int, ...]]] = deque()
        taken: list[int] = []
        for position, (view, serials) in enumerate(self._waiting):
            if serials and not (position == 0 and self._begun):
                taken.extend(serials)
                self.waiting_bytes -= len(view)
            else:
                kept.append((view, serials))
        self._waiting = kept
        return taken


def _widen(fd: int) -> None:
    """A pipe of 1 MiB where the system has such a thing (Linux, F_SETPIPE_SZ); 64 KiB do as well."""
    try:
        import fcntl

        fcntl.fcntl(fd, getattr(fcntl, "F_SETPIPE_SZ", 1031), 1 << 20)
    except (ImportError, OSError):
        pass
