"""One direction of a TCP connection: segments in, pieces of the stream in order out.

No I/O, no clock. Offsets are 64 bits wide and count from the initial sequence number (offset 0 is the first byte
after SYN), or, where recording began inside a connection, from sequence number 0. Out come pieces

    (offset, data, length, ts_ns, ack)      data is None where `length` bytes are missing

without overlaps and without holes between them. The first byte seen at an offset holds; where a later segment
brings different ones, the range is in `conflicts`, and whoever used it is ambiguous: the receiver may have taken
the others.

Every payload byte that is offered is counted once: it comes out, waits (`waiting_bytes`), or is dropped by
reason: duplicate, keepalive, snaplen, after_close, too_late (for what had been given up).

Bounded: what waits by `max_waiting`, what is remembered for comparing by `max_history`, both with the overhead of each
piece. Where a bound is reached, the first hole is given up, or the oldest bytes are forgotten.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Final

Piece = tuple[int, bytes | None, int, int, int]

_MASK = 0xFFFFFFFF
_HALF = 0x80000000
_MAX_CONFLICTS = 64
_MAX_GIVEN_UP = 16
#: What a piece that waits, or is remembered, takes in memory besides its bytes: so many tiny segments are as many.
PIECE_COST: Final = 160


def _end(piece: Piece) -> int:
    return piece[0] + piece[2]


class Stream:
    """See the module. `drop(reason, bytes)` is called for what does not come out."""

    __slots__ = (
        "_drop", "_given_up", "_hole_at", "_hole_ns", "_max_waiting", "acked", "conflicts", "end", "first", "history",
        "history_bytes", "max_history", "next", "origin", "started", "waiting", "waiting_bytes",
    )  # fmt: skip

    def __init__(self, drop: Callable[[str, int], None], max_waiting: int, max_history: int) -> None:
        self.started = False
        self.origin = 0  # sequence number of offset 0
        self.next = 0  # offset of the next byte to come out
        self.first = 0  # offset of the first one that was seen
        self.end = -1  # offset of the end of the stream, once FIN was seen
        self.acked = -1  # offset up to which the peer has acknowledged
        self._given_up: tuple[tuple[int, int], ...] = ()  # the last holes
        self._hole_at = -1
        self._hole_ns = 0
        self.waiting: list[Piece] = []  # by offset, never overlapping
        self.waiting_bytes = 0
        self.conflicts: list[tuple[int, int]] = []
        self._drop = drop
        self._max_waiting = max_waiting
        self.max_history = max_history
        #: What came out, for comparing: (offset, bytes). An empty deque takes 600 bytes more, of each of 20,000.
        self.history: list[tuple[int, bytes]] = []
        self.history_bytes = 0

    def start(self, sequence: int, *, syn: bool) -> None:
        """Say where the stream begins: at a SYN, or in the middle."""
        self.started = True
        if syn:
            self.origin, self.next = (sequence + 1) & _MASK, 0
        else:
            self.origin, self.next = 0, sequence
            self.first = sequence

    def offset_of(self, sequence: int) -> int:
        """The offset of a sequence number: the one nearest to where the stream stands."""
        return self.next + (((sequence - self.origin - self.next + _HALF) & _MASK) - _HALF)

    def in_order(self, sequence: int, data: bytes, wire_len: int) -> int:
        """Take a segment that is the next one, whole, with nothing waiting: its offset. Else -1: nothing is taken."""
        offset = self.next
        if (sequence - self.origin - offset) & _MASK or self.waiting or len(data) != wire_len or self.end >= 0:
            return -1
        self.take(data, wire_len)
        return offset

    def take(self, data: bytes, size: int) -> None:
        """The next `size` bytes, when that is known, and nothing waits."""
        self.history.append((self.next, data))
        self.next += size
        self.history_bytes += size + PIECE_COST
        if self.history_bytes > self.max_history:
            self.trim_history()

    def take_all(self, parts: list[bytes], size: int) -> None:
        """The same for parts of `size` bytes each that follow each other."""
        begin = self.next
        self.next = begin + len(parts) * size
        self.history.extend(zip(range(begin, self.next, size), parts, strict=True))
        self.history_bytes += len(parts) * (size + PIECE_COST)
        if self.history_bytes > self.max_history:
            self.trim_history()

    def segment(self, sequence: int, data: bytes, wire_len: int, ts_ns: int, ack: int) -> list[Piece]:
        """Take a segment of `wire_len` payload bytes, of which `data` was captured. What can come out now."""
        offset = self.in_order(sequence, data, wire_len)
        size = len(data)
        if offset >= 0:
            return [(offset, data, size, ts_ns, ack)]
        offset = self.next + (((sequence - self.origin - self.next + _HALF) & _MASK) - _HALF)
        if size < wire_len:
            self._drop("snaplen", wire_len - size)
        stop = offset + wire_len
        if self.end >= 0 and stop > self.end:
            kept = max(0, self.end - offset)
            if size > kept:
                self._drop("after_close", size - kept)
                data = data[:kept]
            stop = self.end
        if offset < self.next:
            data = self._trim(offset, data)
            offset = self.next
        if stop <= offset:
            return []
        self._insert(offset, data, stop - offset, ts_ns, ack)
        out = self._drain()
        while self.waiting and self.waiting_cost > self._max_waiting:
            given_up = self.give_up()
            if not given_up:
                break
            out += given_up
        return out

    @property
    def waiting_cost(self) -> int:
        """Bytes of memory that what waits takes."""
        return self.waiting_bytes + PIECE_COST * len(self.waiting)

    def _trim(self, offset: int, data: bytes) -> bytes:
        """What of `data` is new; what has come out already is compared with what is remembered."""
        if not data:
            return data
        if len(data) == 1 and offset == self.next - 1 and not 0 <= self.acked < self.next:
            # A probe's byte may be garbage (RFC 1122 section 4.2.3.6). None is sent while data are not acknowledged.
            self._drop("keepalive", 1)
            return b""
        old = min(self.next - offset, len(data))
        for start, seen in reversed(self.history):
            if start + len(seen) <= offset:
                break
            low, high = max(start, offset), min(start + len(seen), offset + old)
            if low < high:
                self._compare(low, seen[low - start : high - start], data[low - offset : high - offset])
        unseen = min(max(self.first - offset, 0), old)  # sent before what was met first, and here after it
        if unseen:
            self._drop("midstream", unseen)
        late = sum(max(0, min(high, offset + old) - max(low, offset)) for low, high in self._given_up)
        if late:
            self._drop("too_late", late)
        if old > unseen + late:
            self._drop("duplicate", old - unseen - late)
        return data[old:]

    def _insert(self, offset: int, data: bytes, wire_len: int, ts_ns: int, ack: int) -> None:
        """Put in what no waiting piece covers; compare the rest."""
        end, size = offset + wire_len, len(data)
        at = offset
        fresh: list[Piece] = []
        dropped = 0
        waiting = self.waiting
        first = bisect_left(waiting, offset, key=_end)
        last = first
        while last < len(waiting) and waiting[last][0] < end:
            start, seen, length, _, _ = waiting[last]
            last += 1
            stop = start + length
            if stop <= at:
                continue
            if start > at:
                self._add(fresh, at, start, offset, data, ts_ns, ack)
            low, high = max(start, at), min(stop, offset + size)
            if low < high:
                dropped += high - low
                if seen is not None:
                    self._compare(low, seen[low - start : high - start], data[low - offset : high - offset])
            fresh.append(waiting[last - 1])
            at = max(at, stop)
        if at < end:
            self._add(fresh, at, end, offset, data, ts_ns, ack)
        if dropped:
            self._drop("duplicate", dropped)
        while first < last and _end(waiting[first]) <= offset:
            first += 1
        waiting[first:last] = fresh

    def _add(self, fresh: list[Piece], low: int, high: int, offset: int, data: bytes, ts_ns: int, ack: int) -> None:
        known = offset + len(data)
        if low < known:
            stop = min(high, known)
            fresh.append((low, data[low - offset : stop - offset], stop - low, ts_ns, ack))
            self.waiting_bytes += stop - low
            low = stop
        if low < high:  # on the wire, not in the capture
            fresh.append((low, None, high - low, ts_ns, ack))

    def _drain(self) -> list[Piece]:
        out: list[Piece] = []
        waiting = self.waiting
        for piece in waiting:
            if piece[0] != self.next:
                break
            self.next += piece[2]
            if piece[1] is not None:
                self.waiting_bytes -= piece[2]
                self._remember(piece[0], piece[1])
            out.append(piece)
        del waiting[: len(out)]
        return out

    def finish_at(self, offset: int) -> None:
        """The sender said that nothing follows this offset. Not believed where more has been seen; of two that say so
        the one that is next."""
        if (self.end >= 0 and offset != self.next) or offset < self.next:
            return
        if not (self.waiting and _end(self.waiting[-1]) > offset):
            self.end = offset

    def hole_age_ns(self, now_ns: int) -> int:
        """How long the stream has stood at its hole, as far as this has been asked before."""
        if self._hole_at != self.next:
            self._hole_at, self._hole_ns = self.next, now_ns
        return now_ns - self._hole_ns

    @property
    def missing_before(self) -> int:
        """The offset up to which bytes are known to have been sent, and have not been seen."""
        return self.waiting[0][0] if self.waiting else self.acked

    def give_up(self, *, to: int | None = None, ts_ns: int = 0) -> list[Piece]:
        """Take the first hole as lost: the piece that says so, and all that can come out after it.

        `to` bounds the hole where nothing waits behind it (what the peer acknowledged).
        """
        target = self.waiting[0][0] if self.waiting else (to if to is not None else self.next)
        if self.end >= 0:
            target = min(target, self.end)
        if target <= self.next:
            return []
        self._given_up = (*self._given_up[1 - _MAX_GIVEN_UP :], (self.next, target))
        when = self.waiting[0][3] if self.waiting else ts_ns
        gap: Piece = (self.next, None, target - self.next, when, -1)
        self.next = target
        return [gap, *self._drain()]

    def flush(self, ts_ns: int = 0) -> list[Piece]:
        """Everything that waits, with the holes as lost: there is nothing more to come."""
        out: list[Piece] = []
        while self.waiting:
            out += self.give_up(ts_ns=ts_ns)
        return out

    # -- what was seen, for comparing

    def _remember(self, offset: int, data: bytes) -> None:
        self.history.append((offset, data))
        self.history_bytes += len(data) + PIECE_COST
        if self.history_bytes > self.max_history:
            self.trim_history()

    def trim_history(self) -> None:
        """An eighth more than has to go: not again with the next segment."""
        most = self.max_history - (self.max_history >> 3)
        count, total = 0, self.history_bytes
        for _, data in self.history:
            if total <= most:
                break
            total -= len(data) + PIECE_COST
            count += 1
        self.history_bytes = total
        del self.history[:count]

    def remember_at_most(self, size: int) -> None:
        """From now on so much is remembered."""
        self.max_history = size
        if self.history_bytes > size:
            self.trim_history()

    def forget(self, before: int = -1) -> None:
        """What came out before this offset cannot be called ambiguous any more: its exchange is gone. Default: all."""
        before = self.next if before < 0 else before
        history, kept = self.history, 0
        while kept < len(history) and history[-1 - kept][0] + len(history[-1 - kept][1]) > before:
            kept += 1
        if len(history) > kept:
            del history[: len(history) - kept]
            self.history_bytes = sum(len(data) + PIECE_COST for _, data in history)
        if self.conflicts:
            self.conflicts = [pair for pair in self.conflicts if pair[1] > before]

    def _compare(self, low: int, one: bytes, other: bytes) -> None:
        """Note the range from the first byte that differs to the last one."""
        if one == other:
            return
        difference = int.from_bytes(one, "big") ^ int.from_bytes(other, "big")
        high = low + len(one) - ((difference & -difference).bit_length() - 1) // 8
        low += len(one) - (difference.bit_length() + 7) // 8
        if len(self.conflicts) < _MAX_CONFLICTS:
            self.conflicts.append((low, high))
        else:
            first, last = self.conflicts[-1]
            self.conflicts[-1] = (min(first, low), max(last, high))

    def conflicting(self, low: int, high: int) -> bool:
        """Whether bytes in [low, high) were seen with different values."""
        return any(start < high and stop > low for start, stop in self.conflicts)
