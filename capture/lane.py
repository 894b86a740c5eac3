"""The fast path of messages: what nearly all segments of healthy traffic are, done in one step.

A segment that begins with a whole, strict head of a message whose length is known, in a connection where nothing else
is under way; or one that goes on with such a message's body. All state is that of the general path (`http1`,
`pair`, `connection`), and is left as the general path would leave it, so a segment of any other kind is simply not
taken, and that path reads it. Nothing is changed before a segment is taken.

What a block of header fields means is remembered, within bounds: clients and servers repeat them.
"""

from __future__ import annotations

import re
from typing import Final, Protocol

from capture.connection import Connection
from capture.http1 import BOUNDARY, IN_LENGTH
from capture.message import LENGTH, NONE, REQUEST, RESPONSE, STRICT, Kind, Message, is_strict
from capture.pair import Pair
from capture.settings import CaptureSettings
from capture.side import Side
from wire.account import Ledger

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

#: (length that is announced, -1 where none is; the block in lower case, from the newline before it); None: not plain
_Facts = tuple[int, bytes] | None
_UNSEEN: Final = (-2, b"")


class Host(Protocol):
    """Who owns the connections."""

    kept: int  # body bytes in memory

    def pair(self, connection: Connection, pair: Pair) -> None: ...


class Lane:
    __slots__ = ("_host", "_max_body", "_max_head", "_max_total", "_messages", "_requests", "_responses")

    def __init__(self, host: Host, messages: Ledger, settings: CaptureSettings) -> None:
        self._host = host
        self._messages = messages
        self._max_head = settings.max_head_bytes
        self._max_body = settings.max_body_bytes
        self._max_total = settings.max_total_bytes
        self._requests = _Known()
        self._responses = _Known()

    def take(self, side: Side, offset: int, data: bytes, ts_ns: int, ack: int) -> bool:
        """Read a segment that is next in its direction, if it is of the common kind; False: nothing is changed."""
        reader = side.reader
        pairer = side.connection.pairer
        if pairer.orphans:
            return False
        waiting = pairer.open
        message = reader.message
        size = len(data)
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
                block = data[at:end]
                facts = known.facts.get(block, _UNSEEN)
                if facts is _UNSEEN:
                    facts = known.learn(block, _facts_of(kind, data[:end], block))
            if facts is None or end > self._max_head:
                return False
            known.used += 1
            rest = size - end
            if rest and (rest > self._max_body or self._host.kept + rest > self._max_total):
                return False
            length, low = facts
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
                b"" if answers else line.group(1), status, low, framing, rest, rest, whole,
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
        return (-1, low) if low.find(b"\ncontent-length") < 0 else None
    value = low[at + 16 : low.find(b"\r", at)].strip(b" \t")
    if not value.isdigit() or len(value) > 18 or low.find(b"\ncontent-length", at + 16) >= 0:
        return None
    return int(value), low
