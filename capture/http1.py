"""HTTP/1 messages in one direction of a stream. No I/O; what is found is told to a sink.

Strict, then lenient, then opaque, never an exception:

- strict: the head passes llhttp (httptools);
- lenient: it does not, but its start line can be told and its fields can be read;
- opaque: where the body ends cannot be told (lengths that conflict, a broken chunk), or where the head does: what was
  read is kept, the message is never replayed, and reading goes on at the next thing that begins like a message.

Every byte that is fed goes to a message (`Message.wire_bytes`), waits (`Reader.waiting_bytes`), or is junk by reason.
"""

from __future__ import annotations

from typing import Final, Protocol

from capture import landmarks
from capture.chunks import STRICT_TRAILER, next_chunk, none_follow, size_in, strictly
from capture.message import (
    CHUNKED,
    CLOSE,
    LENGTH,
    NONE,
    OPAQUE,
    REQUEST,
    RESPONSE,
    UNKNOWN,
    Message,
    frame,
    message_of,
    promising,
)
from capture.other import ENOUGH, FIRST_BYTES, listened, proxy_header
from wire.records import Framing


class Sink(Protocol):
    """Who is told. Called from inside `feed`, `gap` and `end`, in the order of the stream."""

    def head(self, reader: Reader, message: Message) -> None:
        """A head is whole. The sink calls `reader.expect(...)` when it knows better than the head how the body ends."""

    def done(self, reader: Reader, message: Message) -> None:
        """The message is over: whole (`complete`), or as far as it can be read."""

    def junk(self, reader: Reader, reason: str, begin: int, end: int) -> None:
        """The bytes between these offsets belong to no message."""

    def keep(self, message: Message, count: int) -> bool:
        """Whether `count` more body bytes may be kept in memory."""

    def cut_short(self, message: Message) -> bool:
        """Whether a body may be over though its framing says otherwise: the next segment begins like a message."""


BOUNDARY: Final = 0
IN_LENGTH: Final = 1
IN_CHUNK: Final = 2  # literals: compiled, they are numbers then
(_SIZE, _CHUNK_END, _TRAILERS, _CLOSE, _LOST, _TUNNEL) = range(3, 9)
_BLANK: Final = b"\r\n"
_MAX_CHUNK_LINE: Final = 16 << 10


class Reader:
    """One direction. Feed it what the reassembler gives, in order."""

    __slots__ = (
        "_ack", "_lost_reason", "_max_body", "_max_head", "_offset", "_sink", "_ts_ns", "buffer", "kind", "left",
        "lost_one", "lost_to", "message", "met_ack", "next", "opening", "state", "synced",
    )  # fmt: skip

    def __init__(self, sink: Sink, max_head: int, max_body: int, *, midstream: bool = False) -> None:
        self.kind = UNKNOWN
        self.message: Message | None = None  # whose body is being read
        self.synced = False  # a message has been found in this direction
        self._sink = sink
        self._max_head, self._max_body = max_head, max_body
        self.state, self._lost_reason = (_LOST, "midstream") if midstream else (BOUNDARY, "not_http")
        self.left = 0  # bytes of the body, or of the chunk
        self.buffer = b""  # the beginning of a head or a line
        self._offset, self._ts_ns, self._ack = 0, 0, -1  # of the buffer's first byte
        self.next = 0  # the offset after what was fed
        self.lost_to, self.lost_one = -1, False  # see `Losses`
        self.met_ack = -1  # what its sender had received when it sent the end of a message met in its midst
        self.opening: bytes | None = b""  # the first bytes that are no HTTP; None when nobody asks what they are

    @property
    def waiting_bytes(self) -> int:
        return len(self.buffer)

    def expect(self, framing: Framing) -> None:
        """Called by the sink inside `head`: the body is framed so, whatever the head says (only NONE and CLOSE)."""
        if self.message is not None:
            self.message.framing, self.left = framing, 0

    def open_tunnel(self) -> None:
        """What follows is no HTTP: CONNECT, 101."""
        if self.state != _TUNNEL:
            if self.message is not None:
                self._finish(self.message, self.next, self.message.end_ns, complete=True)
            waiting, self.buffer = self.buffer, b""
            self.state = _TUNNEL
            if waiting:
                self._sink.junk(self, "tunnel", self._offset, self._offset + len(waiting))

    # -- input

    def feed(self, offset: int, data: bytes, ts_ns: int, ack: int) -> None:
        message = self.message
        if message is not None and message.body_bytes and len(data) < self.left and self.state in (IN_LENGTH, IN_CHUNK):
            self.next, self.left = offset + len(data), self.left - len(data)
            return self._body(data, ts_ns)  # nearly all of a large body is in the midst of it
        if self.state == _TUNNEL:
            self.opening = listened(self.opening, data)
            self._sink.junk(self, "tunnel", offset, offset + len(data))
            return
        first_ts, first_ack, fresh_from = ts_ns, ack, 0
        self.next = offset + len(data)
        if self.buffer:
            fresh_from = len(self.buffer)
            data = self.buffer + data
            offset, first_ts, first_ack, self.buffer = self._offset, self._ts_ns, self._ack, b""
        elif self.state == _LOST:
            if self._lost_reason == "midstream" and len(data) > 1 and not landmarks.may_begin(self.kind, data):
                self.met_ack = ack  # one byte is a keep-alive probe
            if not self._resync(data):
                return
        elif self.message is not None:
            self._interrupted(self.message, data)
        at, size = 0, len(data)
        while at < size:
            state = self.state
            if state == BOUNDARY:
                began = (first_ts, first_ack) if at < fresh_from else (ts_ns, ack)
                new = self._begin(offset, data, at, *began, ts_ns)
            elif state in (IN_LENGTH, IN_CHUNK):
                new = min(size, at + self.left)
                self.left -= new - at
                self._body(data[at:new] if at or new < size else data, ts_ns)
                message = self.message
                if not self.left and message is not None:
                    if state == IN_LENGTH:
                        self._finish(message, offset + new, ts_ns, complete=True)
                    else:
                        self.left, new = next_chunk(message, data, new)
                        self.state = IN_CHUNK if self.left else _CHUNK_END
            elif state == _CLOSE:
                new = size
                self._body(data[at:] if at else data, ts_ns)
            elif state == _LOST:
                new = self._search(data, at)
            elif state == _TUNNEL:
                self._sink.junk(self, "tunnel", offset + at, offset + size)
                new = size
            else:
                new = self._line(offset, data, at, ts_ns)
            if new < 0:  # more is needed
                self.buffer = data[at:] if at else data
                self._offset = offset + at
                self._ts_ns, self._ack = (first_ts, first_ack) if at < fresh_from else (ts_ns, ack)
                return
            at = new

    @property
    def lost(self) -> bool:
        """It is not known where the next message begins."""
        return self.state == _LOST

    def gap(self, offset: int, length: int, ts_ns: int) -> bool:
        """`length` bytes at `offset` were never seen. Whether a message began in them, as far as that is certain."""
        state, message = self.state, self.message
        self.next = offset + length
        if state == _TUNNEL:
            return False
        if message is None:
            self._lose("after_gap")
            return state == BOUNDARY
        message.gap = True
        if state == _CLOSE:
            message.missing_bytes += length
            return False
        inside = min(length, self.left) if state in (IN_LENGTH, IN_CHUNK) else 0
        self.left -= inside
        if state == IN_LENGTH and not self.left:
            message.missing_bytes += inside
            self._finish(message, offset + inside, ts_ns, complete=True)
            if length > inside:
                self._lose("after_gap")
                return True
        elif state in (IN_LENGTH, IN_CHUNK) and inside == length:
            message.missing_bytes += length
            if not self.left:
                self.state = _CHUNK_END
        else:  # the framing itself was lost
            message.missing_bytes += length
            self._give_up(message, offset, ts_ns, "after_gap")
        return False

    def end(self, ts_ns: int, *, closed: bool) -> None:
        """No more bytes: the sender closed, or (`closed` false) the recording ended."""
        message = self.message
        if message is not None:
            whole = closed and self.state == _CLOSE and not message.gap
            self._take_buffer(message)
            self._finish(message, self.next, message.end_ns, complete=whole)
        else:
            self._leave_buffer(self._lost_reason)

    # -- heads

    def _begin(self, offset: int, data: bytes, at: int, first_ts: int, first_ack: int, ts_ns: int) -> int:
        size = len(data)
        if data[at] in _BLANK:
            start = at
            while at < size and data[at] in _BLANK:
                at += 1
            self._sink.junk(self, "blank", offset + start, offset + at)  # RFC 9112 section 2.2
            return at
        end = data.find(b"\n\r\n", at)
        bare = data.find(b"\n\n", at, end + 1) if end >= 0 else data.find(b"\n\n", at)
        end = bare + 2 if bare >= 0 else end + 3 if end >= 0 else -1
        if end < 0:
            if size - at <= self._max_head and promising(self.kind, data, at):
                return -1
            return self._not_http(data, at)
        head = data[at:end] if at or end < size else data
        message = message_of(self.kind, head, offset + at, first_ts, first_ack)
        if message is None:
            return self._not_http(data, at)
        message.end_ns = ts_ns
        message.end_offset = offset + end
        self.kind = message.kind
        self.synced = True
        self._start_body(message)
        empty = message.framing is NONE or (message.framing is LENGTH and not self.left)
        if empty and self.state != _TUNNEL:
            self._finish(message, offset + end, ts_ns, complete=True)
        return end

    def _start_body(self, message: Message) -> None:
        """RFC 9112 section 6.3, but for what only the pair can know; that the sink corrects inside `head`."""
        self.left = frame(message)
        self.message = message
        self._sink.head(self, message)
        if self.state == _TUNNEL:
            return
        framing = message.framing
        self.state = (
            IN_LENGTH if framing is LENGTH
            else _SIZE if framing is CHUNKED
            else _CLOSE if framing is CLOSE
            else BOUNDARY
        )  # fmt: skip

    # -- bodies

    def _body(self, data: bytes, ts_ns: int) -> None:
        message = self.message
        assert message is not None
        count = len(data)
        message.body_bytes += count
        message.wire_bytes += count
        message.end_ns = ts_ns
        room = self._max_body - message.kept_bytes
        if room > 0 and message.kept_bytes == message.body_bytes - count:
            if count > room:
                data, count = data[:room], room
            if self._sink.keep(message, count):
                message.parts.append(data)
                message.kept_bytes += count

    def _line(self, offset: int, data: bytes, at: int, ts_ns: int) -> int:
        """The lines of a chunked body (RFC 9112 section 7.1)."""
        message = self.message
        assert message is not None
        end = data.find(b"\n", at)
        if self.state == _SIZE and message.ambiguous and none_follow(message, data, at, end):
            message.framing, self.state = CLOSE, _CLOSE
            return at
        if end < 0:
            if len(data) - at <= _MAX_CHUNK_LINE and (self.state != _CHUNK_END or data[at:] == b"\r"):
                return -1
            return self._broken(message, offset, at, ts_ns)
        line = data[at:end]
        if self.state == _CHUNK_END:
            if line.strip(b"\r"):
                return self._broken(message, offset, at, ts_ns)
            strictly(message, line == b"\r")
            self.state = _SIZE
        elif self.state == _SIZE:
            size = size_in(message, line)
            if size < 0:
                return self._broken(message, offset, at, ts_ns)
            self.left = size
            self.state = IN_CHUNK if size else _TRAILERS
        else:
            stripped = line.rstrip(b"\r")
            strictly(message, line == b"\r" or (bool(stripped) and STRICT_TRAILER.match(line) is not None))
            if stripped:
                message.trailers += data[at : end + 1]
                if len(message.trailers) > self._max_head:
                    return self._broken(message, offset, at, ts_ns)
            else:
                message.wire_bytes += end + 1 - at
                self._finish(message, offset + end + 1, ts_ns, complete=True)
                return end + 1
        message.wire_bytes += end + 1 - at
        message.end_ns = ts_ns
        return end + 1

    def _finish(self, message: Message, offset: int, ts_ns: int, *, complete: bool) -> None:
        message.complete = complete
        message.end_offset = max(offset, message.end_offset)
        message.end_ns = max(ts_ns, message.start_ns)
        self.message = None
        if self.state != _TUNNEL:
            self.state = BOUNDARY
        self._sink.done(self, message)

    def _take_buffer(self, message: Message) -> None:
        message.wire_bytes += len(self.buffer)  # part of a chunk's line
        self.buffer = b""

    def _broken(self, message: Message, offset: int, at: int, ts_ns: int) -> int:
        message.mode, message.ambiguous = OPAQUE, True
        self._give_up(message, offset + at, ts_ns, "bad_chunk")
        return at

    def _give_up(self, message: Message, offset: int, ts_ns: int, reason: str) -> None:
        """The message cannot be read on; look for the next one."""
        self._take_buffer(message)
        self._finish(message, offset, ts_ns, complete=False)
        self._lose(reason)

    # -- what is no message

    def _lose(self, reason: str) -> None:
        if self.state == _TUNNEL:
            return
        self._leave_buffer(reason, gap=reason == "after_gap")
        self.state, self._lost_reason = _LOST, reason

    def _leave_buffer(self, reason: str, *, gap: bool = False) -> None:
        """What waits will not be whole. A request that its first line tells is told, as far as it was seen."""
        waiting, self.buffer = self.buffer, b""
        if self.state == BOUNDARY:
            reason = "unfinished_head"
            message = landmarks.half_request(waiting, self._offset, self._ts_ns, self._ack)
            if message is not None:
                self.kind, message.gap = REQUEST, gap
                self._sink.head(self, message)
                self._finish(message, message.end_offset, self._ts_ns, complete=False)
                return
        if waiting:
            self._sink.junk(self, reason, self._offset, self._offset + len(waiting))

    def _not_http(self, data: bytes, at: int) -> int:
        if not self.synced:
            if len(data) - at < ENOUGH and data[at] in FIRST_BYTES:
                return -1
            self.opening = listened(self.opening, data[at:])
            header, begin = proxy_header(data, at), self.next - len(data) + at
            if header:
                self._sink.junk(self, "not_http", begin, begin + header)
                return at + header
        self.state, self._lost_reason = _LOST, landmarks.other_protocol(data, at)
        return self._search(data, at, at + 1)

    def _resync(self, data: bytes) -> bool:
        """Lost, at the beginning of a segment: True when it is worth reading."""
        if landmarks.may_begin(self.kind, data):
            self.state = BOUNDARY
            return True
        if not landmarks.may_hold(data):
            if not self.synced:
                self.opening = listened(self.opening, data)
            self._sink.junk(self, self._lost_reason, self.next - len(data), self.next)
            return False
        return True

    def _search(self, data: bytes, at: int, begin: int = -1) -> int:
        """Lost, inside of a segment: go on where something begins like a message."""
        # What follows a broken chunk is what somebody meant to be taken for a body, or for a message.
        found = -1 if self._lost_reason == "bad_chunk" else landmarks.find(self.kind, data, max(at, begin))
        stop = found if found >= 0 else len(data)
        if stop > at:
            offset = self.next - len(data)
            self._sink.junk(self, self._lost_reason, offset + at, offset + stop)
        self.state = BOUNDARY if found >= 0 else self.state
        return stop

    def _interrupted(self, message: Message, data: bytes) -> None:
        """A body that lasts until close (or was never sent), and a segment that begins like the next message."""
        response = message.kind is RESPONSE
        unsent = self.state in (IN_LENGTH, _SIZE) and message.wire_bytes == len(message.head)
        may_be_over = unsent or (response and self.state == _CLOSE)
        if may_be_over and landmarks.begins_long(message.kind, data) and self._sink.cut_short(message):
            self._finish(message, self.next - len(data), message.end_ns, complete=response)
