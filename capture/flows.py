"""Which connection a segment belongs to.

A connection is found by the key of a direction: addresses, ports, and the link (VLAN tags, VNI), as equal addresses
in two networks are two connections. But the same handshake (addresses and initial sequence number) under another
tag is one connection seen at two places: its other direction, or a copy.
"""

from __future__ import annotations

from collections.abc import Callable

from capture.connection import Connection
from capture.decode import peers
from capture.ends import REPLACED
from capture.segment import Segment
from capture.side import Side

_SYN, _RST, _ACK = 2, 4, 16
_LATE_SYN = 1 << 20  # a SYN that was captured after some of its data
_MASK = 0xFFFFFFFF

Open = Callable[[str, str, str, bool], Connection]  # first, second, link, midstream


class Flows:
    """`side_of` is the map from keys to directions; look there before asking `place`."""

    __slots__ = ("_copies", "_handshakes", "_open", "side_of")

    def __init__(self, open: Open) -> None:
        self.side_of: dict[bytes, Side] = {}
        self._handshakes: dict[bytes, Connection] = {}  # five-tuple and first sequence number, whatever the link
        self._copies: dict[bytes, Connection] = {}  # keys that are seen once more under another tag
        self._open = open

    def is_copy(self, key: bytes) -> bool:
        return key in self._copies

    def place(
        self,
        key: bytes,
        found: Segment | None,
        version: int,
        sequence: int,
        ack: int,
        flags: int,
        size: int,
        ts_ns: int,
    ) -> Side | None:
        """The direction of a segment that is a SYN, or of no open connection; a new one where there is need.

        `found` is None for plain IPv4. None: nothing to remember: a copy, or of a connection that is over.
        """
        side = self.side_of.get(key)
        if flags & _SYN and not flags & _RST:
            return self._handshake(side, key, found, version, sequence, ack, flags, ts_ns)
        if side is not None and not side.connection.closed:
            return side
        if not size or flags & _RST or (side is None and key in self._copies):
            return None  # nothing is known of it and nothing is in it: counted, not remembered
        if side is not None:
            stream = side.stream
            ended = not side.connection.was_reset or (stream.started and stream.offset_of(sequence) < stream.next)
            if ended and not side.connection.replaced:
                side.connection.last_ns = ts_ns  # sent again, by who does not know that it is over
                return None
            # It goes on after a reset that its receiver did not believe, or after we had let it go.
        side = self._connect(key, found, version, answers=False, midstream=True)
        side.connection.first_seq = sequence
        return side

    def _handshake(
        self,
        side: Side | None,
        key: bytes,
        found: Segment | None,
        version: int,
        sequence: int,
        ack: int,
        flags: int,
        ts_ns: int,
    ) -> Side | None:
        answers = bool(flags & _ACK)
        start = (sequence + 1) & _MASK
        if side is not None:
            connection, stream = side.connection, side.stream
            if stream.started and stream.origin == start and connection.syn_seen:
                return None if connection.closed else side  # once more
            if not connection.closed:
                if answers and (not stream.started or side.other.stream.origin == ack):
                    if not stream.started:
                        stream.start(sequence, syn=True)
                    return side  # else it answers a SYN that was not seen
                behind = stream.next - stream.offset_of(start) if stream.started else -1
                if connection.midstream and 0 <= behind < _LATE_SYN:
                    return side
                connection.ended_by = REPLACED  # the port is used again
                connection.close(ts_ns, closed=False)
        first_seq = (ack - 1) & _MASK if answers else sequence
        reverse = _reverse(key, found)
        name = (reverse if answers else key)[: 36 if version == 6 else 12] + first_seq.to_bytes(4, "big")
        same = self._handshakes.get(name)
        if same is not None and (key not in same.keys or key in self._copies):
            return self._same(same, key, reverse, sequence, answers)
        side = self._connect(key, found, version, answers=answers, midstream=False)
        connection = side.connection
        connection.syn_seen = True
        connection.first_seq = first_seq
        connection.handshake = name
        self._handshakes[name] = connection
        side.stream.start(sequence, syn=True)
        return side

    def _same(self, same: Connection, key: bytes, reverse: bytes, sequence: int, answers: bool) -> Side | None:
        side = same.sides[1]
        if answers and not side.seen and not same.closed and key not in self._copies:
            same.keys += (key,)
            self.side_of[key] = side
            if not side.stream.started:
                side.stream.start(sequence, syn=True)
            return side
        self._copies[key] = self._copies[reverse] = same
        same.keys += (key, reverse)
        return None

    def _connect(self, key: bytes, found: Segment | None, version: int, *, answers: bool, midstream: bool) -> Side:
        reverse = _reverse(key, found)
        if answers:
            key, reverse = reverse, key
        source, target, link = peers(key, version)
        connection = self._open(source, target, link, midstream)
        connection.keys = (key, reverse)
        self.side_of[key], self.side_of[reverse] = connection.sides
        return connection.sides[1 if answers else 0]

    def forget(self, connection: Connection) -> None:
        """Its late packets are not waited for any more."""
        for key in connection.keys:
            side = self.side_of.get(key)
            if side is not None and side.connection is connection:
                del self.side_of[key]
            if self._copies.get(key) is connection:
                del self._copies[key]
        if self._handshakes.get(connection.handshake) is connection:
            del self._handshakes[connection.handshake]
        if connection.keys:
            connection.release()


def _reverse(key: bytes, found: Segment | None) -> bytes:
    return found.reverse if found is not None else key[4:8] + key[:4] + key[10:12] + key[8:10]
