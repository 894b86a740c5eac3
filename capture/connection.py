"""One connection: two streams, two readers, their pairs.

Its two directions are read in the order of cause: what a server sent is held while bytes of the client that the
server had received by then (as its acknowledgement says) have not been seen here. So packets that the capture
shuffled between the directions, and requests that were lost, shift no pair.
"""

from __future__ import annotations

from collections import deque

from capture.http1 import Reader
from capture.message import REQUEST, RESPONSE, UNKNOWN, Pair
from capture.other import ASKED, Other, finish, upgraded_to
from capture.pair import Pairer
from capture.reassemble import PIECE_COST, Piece, Stream
from capture.settings import CaptureSettings
from capture.side import NOTHING_HELD, WHOEVER, Host, Side
from wire.ids import ExchangeIds

#: No sender is farther from what was acknowledged: receivers grant some 16 MB at most, of the 1 GB that TCP could.
REACH = 1 << 26
_RESET_REACH = 1 << 20
_LITTLE = 2 << 10  # remembered where no message is under way


class Connection:
    """`first` is who sent SYN, as far as it was seen."""

    __deletable__ = ("pairer", "sides")  # for mypyc: see `release`

    def __init__(self, host: Host, first: str, second: str, link: str, *, midstream: bool) -> None:
        settings = host.settings
        self._host = host
        self.link = link
        self.midstream = midstream
        self.syn_seen = False
        self.closed = False
        self.was_reset = False
        self.replaced = False  # another one by now, whose beginning was not seen
        self.little = False  # only little is remembered, as no message is under way
        self.ended_by = ""  # what ended it, if neither FIN nor RST did; see `ends`
        self.became = ""  # what became of it: recorded, or why not so far
        self.requests_only = False  # a mirror: answers pass elsewhere
        self.last_ns = 0
        self.first_seq = 0
        self.id = b""  # given when the first exchange asks for it
        self.exchange_ids: ExchangeIds | None = None
        self.session = b""  # of the exchange before, and the fields that told
        self.session_low = b""
        self.other: Other | None = None  # what it speaks that is no HTTP
        self.upgrade = ""  # and what it is after an upgrade
        self.keys: tuple[bytes, ...] = ()  # that its packets are found by
        self.handshake = b""  # five-tuple and first sequence number
        self.pairer = Pairer(self, settings.max_pipelined, midstream=midstream)
        self.sides = (self._side(first, settings), self._side(second, settings))
        self.sides[0].other, self.sides[1].other = self.sides[1], self.sides[0]

    def _side(self, address: str, settings: CaptureSettings) -> Side:
        stream = Stream(self._host.drop_bytes, settings.max_connection_bytes, settings.history_bytes)
        reader = Reader(self.pairer, settings.max_head_bytes, settings.max_body_bytes, midstream=self.midstream)
        return Side(self, address, stream, reader)

    # -- what the pairer tells

    def pair(self, pair: Pair) -> None:
        self._host.pair(self, pair)
        if pair.response is not None and pair.response.status == 101:
            self.upgrade = upgraded_to(pair.response.low)
        if not self.pairer.open:
            for side in self.sides:
                message = pair.request if side.reader.kind is REQUEST else pair.response
                if side.reader.message is None and message is not None:
                    side.stream.forget(message.end_offset)  # what follows may be of the next one

    def note_other(self, protocol: str, port: str, name: str) -> None:
        self._host.other(protocol, port, name)

    def junk(self, reason: str, count: int) -> None:
        if reason in ASKED:
            self.other = self.other or Other(self)
            reason = self.other.reason(reason)
        self._host.drop_bytes(reason, count)
        if not self.little and reason != "blank" and not self.pairer.open and not self.pairer.orphans:
            self.little = True
            for side in self.sides:
                side.stream.remember_at_most(min(_LITTLE, self._host.settings.history_bytes))

    def keep(self, pair: Pair | None, count: int) -> bool:
        return self._host.keep(pair, count)

    def head(self) -> None:
        self._host.head()
        if self.little:
            self.little = False
            for side in self.sides:
                side.stream.remember_at_most(self._host.settings.history_bytes)

    # -- packets

    def unsettle(self) -> None:
        """What was known of the next segments does not hold any more; see `Side.step`."""
        self._host.busy[self] = None
        for side in self.sides:
            side.expected, side.step = -1, WHOEVER

    def segment(self, side: Side, sequence: int, ack: int, flags: int, data: bytes, wire_len: int, ts_ns: int) -> None:
        """A TCP segment. SYNs have been looked at by the owner: streams that they start are started."""
        stream, other = side.stream, side.other
        side.expected = other.expected = -1
        side.step = other.step = WHOEVER
        self._host.busy[self] = None
        self.last_ns = ts_ns
        side.seen = True
        received = -1
        if flags & 16 and ack:  # 0 is what tools write that make packets: it says nothing
            received = self._acknowledged(side, other, ack, sequence)
        if wire_len:
            if flags & 2:
                sequence = (sequence + 1) & 0xFFFFFFFF
            if not stream.started:
                stream.start(sequence, syn=False)
            offset = stream.in_order(sequence, data, wire_len)
            if offset < 0:
                if self._far(side, sequence, wire_len, ts_ns):
                    return
                pieces = stream.segment(sequence, data, wire_len, ts_ns, received)
                if pieces:
                    self.deliver(side, pieces)
            elif side.held or other.held or received > other.stream.next:
                self.deliver(side, [(offset, data, wire_len, ts_ns, received)])
            else:
                side.reader.feed(offset, data, ts_ns, received)
            if stream.waiting:
                self._host.holes(self)
        if flags & 5:
            if flags & 4:
                self._reset(side, sequence, ts_ns)
            elif stream.started:
                stream.finish_at(stream.offset_of(sequence) + wire_len)
                asks = side.reader.kind is REQUEST or (self.syn_seen and side is self.sides[0])
                if asks and other.stream.end < 0:
                    self.pairer.losses.received, self.pairer.losses.asked = other.stream.acked, stream.end
        if stream.end >= 0 and not side.ended and stream.next >= stream.end:
            self._end(side, ts_ns)

    def _acknowledged(self, side: Side, other: Side, ack: int, sequence: int) -> int:
        theirs = other.stream
        if not theirs.started:
            if not self.syn_seen:
                return ack  # as offsets are going to count: see `Stream.start`
            if side.stream.next or side.stream.waiting or side.stream.offset_of(sequence) > 0:
                return -1
            theirs.start(ack - 1, syn=True)  # the handshake: nothing but SYN can have been acknowledged
        offset = theirs.offset_of(ack)
        if offset > theirs.acked and (offset - theirs.next < REACH or offset - theirs.acked < REACH):
            theirs.acked = offset
            if offset > theirs.next + 1 and other.seen:
                self._host.holes(self)
        return offset

    def _far(self, side: Side, sequence: int, size: int, ts_ns: int) -> bool:
        """Whether a segment is too far from where its stream stands to be of it; then it is counted, and not taken.

        Where another one goes on from it, the addresses are those of a new connection by now."""
        stream = side.stream
        ahead = stream.offset_of(sequence) - stream.next
        if -REACH < ahead < REACH or (stream.acked >= 0 and abs(stream.next + ahead - stream.acked) < REACH):
            return False
        self._host.drop_bytes("out_of_window", size)
        goes_on = side.far == sequence
        side.far = (sequence + size) & 0xFFFFFFFF
        if goes_on:
            self.replaced, self.ended_by = True, "replaced"
            self.close(ts_ns, closed=False)
        return True

    def data(self, side: Side, data: bytes, ts_ns: int) -> None:
        """Bytes of a stream that arrives whole (a proxy)."""
        stream = side.stream
        self._host.busy[self] = None
        self.last_ns = ts_ns
        offset = stream.next
        self.deliver(side, stream.segment(offset & 0xFFFFFFFF, data, len(data), ts_ns, side.other.stream.next))

    def end(self, side: Side, ts_ns: int) -> None:
        if not side.ended:
            self._host.busy[self] = None
            side.stream.end = side.stream.next
            self._end(side, ts_ns)

    # -- delivery

    def deliver(self, side: Side, pieces: list[Piece]) -> None:
        other = side.other
        early = 0 if side.held else next((i for i, p in enumerate(pieces) if self._early(side, other, p)), len(pieces))
        if early < len(pieces):
            self._read(side, pieces[:early])
            pieces = pieces[early:]
            if side.held is NOTHING_HELD:
                side.held = deque()
            side.held.extend(pieces)
            side.held_bytes += sum(piece[2] for piece in pieces if piece[1] is not None)
            self._host.holes(self)
            if side.held_bytes + PIECE_COST * len(side.held) > self._host.settings.max_connection_bytes:
                self._give_up(other, pieces[-1][3])
            return
        self._read(side, pieces)
        if other.held:
            self._release(other)

    def _early(self, side: Side, other: Side, piece: Piece) -> bool:
        """Whether it answers bytes that have not been seen yet. Only a server's may, or both would wait."""
        theirs = other.stream
        # One more may be the FIN; not where a message is under way: then it is its last byte.
        under_way = other.reader.message is not None or bool(other.reader.buffer)
        if piece[4] - theirs.next <= (0 if under_way else 1) or not theirs.started or not other.seen or other.ended:
            return False
        kind = side.reader.kind
        if kind is UNKNOWN:
            return other.reader.kind is REQUEST or (self.syn_seen and side is self.sides[1])
        return kind is RESPONSE

    def _release(self, side: Side) -> None:
        held = side.held
        while held and not self._early(side, side.other, held[0]):
            piece = held.popleft()
            if piece[1] is not None:
                side.held_bytes -= piece[2]
            self._read(side, [piece])

    def _read(self, side: Side, pieces: list[Piece]) -> None:
        reader = side.reader
        for offset, data, length, ts_ns, ack in pieces:
            if data is not None:
                reader.feed(offset, data, ts_ns, ack)
            elif length:
                self._host.gap(length)
                fresh, head = not reader.buffer, reader.gap(offset, length, ts_ns)
                if reader.lost:
                    self.pairer.lost_answers(reader, head=head, whole=head and fresh)
            else:
                self._read_end(side, ts_ns, closed=True)

    def _end(self, side: Side, ts_ns: int) -> None:
        side.ended = True
        if side.held:
            side.held.append((side.stream.next, None, 0, ts_ns, -1))
        else:
            self._read_end(side, ts_ns, closed=True)
        if side.other.held:
            self._release(side.other)
        if side.other.ended and not side.held and not side.other.held:
            self.close(ts_ns, closed=True)

    def _read_end(self, side: Side, ts_ns: int, *, closed: bool) -> None:
        side.reader.end(ts_ns, closed=closed)
        if closed and side.reader.kind is RESPONSE:
            self.pairer.no_more_answers()

    def _reset(self, side: Side, sequence: int, ts_ns: int) -> None:
        """RFC 5961 section 3: one that is not in the window is of another connection, or forged."""
        stream = side.stream
        if stream.started:
            offset = stream.offset_of(sequence)
            oldest = stream.next - _RESET_REACH if stream.acked < 0 else min(stream.acked, stream.next)
            if not oldest <= offset < stream.next + _RESET_REACH:
                self._host.note("resets_out_of_window")
                return
            if offset > stream.next:
                side.reset = (offset, stream.next, ts_ns)
                self._host.holes(self)
                return
        self.was_reset = True
        self.close(ts_ns, closed=True)

    def _settle_reset(self, side: Side, now_ns: int, force: bool) -> bool:
        """Believe a reset that was ahead, or not. Whether that waits."""
        assert side.reset is not None
        offset, stood, since_ns = side.reset
        at = side.stream.next
        if at < offset and not force and now_ns - since_ns <= self._host.settings.hole_ns:
            return True
        if at > offset or (at != stood and at != offset and force):
            side.reset = None
            self._host.note("resets_out_of_window")
        elif at != stood and at != offset:
            side.reset = (offset, at, now_ns)  # its sender went on, and may come to where it stands
            return True
        else:
            self.was_reset = True
            self.close(now_ns, closed=True)
        return False

    # -- time

    def sweep(self, now_ns: int, *, force: bool = False) -> bool:
        """Give up holes that are too old. Whether it still waits."""
        self.unsettle()
        settings = self._host.settings
        waits = False
        for side in self.sides:
            stream = side.stream
            while stream.waiting or side.lacks:
                acked = stream.acked >= (stream.waiting[0][0] if stream.waiting else stream.acked)
                patience = settings.acked_hole_ns if acked else settings.hole_ns
                if not force and stream.hole_age_ns(now_ns) <= patience:
                    waits = True
                    break
                if not self._give_up(side, now_ns):
                    break
            if side.reset is not None and not self.closed:
                waits = self._settle_reset(side, now_ns, force) or waits
        return waits or any(side.held for side in self.sides)

    def _give_up(self, side: Side, ts_ns: int) -> bool:
        stream = side.stream
        pieces = stream.give_up(to=stream.acked, ts_ns=ts_ns)
        if pieces:
            self.deliver(side, pieces)
        if side.other.held:
            self._release(side.other)
        if stream.end >= 0 and not side.ended and stream.next >= stream.end:
            self._end(side, ts_ns)
        return bool(pieces)

    def close(self, ts_ns: int, *, closed: bool) -> None:
        """It is over: by FIN or RST (`closed`), or because the recording or our patience ended."""
        if self.closed:
            return
        self.closed = True
        self.unsettle()
        for side in self.sides:
            pieces = side.stream.flush(ts_ns)
            if side.lacks:
                pieces += side.stream.give_up(to=side.stream.acked, ts_ns=ts_ns)
            if pieces:
                self.deliver(side, pieces)
        for side in self.sides:
            held = list(side.held)
            side.held.clear()
            side.held_bytes = 0
            self._read(side, held)
        for side in self.sides:
            side.reader.end(ts_ns, closed=closed and side.ended)  # a reset is no end of a body (RFC 9112 section 8)
            side.ended = True
        self.pairer.finish()
        finish(self)
        for side in self.sides:
            side.stream.forget()
        self._host.over(self)

    def release(self) -> None:
        """Nobody asks for it any more: without its cycles, its memory is free at once."""
        for side in self.sides:
            del side.connection, side.other
        self.pairer.release()
        self.other = None
        del self.sides, self.pairer

    # -- for the account

    def in_flight(self) -> tuple[int, int]:
        """(payload bytes, messages) that wait here."""
        first, second = self.sides
        count = first.stream.waiting_bytes + first.held_bytes + len(first.reader.buffer)
        count += second.stream.waiting_bytes + second.held_bytes + len(second.reader.buffer)
        messages = self.pairer.messages()
        return count + sum(message.wire_bytes for message in messages), len(messages)

    @property
    def half_open(self) -> bool:
        """Whether not a byte has passed."""
        return not any(side.reader.next or side.stream.waiting or side.held for side in self.sides)

    @property
    def waiting_cost(self) -> int:
        """Bytes of memory taken by what waits for a hole to be filled."""
        return sum(s.stream.waiting_cost + s.held_bytes + PIECE_COST * len(s.held) for s in self.sides)

    @property
    def memory_cost(self) -> int:
        """Bytes of memory taken by what waits, is remembered, or is known of messages, without their bodies."""
        count = self.waiting_cost + sum(s.stream.history_bytes + s.reader.waiting_bytes for s in self.sides)
        for message in self.pairer.messages():
            count += len(message.head) + len(message.trailers) + PIECE_COST * (2 + len(message.parts))
        return count

    def forget(self) -> None:
        """There is no memory: what was seen cannot be compared any more."""
        self.unsettle()
        for side in self.sides:
            side.stream.remember_at_most(0)
        self.little = True
