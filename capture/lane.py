"""The fast path of messages: what nearly all segments of healthy traffic are, done in one step.

A segment that begins with a whole, strict head of a message whose length is known, in a connection where nothing else
is under way; or one that goes on with such a message's body. All state is that of the general path (`http1`,
`pair`, `connection`), and is left as the general path would leave it, so a segment of any other kind is simply not
taken, and that path reads it. Nothing is changed before a segment is taken.

What a block of header fields means is remembered, within bounds: clients and servers repeat them.
"""

from __future__ import annotations

import re
import struct
from typing import Final, Protocol

from capture.connection import Connection
from capture.frames import Buffer, PacketClock
from capture.http1 import BOUNDARY, IN_LENGTH
from capture.ledgers import Ledgers
from capture.message import LENGTH, NONE, REQUEST, RESPONSE, STRICT, Kind, Message, is_strict
from capture.pair import Pair
from capture.settings import CaptureSettings
from capture.side import Side

MAX_CACHED: Final = 512
_REST: Final = 8 * MAX_CACHED  # heads for which nothing is looked up, after a time in which that was of no use
MAX_CACHED_LENGTH: Final = 4096
_END: Final = b"\r\n\r\n"
#: Start lines that mean nothing but what they say, so that the fields alone decide how the rest is read.
_REQUEST_LINE: Final = re.compile(
    rb"(GET|POST|PUT|DELETE|PATCH|HEAD|OPTIONS) /[A-Za-z0-9/_.~%!$&'()*+,;=:@?|-]* HTTP/1\.[01]\r\n"
)
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] ([2-5]\d\d)(?: [ -~]*)?\r\n")
_BODILESS: Final = (204, 304)

#: Of Ethernet, IPv4 without options, TCP: EtherType and the two bytes after it, length, fragment to protocol, addresses
#: and ports, sequence, acknowledgement, offset of the data and flags.
_FRAME: Final = struct.Struct(">12xIH2xI2x12sIIH").unpack_from

#: (length that is announced, -1 where none is; the block in lower case, from the newline before it; and as it is).
#: None: not plain.
_Facts = tuple[int, bytes, bytes] | None
_UNSEEN: Final = (-2, b"", b"")


class Host(Protocol):
    """Who owns the connections."""

    kept: int  # body bytes in memory
    next_sweep_ns: int

    def pair(self, connection: Connection, pair: Pair) -> None: ...

    def expire(self, now_ns: int) -> None: ...


class Lane:
    __slots__ = (
        "_bytes", "_clock", "_host", "_max_body", "_max_head", "_max_total", "_messages", "_packets", "_requests",
        "_responses", "_sides",
    )  # fmt: skip

    def __init__(
        self, host: Host, sides: dict[bytes, Side], clock: PacketClock, ledgers: Ledgers, settings: CaptureSettings
    ) -> None:
        self._host = host
        self._sides = sides
        self._clock = clock
        self._packets = ledgers.packets
        self._bytes = ledgers.bytes
        self._messages = ledgers.messages
        self._max_head = settings.max_head_bytes
        self._max_body = settings.max_body_bytes
        self._max_total = settings.max_total_bytes
        self._requests = _Known()
        self._responses = _Known()

    def frame(self, ts_ns: int, buffer: Buffer, at: int, caught: int, wire_len: int, interface: str) -> bool:
        """Read an Ethernet frame of at least 54 bytes that stands in `buffer`, if it is of the common kind: plain IPv4,
        a known connection, next in its direction with nothing held or waiting. False: nothing is changed.
        """
        clock = self._clock
        if ts_ns > clock.now_ns:
            clock.now_ns = ts_ns
            if ts_ns >= self._host.next_sweep_ns:
                self._host.expire(ts_ns)
        kind, length, part, key, sequence, ack, tail = _FRAME(buffer, at)
        # Nearly all packets are ACKs, with or without data.
        if kind & 0xFFFFFF00 != 0x08004500 or part & 0x3FFF00FF != 6 or tail & 0x17 != 0x10:
            return False
        side = self._sides.get(key)
        if side is None or side.interface != interface:
            return False
        begin = 34 + (tail >> 12) * 4
        end = 14 + length if length else wire_len
        if not 54 <= begin <= end <= wire_len or end > caught:
            return False
        stream, other = side.stream, side.other
        theirs = other.stream
        offset = stream.next
        if (
            (sequence - stream.origin - offset) & 0xFFFFFFFF
            or stream.end >= 0
            or stream.waiting
            or side.held
            or other.held
            or not theirs.started
            or not stream.started
            or side.connection.closed
        ):
            return False
        received = theirs.next
        behind = (theirs.origin + received - ack) & 0xFFFFFFFF
        if behind:
            if behind >= 0x80000000:
                return False  # what it acknowledges was not seen
            received -= behind
        if received > theirs.acked:
            theirs.acked = received
        self._packets.seen += 1
        self._packets.emitted += 1
        side.connection.last_ns = ts_ns
        side.seen = True
        size = end - begin
        if not size:
            return True
        self._bytes.seen += size
        data = buffer[at + begin : at + end]
        stream.take(data, size)
        if not self.take(side, offset, data, size, ts_ns, received):
            side.reader.feed(offset, data, ts_ns, received)
        return True

    def take(self, side: Side, offset: int, data: bytes, size: int, ts_ns: int, ack: int) -> bool:
        """Read a segment that is next in its direction, if it is of the common kind; False: nothing is changed."""
        reader = side.reader
        pairer = side.connection.pairer
        if pairer.orphans:
            return False
        waiting = pairer.open
        message = reader.message
        if message is not None:
            left = reader.left
            if reader.state != IN_LENGTH or size > left or len(waiting) != 1:
                return False
            pair = waiting[0]
            kept = message.kept_bytes
            if (
                pair.shed
                or kept != message.body_bytes
                or kept + size > self._max_body
                or self._host.kept + size > self._max_total
            ):
                return False
            answers = pair.response is message
            if answers:
                asker = pairer.request_reader
                if size == left and asker is not None and asker.message is pair.request:
                    return False  # the request is not over
            elif pair.request is not message or pair.response is not None:
                return False
            self._host.kept += size
            message.parts.append(data)
            message.body_bytes = message.kept_bytes = kept + size
            message.wire_bytes += size
            message.end_ns = ts_ns
            reader.next = offset + size
            reader.left = left - size
            if size != left:
                return True
        else:
            if reader.state != BOUNDARY or reader.buffer or side.connection.little:
                return False
            kind = reader.kind
            if kind is REQUEST:
                line = _REQUEST_LINE.match(data)
                if line is None or waiting or pairer.tunnel or pairer.doubts:
                    return False
                answers = False
                status = 0
                known = self._requests
            elif kind is RESPONSE:
                line = _STATUS_LINE.match(data)
                if line is None or len(waiting) != 1 or not pairer.sure:
                    return False
                answers = True
                pair = waiting[0]
                request = pair.request
                if pair.shed or pair.after_loss or pair.response is not None or request is None:
                    return False
                if 0 <= ack <= request.start_offset:
                    return False
                known = self._responses
            else:
                return False
            at = line.end() - 1
            end = size
            facts: _Facts = _UNSEEN
            if known.rest:
                known.rest -= 1
                end = data.find(_END, at - 1) + 4
                if end > 3:
                    facts = _facts_of(kind, data[:end], data[at:end])
                else:
                    return False
            elif data.endswith(_END):
                facts = known.facts.get(data[at:], _UNSEEN)
            if facts is _UNSEEN:
                end = data.find(_END, at - 1) + 4
                if end < 4:
                    return False
                fields = data[at:end]
                facts = known.facts.get(fields, _UNSEEN)
                if facts is _UNSEEN:
                    facts = known.learn(fields, _facts_of(kind, data[:end], fields))
            if facts is None or end > self._max_head:
                return False
            known.used += 1
            rest = size - end
            if rest and (rest > self._max_body or self._host.kept + rest > self._max_total):
                return False
            length, low, block = facts
            framing = LENGTH
            if answers:
                assert request is not None
                status = int(line.group(1))
                if request.method == b"CONNECT":
                    return False
                if status in _BODILESS or request.method == b"HEAD":
                    length = 0
                    framing = NONE
                elif length < 0:
                    return False  # it lasts until close
                asker = pairer.request_reader
                if rest == length and asker is not None and asker.message is request:
                    return False  # the request is not over
            elif length < 0:
                length = 0
                framing = NONE
            if rest > length:
                return False
            whole = rest == length
            if rest:
                head = data[:end]
                self._host.kept += rest
            else:
                head = data
            message = Message(
                kind, head, offset, ts_ns, ack, STRICT, offset + (size if whole else end), ts_ns, size,
                b"" if answers else line.group(1), status, low, block, framing, rest, rest, whole,
            )  # fmt: skip
            if rest:
                message.parts.append(data[end:])
            if answers:
                pair.response = message
                pairer.response_reader = reader
            else:
                waiting.append(Pair(message))
                pairer.request_reader = reader
            self._messages.seen += 1
            reader.synced = True
            reader.next = offset + size
            if not whole:
                reader.message = message
                reader.state = IN_LENGTH
                reader.left = length - rest
                return True
            reader.left = 0
            if answers:
                self._over(side, pair)
            return True
        message.complete = True
        message.end_offset = offset + size
        if ts_ns < message.start_ns:
            message.end_ns = message.start_ns
        reader.message = None
        reader.state = BOUNDARY
        if answers:
            self._over(side, pair)
        return True

    def _over(self, side: Side, pair: Pair) -> None:
        """As `Connection.pair`: all that was under way is over."""
        connection, other = side.connection, side.other
        connection.pairer.open.clear()
        self._host.pair(connection, pair)
        side.stream.forget()
        if other.reader.message is None:
            other.stream.forget()


class _Known:
    """What blocks of fields mean, of those seen lately. Where they hardly ever repeat, it rests."""

    __slots__ = ("facts", "rest", "used")

    def __init__(self) -> None:
        self.facts: dict[bytes, _Facts] = {}
        self.used = 0
        self.rest = 0

    def learn(self, block: bytes, facts: _Facts) -> _Facts:
        if len(block) <= MAX_CACHED_LENGTH:
            if len(self.facts) >= MAX_CACHED:
                if self.used < 2 * MAX_CACHED:  # each was used once when it was learned
                    self.rest = _REST
                self.used = 0
                self.facts.clear()
            self.facts[block] = facts
        return facts


def _facts_of(kind: Kind, head: bytes, block: bytes) -> _Facts:
    """What the fields mean, for which `is_strict` and `frame` of the general path stand."""
    low = block.lower()
    if low.find(b"\ntransfer-encoding") >= 0 or not is_strict(kind, head):
        return None
    at = low.find(b"\ncontent-length:")
    if at < 0:
        return (-1, low, block) if low.find(b"\ncontent-length") < 0 else None
    value = low[at + 16 : low.find(b"\r", at)].strip(b" \t")
    if not value.isdigit() or len(value) > 18 or low.find(b"\ncontent-length", at + 16) >= 0:
        return None
    return int(value), low, block
