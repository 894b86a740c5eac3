"""The fast path of messages: what nearly all segments of healthy traffic are, done in one step.

A segment that begins with a whole, strict head of a message whose length is known, in a connection where nothing else
is under way; or one that goes on with such a message's body. All state is that of the general path (`http1`,
`pair`, `connection`), and is left as the general path would leave it, so a segment of any other kind is simply not
taken, and that path reads it. Nothing is changed before a segment is taken.

Where one exchange after the other goes this way, what had to be looked at for the first is known of the next: of each
side which sequence number is `expected`, and which `step` reads what comes then (`Side`). Whatever else touches a
connection calls `Connection.unsettle`, and the next segment is looked at from all sides again.

What heads mean is told by `known`.
"""

from __future__ import annotations

import re
import struct
from typing import Final, Protocol

from capture.connection import Connection
from capture.frames import Buffer, PacketClock
from capture.http1 import BOUNDARY, IN_LENGTH
from capture.known import KnownHeads
from capture.ledgers import Ledgers
from capture.message import LENGTH, NONE, REQUEST, RESPONSE, STRICT, UNKNOWN, Kind, Message, Pair
from capture.reassemble import PIECE_COST
from capture.settings import CaptureSettings
from capture.side import ANSWERED, ASKED, WENT_ON, WHOEVER, Side

#: Start lines that mean nothing but what they say, so that the fields alone decide how the rest is read.
_REQUEST_LINE: Final = re.compile(
    rb"(GET|POST|PUT|DELETE|PATCH|HEAD|OPTIONS) /[A-Za-z0-9/_.~%!$&'()*+,;=:@?|-]* HTTP/1\.[01]\r\n"
)
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] ([2-5]\d\d)(?: [ -~]*)?\r\n")
_BODILESS: Final = (204, 304)

#: Of Ethernet, IPv4 without options, TCP: EtherType and version with the header's length, length, fragment, protocol,
#: addresses and ports, sequence, acknowledgement, offset of the data and flags. Numbers of 32 bits are the slow ones.
_FRAME: Final = struct.Struct(">12x3sxH2xHxB2x12sIIH").unpack_from
_PLAIN_IPV4: Final = b"\x08\x00\x45"
_MASK: Final = 0xFFFFFFFF


class Host(Protocol):
    """Who owns the connections."""

    busy: dict[Connection, None]  # see `side.Host`

    def pair(self, connection: Connection, pair: Pair) -> None: ...

    def plain(self, connection: Connection, asker: Side, answerer: Side, pair: Pair) -> None:
        """The same for two messages that were read here: whole, strict, with nothing missing."""

    def expire(self, now_ns: int) -> None: ...


class Lane:
    __slots__ = (
        "_busy", "_bytes", "_clock", "_host", "_ledgers", "_max_body", "_max_total", "_messages", "_packets",
        "_requests", "_responses", "_sides", "_status", "_status_end", "_status_line",
    )  # fmt: skip

    def __init__(
        self, host: Host, sides: dict[bytes, Side], clock: PacketClock, ledgers: Ledgers, settings: CaptureSettings
    ) -> None:
        self._host = host
        self._busy = host.busy
        self._sides = sides
        self._clock = clock
        self._ledgers = ledgers
        self._packets = self._bytes = self._messages = 0  # since `settle`
        self._max_body = settings.max_body_bytes
        self._max_total = settings.max_total_bytes
        self._requests = KnownHeads(settings.max_head_bytes)
        self._responses = KnownHeads(settings.max_head_bytes)
        # Of the answer before: most have the same.
        self._status_line, self._status_end, self._status = b"HTTP/1.1 200 OK\r\n", 17, 200

    def settle(self) -> None:
        """Bring the ledgers up to date; before they are looked at."""
        ledgers = self._ledgers
        ledgers.packets.seen += self._packets
        ledgers.packets.emitted += self._packets
        ledgers.bytes.seen += self._bytes
        ledgers.messages.seen += self._messages
        self._packets = self._bytes = self._messages = 0

    def frame(self, ts_ns: int, buffer: Buffer, at: int, caught: int, wire_len: int, interface: str) -> bool:
        """Read an Ethernet frame of at least 54 bytes that stands in `buffer`, if it is of the common kind: plain IPv4,
        a known connection, next in its direction with nothing held or waiting. False: nothing is changed.
        """
        clock = self._clock
        if ts_ns > clock.now_ns:
            clock.now_ns = ts_ns
            if ts_ns >= clock.sweep_ns:
                self._host.expire(ts_ns)
        kind: bytes  # typed, for what is compiled: its numbers are no objects then
        length: int
        fragment: int
        protocol: int
        key: bytes
        sequence: int
        ack: int
        tail: int
        kind, length, fragment, protocol, key, sequence, ack, tail = _FRAME(buffer, at)
        # Nearly all packets are ACKs, with or without data.
        if kind != _PLAIN_IPV4 or protocol != 6 or tail & 0x17 != 0x10 or fragment & 0x3FFF:
            return False
        side = self._sides.get(key)
        if side is None or side.interface != interface:
            return False
        begin = 34 + (tail >> 12) * 4
        end = 14 + length if length else wire_len
        if not 54 <= begin <= end <= wire_len or end > caught:
            return False
        if sequence != side.expected and not _next(side, sequence):
            return False
        if not ack:
            return False  # what tools write that make packets: it says nothing
        other = side.other
        theirs = other.stream
        received = theirs.next
        if ack != other.expected:
            behind = (theirs.origin + received - ack) & _MASK
            if behind >= 0x80000000:
                return False  # what it acknowledges was not seen
            received -= behind
        if received > theirs.acked:
            theirs.acked = received
        self._packets += 1
        connection = side.connection
        connection.last_ns = ts_ns
        size = end - begin
        if not size:
            return True
        self._bytes += size
        self._busy[connection] = None
        data = buffer[at + begin : at + end]
        stream = side.stream
        offset = stream.next
        # As `Stream.take`; a call of each segment would show.
        stream.history.append((offset, data))
        stream.next = offset + size
        stream.history_bytes += size + PIECE_COST
        if stream.history_bytes > stream.max_history:
            stream.trim_history()
        side.expected = (sequence + size) & _MASK
        step = side.step
        if not (
            self._asked(side, offset, data, size, ts_ns, received) if step == ASKED
            else self._answered(side, offset, data, size, ts_ns, received) if step == ANSWERED
            else self._went_on(side, offset, data, size, ts_ns, received) if step == WENT_ON
            else self.take(side, offset, data, size, ts_ns, received)
        ):  # fmt: skip
            side.step = other.step = WHOEVER
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
            if reader.state != IN_LENGTH or len(waiting) != 1:
                return False
            pair = waiting[0]
            if pair.shed or message.kept_bytes != message.body_bytes:
                return False
            if pair.response is message:
                if size == reader.left and _asking(side, pair):
                    return False  # the request is not over
            elif pair.request is not message or pair.response is not None:
                return False
            return self._went_on(side, offset, data, size, ts_ns, ack)
        if reader.state != BOUNDARY or reader.buffer or side.connection.little:
            return False
        kind, theirs = reader.kind, side.other.reader.kind
        first = kind is theirs is UNKNOWN and not data.startswith(b"HTTP/")
        if kind is REQUEST or first:
            if waiting or pairer.tunnel or pairer.doubts:
                return False
            if first and _settled(side, side.other):
                side.step = ASKED  # from the first request on
            return self._asked(side, offset, data, size, ts_ns, ack)
        if kind is not RESPONSE and not (kind is UNKNOWN and theirs is REQUEST and not reader.synced):
            return False
        if len(waiting) != 1 or not pairer.sure:
            return False
        pair = waiting[0]
        if pair.shed or pair.behind_loss or pair.after_loss or pair.response is not None or pair.request is None:
            return False
        return self._answered(side, offset, data, size, ts_ns, ack)

    # -- steps: what a segment is, where that is known to be possible

    def _asked(self, side: Side, offset: int, data: bytes, size: int, ts_ns: int, ack: int) -> bool:
        """A request, where none is under way."""
        line = _REQUEST_LINE.match(data)
        if line is None:
            return False
        found = self._requests.head(REQUEST, data, line.end() - 1, size)
        if found is None:
            return False
        end, told = found
        length = told.length
        framing = LENGTH
        if length < 0:
            length = 0
            framing = NONE
        rest = size - end
        if rest > length or (rest and (rest > self._max_body or self._ledgers.kept + rest > self._max_total)):
            return False
        whole = rest == length
        message = Message(
            REQUEST, data[:end] if rest else data, offset, ts_ns, ack, STRICT, offset + (size if whole else end), ts_ns,
            size, line.group(1), 0, told.low, told.block, framing, rest, rest, whole,
        )  # fmt: skip
        pairer = side.connection.pairer
        pairer.open.append(Pair(message))
        pairer.request_reader = side.reader
        pairer.losses.asked_at = ack
        self._begun(side, message, REQUEST, offset + size, data[end:] if rest else b"", length - rest)
        if whole and side.step:
            side.step = WHOEVER
            side.other.step = ANSWERED
        return True

    def _answered(self, side: Side, offset: int, data: bytes, size: int, ts_ns: int, ack: int) -> bool:
        """An answer, where one request waits for it."""
        at, status = self._status_end, self._status
        if not data.startswith(self._status_line):
            line = _STATUS_LINE.match(data)
            if line is None:
                return False
            at, status = line.end(), int(line.group(1))
            self._status_line, self._status_end, self._status = line.group(), at, status
        pairer = side.connection.pairer
        pair = pairer.open[0]
        request = pair.request
        assert request is not None
        if 0 <= ack <= request.start_offset:
            return False
        if not request.complete:
            return False  # answered before it was over
        method = request.method
        if method == b"CONNECT":
            return False
        found = self._responses.head(RESPONSE, data, at - 1, size)
        if found is None:
            return False
        end, told = found
        length = told.length
        framing = LENGTH
        if status in _BODILESS or method == b"HEAD":
            length = 0
            framing = NONE
        elif length < 0:
            return False  # it lasts until close
        rest = size - end
        if rest > length or (rest and (rest > self._max_body or self._ledgers.kept + rest > self._max_total)):
            return False
        whole = rest == length
        message = Message(
            RESPONSE, data[:end] if rest else data, offset, ts_ns, ack, STRICT, offset + (size if whole else end),
            ts_ns, size, b"", status, told.low, told.block, framing, rest, rest, whole,
        )  # fmt: skip
        pair.response = message
        pairer.response_reader = side.reader
        self._begun(side, message, RESPONSE, offset + size, data[end:] if rest else b"", length - rest)
        if whole:
            self._over(side, pair)
        return True

    def _begun(self, side: Side, message: Message, kind: Kind, end: int, body: bytes, left: int) -> None:
        """A head was read, and the begin of its body, up to `end`; so much is left of that."""
        self._messages += 1
        reader = side.reader
        reader.kind = kind
        reader.synced = True
        reader.next = end
        reader.left = left
        if body:
            self._ledgers.kept += len(body)
            message.parts.append(body)
        if left:
            reader.message = message
            reader.state = IN_LENGTH
            if side.step:
                side.step = WENT_ON

    def _went_on(self, side: Side, offset: int, data: bytes, size: int, ts_ns: int, ack: int) -> bool:
        """More of a body, all of which was kept so far."""
        reader = side.reader
        message = reader.message
        left = reader.left - size
        if message is None or left < 0:
            return False
        ledgers = self._ledgers
        body = message.body_bytes + size
        kept = ledgers.kept + size
        if body > self._max_body or kept > self._max_total:
            return False
        ledgers.kept = kept
        message.parts.append(data)
        message.body_bytes = message.kept_bytes = body
        message.wire_bytes += size
        message.end_ns = ts_ns
        reader.next = offset + size
        reader.left = left
        if left:
            return True
        message.complete = True
        message.end_offset = offset + size
        if ts_ns < message.start_ns:
            message.end_ns = message.start_ns
        reader.message = None
        reader.state = BOUNDARY
        if message.kind is RESPONSE:
            self._over(side, side.connection.pairer.open[0])
        elif side.step:
            side.step = WHOEVER
            side.other.step = ANSWERED
        return True

    def _over(self, side: Side, pair: Pair) -> None:
        """As `Connection.pair`: all that was under way is over."""
        connection, other = side.connection, side.other
        connection.pairer.open.clear()
        if pair.response is not None:
            connection.pairer.losses.answered(pair.response, known=True)
        if side.step:
            side.step = WHOEVER
            other.step = ASKED
            self._host.plain(connection, other, side, pair)
        else:
            if side.reader.kind is RESPONSE and other.reader.kind is REQUEST and _settled(side, other):
                other.step = ASKED
            self._host.pair(connection, pair)
        stream = side.stream
        if stream.history or stream.conflicts:
            stream.forget()
        stream = other.stream
        if other.reader.message is None and not other.reader.buffer and (stream.history or stream.conflicts):
            stream.forget()


def _next(side: Side, sequence: int) -> bool:
    """Whether a segment is the next one in its direction, with nothing held or waiting; then both sides are settled."""
    stream, other = side.stream, side.other
    theirs = other.stream
    if (
        (sequence - stream.origin - stream.next) & _MASK
        or stream.end >= 0
        or stream.waiting
        or side.held
        or other.held
        or not theirs.started
        or not stream.started
        or side.connection.closed
    ):
        return False
    side.seen = True
    side.expected = sequence
    return True


def _asking(side: Side, pair: Pair) -> bool:
    """Whether the request of a pair is still being read."""
    asker = side.connection.pairer.request_reader
    return asker is not None and asker.message is pair.request


def _settled(side: Side, other: Side) -> bool:
    """Whether, where nothing is under way, nothing but a request is to be expected, and then its answer."""
    pairer = side.connection.pairer
    return not (
        pairer.open or pairer.orphans or pairer.tunnel or pairer.doubts or not pairer.sure
        or side.connection.little or side.connection.midstream
        or side.reader.state != BOUNDARY or side.reader.buffer
        or other.reader.state != BOUNDARY or other.reader.buffer
        or side.stream.conflicts or other.stream.conflicts
    )  # fmt: skip
