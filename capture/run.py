"""Large bodies in a file: segments that go on with one where the one before ended, taken many at a time.

Segments of the midst of a body differ from the one before in their time, their sequence number, and what says nothing
here (the packet's id, checksums, the window). So where one was read in the short way (`lane`), those behind it that
differ in no more are known as they are found, and all that is known of a connection is brought up to date once for all
of them. So are the lines between its chunks, where they are plain. What begins and ends a body, and every packet of any
other kind, is read as ever.
"""

from __future__ import annotations

import struct
from typing import Final, Protocol

from capture.chunks import cut
from capture.connection import Connection
from capture.frames import PARTS, PacketClock
from capture.http1 import IN_CHUNK, IN_LENGTH
from capture.ledgers import Ledgers
from capture.settings import CaptureSettings
from capture.side import Side

_FRAME_BYTES: Final = struct.calcsize("=" + PARTS)
_IN_BODY: Final = (IN_LENGTH, IN_CHUNK)
_MASK: Final = 0xFFFFFFFF


class Host(Protocol):
    """Who owns the connections; see `lane.Host`."""

    busy: dict[Connection, None]
    next_sweep_ns: int


class Runs:
    __slots__ = ("_clock", "_host", "_ledgers", "_max_body", "_max_total", "_sides")

    def __init__(
        self, host: Host, sides: dict[bytes, Side], clock: PacketClock, ledgers: Ledgers, settings: CaptureSettings
    ) -> None:
        self._host = host
        self._sides = sides
        self._clock = clock
        self._ledgers = ledgers
        self._max_body = settings.max_body_bytes
        self._max_total = settings.max_total_bytes

    def take(self, buffer: bytes, at: int, size: int, record: struct.Struct, unit: int, most: int) -> int:
        """Read records of a pcap, at most so many, as far as they go on with what the one before `at` went on with.
        How many; the next one is to be read by itself.

        `record` is (seconds, fractions of `unit` ns, bytes captured, bytes on the wire), then `PARTS`; `size` is what
        was captured of the one before, which the lane has read.
        """
        header = record.size - _FRAME_BYTES
        step = header + size
        unpack = record.unpack_from
        _, _, caught, wire_len, network, transport, key, _, acked = unpack(buffer, at - step)
        side = self._sides.get(key)
        if side is None or side.expected < 0 or side.reader.message is None:
            return 0
        reader, host, message = side.reader, self._host, side.reader.message
        if reader.state not in _IN_BODY or not message.body_bytes or message.kept_bytes != message.body_bytes:
            return 0
        begin = 34 + (acked[4] >> 4) * 4
        payload = 14 + (network[4] << 8 | network[5]) - begin
        if payload <= 0:  # a card that joined frames says 0
            return 0
        room = min(self._max_body - message.body_bytes, self._max_total - self._ledgers.kept)
        if reader.state == IN_LENGTH:
            room = min(room, reader.left - 1)
        most = min(most, room // payload, (len(buffer) - at) // step)
        sweep_ns, now_ns, ts_ns = host.next_sweep_ns, self._clock.now_ns, 0
        expected, front, left, lines = side.expected, header + begin, reader.left, 0
        segments: list[bytes] = []
        parts: list[bytes] = []  # of the body
        while len(segments) < most:
            seconds: int
            fraction: int
            c: int
            w: int
            sequence: bytes
            seconds, fraction, c, w, n, t, k, sequence, a = unpack(buffer, at)
            if (
                sequence != expected.to_bytes(4, "big")
                or k != key or a != acked or n != network or t != transport or c != caught or w != wire_len
            ):  # fmt: skip
                break
            at_ns = seconds * 1_000_000_000 + fraction * unit
            if at_ns >= sweep_ns:
                break
            data = buffer[at + front : at + front + payload]
            if payload < left:
                parts.append(data)
                left -= payload
            else:
                found = cut(data, left)
                if found is None:
                    break
                within, left, more = found
                parts += within
                lines += more
            segments.append(data)
            ts_ns = at_ns
            if at_ns > now_ns:
                now_ns = at_ns
            expected = (expected + payload) & _MASK
            at += step
        count = len(segments)
        if not count:
            return 0
        size = count * payload
        body = size - lines
        self._clock.now_ns = now_ns
        ledgers, connection = self._ledgers, side.connection
        ledgers.packets.seen += count
        ledgers.packets.emitted += count
        ledgers.bytes.seen += size
        connection.last_ns = ts_ns
        host.busy[connection] = None
        ledgers.kept += body
        side.expected = expected
        side.stream.take_all(segments, payload)
        reader.next += size
        reader.left = left
        message.parts += parts
        message.body_bytes += body
        message.kept_bytes = message.body_bytes
        message.wire_bytes += size
        message.end_ns = ts_ns
        return count
