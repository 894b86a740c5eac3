"""Large bodies in a file: segments that go on with one where the one before ended, taken many at a time.

Segments of the midst of a body differ from the one before in their time, their sequence number, and what says nothing
here (the packet's id, checksums, the window). So where one was read in the short way (`lane`), those behind it that
differ in no more are known as they are found, and all that is known of a connection is brought up to date once for all
of them. So are the lines between its chunks, where they are plain, and the ACKs of who receives it. What begins and
ends a body, and every packet of any other kind, is read as ever.
"""

from __future__ import annotations

import struct
from typing import Final, Protocol

from capture.alike import DATA, OTHER, Alike
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

    def take(self, buffer: bytes, at: int, size: int, record: struct.Struct, unit: int, most: int) -> tuple[int, int]:
        """Read records of a pcap, at most so many, as far as they go on with what the one before `at` went on with.
        How many, and where the next one begins, which is to be read by itself.

        `record` is (seconds, fractions of `unit` ns, bytes captured, bytes on the wire), then `PARTS`; `size` is what
        was captured of the one before, which the lane has read.
        """
        header = record.size - _FRAME_BYTES
        step = header + size
        network: bytes  # typed, for what is compiled
        key: bytes
        acked: bytes
        _, _, _, _, network, _, key, _, acked = record.unpack_from(buffer, at - step)
        side = self._sides.get(key)
        if side is None or side.expected < 0 or side.reader.message is None:
            return 0, at
        reader, host, message, other = side.reader, self._host, side.reader.message, side.other
        if reader.state not in _IN_BODY or not message.body_bytes or message.kept_bytes != message.body_bytes:
            return 0, at
        begin = 34 + (acked[4] >> 4) * 4
        payload = 14 + (network[4] << 8 | network[5]) - begin
        if payload <= 0:  # a card that joined frames says 0
            return 0, at
        room = min(self._max_body - message.body_bytes, self._max_total - self._ledgers.kept)
        if reader.state == IN_LENGTH:
            room = min(room, reader.left - 1)
        room //= payload
        sweep_ns, now_ns, ts_ns, data_ns = self._clock.sweep_ns, self._clock.now_ns, 0, 0
        expected, front, left, lines = side.expected, header + begin, reader.left, 0
        acks, received = 0, -1
        back = key[4:8] + key[:4] + key[10:] + key[8:10]
        if other.expected < 0 or other.interface != side.interface or self._sides.get(back) is not other:
            back = b""
        told = max(other.expected, 0).to_bytes(4, "big")
        alike = Alike(record, unit, header, buffer[at - step : at - step + front], back, told)
        segments: list[bytes] = []
        parts: list[bytes] = []  # of the body
        while len(segments) + acks < most and at + step <= len(buffer):
            kind = alike.look(buffer, at, expected)
            at_ns = alike.ts_ns
            if kind == OTHER or at_ns >= sweep_ns:
                break
            if kind == DATA:
                if len(segments) >= room:
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
                expected = (expected + payload) & _MASK
                data_ns = at_ns
                at += step
            else:
                behind = (expected - alike.acknowledged) & _MASK
                if behind >= 0x80000000 or not alike.acknowledged:
                    break
                received = max(received, side.stream.next + len(segments) * payload - behind)
                acks += 1
                at += alike.ack_bytes
            ts_ns = at_ns
            if at_ns > now_ns:
                now_ns = at_ns
        count = len(segments)
        if not count + acks:
            return 0, at
        self._clock.now_ns = now_ns
        ledgers, connection, stream = self._ledgers, side.connection, side.stream
        ledgers.packets.seen += count + acks
        ledgers.packets.emitted += count + acks
        connection.last_ns = ts_ns
        stream.acked = max(stream.acked, received)
        if count:
            size = count * payload
            body = size - lines
            ledgers.bytes.seen += size
            host.busy[connection] = None
            ledgers.kept += body
            side.expected = expected
            stream.take_all(segments, payload)
            reader.next += size
            reader.left = left
            message.parts += parts
            message.body_bytes += body
            message.kept_bytes = message.body_bytes
            message.wire_bytes += size
            message.end_ns = data_ns
        return count + acks, at
