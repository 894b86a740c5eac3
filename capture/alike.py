"""Whether a record of a pcap goes on with those before it: its headers beside theirs.

Read are Ethernet, IPv4 without options and TCP. The time, the packet's id, checksums and the window say nothing here.

Two ways to the same answer. Compiled, a byte of a buffer is a number, and no object is made to compare some: a tenth of
what unpacking takes. Interpreted it would be an object each, so there the record is unpacked.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from wire.compiled import compiled

if TYPE_CHECKING:  # compiled, a number of the machine
    from mypy_extensions import i64

OTHER: Final = 0
DATA: Final = 1
ACK: Final = 2

BY_BYTES: Final = compiled()


class Alike:
    """Knows a segment, and the last ACK of who receives it."""

    __slots__ = ("_ack", "_acked", "_alike", "_back", "_data", "_header", "_like", "_little", "_most", "_told", "_unit",
                 "_unpack", "ack_bytes", "acknowledged", "ts_ns")  # fmt: skip

    def __init__(self, record: struct.Struct, unit: int, header: int, data: bytes, back: bytes, told: bytes) -> None:
        """`record` and `unit` as of `Runs.take`, of which `header` bytes stand before the frame; `data`: a record up to
        its payload. Where ACKs are read, too: `back`, their addresses and ports, and `told`, their sequence number."""
        self._unpack = record.unpack_from
        self._little = record.format[:1] == "<"
        self._unit = unit
        self._header = header
        self._data = data
        self._back = back
        self._told = told
        fields = self._unpack(data)
        self._most: int = fields[2]
        self._alike: tuple[int, int, bytes, bytes, bytes] = fields[2:7]
        self._acked: bytes = fields[8]
        self._like: tuple[bytes, bytes, int, int, bytes] | None = None  # of the ACK before
        self._ack = b""  # and its record, up to where it ends
        self.ts_ns = 0  # of the record that was looked at
        self.acknowledged = 0  # and of an ACK the number in it,
        self.ack_bytes = 0  # and its length, with the record's header

    def look(self, buffer: bytes, at: int, expected: int) -> int:
        """What the record is that begins at `at`: DATA, the segment of the sequence number `expected`; ACK, which has
        no data; OTHER. At `at` stand as many bytes as a segment's record has."""
        if BY_BYTES:
            kind = self._by_bytes(buffer, at, expected)
            if kind != OTHER:
                return kind
        fields = self._unpack(buffer, at)
        self.ts_ns = fields[0] * 1_000_000_000 + fields[1] * self._unit
        if fields[2:7] == self._alike:
            return DATA if fields[7] == expected.to_bytes(4, "big") and fields[8] == self._acked else OTHER
        caught: int
        wire_len: int
        network: bytes
        transport: bytes
        key: bytes
        sequence: bytes
        acked: bytes
        _, _, caught, wire_len, network, transport, key, sequence, acked = fields
        if key != self._back or sequence != self._told or caught > self._most:
            return OTHER
        like = (network, transport, caught, wire_len, acked[4:])
        if like != self._like:
            if not _only_acks(network, transport, caught, wire_len, acked):
                return OTHER
            self._like = like
            self.ack_bytes = self._header + caught
            self._ack = buffer[at : at + self.ack_bytes]
        self.acknowledged = int.from_bytes(acked[:4], "big")
        return ACK

    def _by_bytes(self, buffer: bytes, at: i64, expected: i64) -> int:
        """The same of what differs from those before in its numbers alone; OTHER: it may be an ACK of another kind."""
        # In a record from 8: lengths. In a frame from 12: EtherType, version, length; from 20: fragment, protocol; from
        # 26: addresses, ports; from 38: sequence number; from 42: the number acknowledged; from 46: flags.
        header: i64 = self._header
        data = self._data
        frame = at + header
        if (
            _number(buffer, frame + 38) == expected and _same(buffer, frame + 26, data, header + 26, 12)
            and _same(buffer, frame + 42, data, header + 42, 6) and _same(buffer, at + 8, data, 8, 8)
            and _same(buffer, frame + 12, data, header + 12, 6) and _same(buffer, frame + 20, data, header + 20, 4)
        ):  # fmt: skip
            self.ts_ns = self._time(buffer, at)
            return DATA
        ack = self._ack
        if not (
            ack and _same(buffer, frame + 26, ack, header + 26, 16) and _same(buffer, frame + 46, ack, header + 46, 2)
            and _same(buffer, at + 8, ack, 8, 8) and _same(buffer, frame + 12, ack, header + 12, 6)
            and _same(buffer, frame + 20, ack, header + 20, 4)
        ):  # fmt: skip
            return OTHER
        self.ts_ns = self._time(buffer, at)
        self.acknowledged = _number(buffer, frame + 42)
        return ACK

    def _time(self, buffer: bytes, at: i64) -> i64:
        unit: i64 = self._unit
        if self._little:
            return _little(buffer, at) * 1_000_000_000 + _little(buffer, at + 4) * unit
        return _number(buffer, at) * 1_000_000_000 + _number(buffer, at + 4) * unit


def _same(one: bytes, at: i64, other: bytes, there: i64, count: i64) -> bool:
    end = at + count
    while at < end:
        if one[at] != other[there]:
            return False
        at += 1
        there += 1
    return True


def _number(data: bytes, at: i64) -> i64:
    first: i64 = data[at]
    second: i64 = data[at + 1]
    third: i64 = data[at + 2]
    last: i64 = data[at + 3]
    return first << 24 | second << 16 | third << 8 | last


def _little(data: bytes, at: i64) -> i64:
    first: i64 = data[at]
    second: i64 = data[at + 1]
    third: i64 = data[at + 2]
    last: i64 = data[at + 3]
    return last << 24 | third << 16 | second << 8 | first


def _only_acks(network: bytes, transport: bytes, caught: int, wire_len: int, acked: bytes) -> bool:
    """Whether a packet is plain IPv4 and TCP, whole, and an ACK without data; its connection is known."""
    end = 14 + (network[4] << 8 | network[5])
    return (
        network[:3] == b"\x08\x00\x45" and transport[3] == 6 and not transport[0] & 0x3F and not transport[1]
        and acked[5] & 0x17 == 0x10 and 54 <= end == 34 + (acked[4] >> 4) * 4 <= caught <= wire_len
    )  # fmt: skip
