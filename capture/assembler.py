"""The one reassembler that every source feeds: packets, or byte streams -> exchanges.

It keeps in memory: what is known of a connection, what is open of messages, and what waits for holes to be
filled; all bounded by the settings. What is shed is whole exchanges, and counted.
"""

from __future__ import annotations

import heapq
import struct
from collections import deque
from collections.abc import Callable
from typing import Protocol

from capture.connection import Connection, Side
from capture.decode import Fragment, Segment, decode
from capture.exchange import exchange_of
from capture.flows import Flows
from capture.fragments import Fragments
from capture.frames import PacketClock
from capture.ledgers import Ledgers
from capture.message import REQUEST, RESPONSE
from capture.pair import Pair
from capture.ready import Ready
from capture.session import SessionFinder
from capture.settings import CaptureSettings
from wire.account import Account
from wire.ids import connection_id
from wire.records import Exchange

_SWEEP_NS = 50_000_000
_TCP = struct.Struct(">IIBB").unpack_from
_HEADS = struct.Struct(">HHH").unpack_from
_SYN = 2


class Masker(Protocol):
    """What must not be written is taken out here; see `mask`."""

    counts: dict[str, int]  # what was masked, by kind, so far

    def exchange(self, exchange: Exchange) -> Exchange: ...


class Assembler:
    """Not for use by several threads. Never raises on what packets hold."""

    def __init__(
        self, recording_id: str, settings: CaptureSettings, masker: Masker | None, key: bytes, *, host: str = ""
    ) -> None:
        """Raises ConfigError for sources of sessions that are not known."""
        self.recording_id = recording_id
        self.settings = settings
        self.host = host
        self._masker = masker
        self._sessions = SessionFinder(key, settings.sessions)
        self._ledgers = Ledgers()
        self._packets = self._ledgers.packets
        self._bytes = self._ledgers.bytes
        self._messages = self._ledgers.messages
        self.drop_bytes = self._ledgers.drop_bytes
        self._flows = Flows(self._opened)
        self._sides = self._flows.side_of
        self._open: dict[Connection, None] = {}
        self._closed: deque[tuple[int, Connection]] = deque()
        self._waiting: dict[Connection, None] = {}
        self._fragments = Fragments()
        self._clock = PacketClock()
        self._next_sweep = 0
        self._next_idle = 0
        self._kept = 0  # body bytes in memory
        self.ready = Ready(self._ledgers)  # complete, and not yet taken
        #: Asked with each request's head: why its exchange is not wanted (a reason of `INTENTIONAL`), "" to keep it.
        self.leave_out: Callable[[bytes], str] | None = None

    # -- results

    @property
    def account(self) -> Account:
        """The account so far; what waits is counted when it is asked for."""
        count, messages = self.ready.wire_bytes, self.ready.messages
        for connection in self._open:
            waiting = connection.in_flight()
            count += waiting[0]
            messages += waiting[1]
        self._bytes.in_flight = count
        self._messages.in_flight = messages
        self._packets.in_flight = self._fragments.held
        return self._ledgers.account

    @property
    def connections(self) -> int:
        return len(self._open)

    @property
    def in_flight_bytes(self) -> int:
        return sum(connection.in_flight()[0] for connection in self._open)

    @property
    def now_ns(self) -> int:
        """The latest time that packets told."""
        return self._clock.now_ns

    def take(self) -> list[Exchange]:
        """What is complete since the last time; it is emitted, for the account."""
        if self._masker is not None:
            self.account.notes.update({f"masked.{what}": count for what, count in self._masker.counts.items()})
        return self.ready.take()

    def finish(self) -> list[Exchange]:
        """End everything that is open, and take it."""
        self.close()
        return self.take()

    def close(self) -> None:
        """End everything that is open; what it gives is in `ready`."""
        for connection in list(self._waiting):
            connection.sweep(self._clock.now_ns, force=True)
        for connection in list(self._open):
            connection.close(self._clock.now_ns, closed=False)
        self._fragments.finish()
        self._count_fragments()

    # -- packets

    def kernel_dropped(self, count: int) -> None:
        self._packets.seen += count
        self._ledgers.drop_packet("kernel", count)

    def packet(self, ts_ns: int, data: bytes, wire_len: int, linktype: int = 1, interface: str = "") -> None:
        self._packets.seen += 1
        if ts_ns > self._clock.now_ns:
            self._clock.now_ns = ts_ns
            if ts_ns >= self._next_sweep:
                self.expire(ts_ns)
        # Nearly all packets are Ethernet, IPv4 without options, TCP, no fragment: those take no detour.
        if (
            linktype == 1
            and len(data) >= 54
            and data[12:15] == b"\x08\x00\x45"
            and data[23] == 6
            and not (data[20] & 0x3F or data[21])
        ):
            key = data[26:38]
            length = data[16] << 8 | data[17]
            end = 14 + length if length else wire_len
            self._segment(key, None, data, 34, end, wire_len, ts_ns, interface, 4)
            return
        found = decode(linktype, data)
        if isinstance(found, Fragment):
            whole = self._fragments.add(found, ts_ns)
            if self._fragments.held == 0 or whole is None:
                self._count_fragments()
            if whole is None:
                return
            packet, frames = whole
            found = decode(101, packet, found.link)
            wire_len = len(packet)
            if isinstance(found, Fragment):
                found = "fragment"
            if isinstance(found, str):
                self._ledgers.drop_packet(found, frames)
                return
            self._packets.emitted += frames - 1
        if isinstance(found, str):
            self._ledgers.drop_packet(found)
            return
        end = found.end if found.end > len(found.data) else min(found.end, len(found.data))
        self._segment(found.key, found, found.data, found.tcp_at, end, wire_len, ts_ns, interface, found.version)

    def _segment(
        self,
        key: bytes,
        found: Segment | None,
        data: bytes,
        at: int,
        end: int,
        wire_len: int,
        ts_ns: int,
        interface: str,
        version: int,
    ) -> None:
        if len(data) < at + 14:
            self._ledgers.drop_packet("cut")
            return
        sequence, ack, header, flags = _TCP(data, at + 4)
        body = at + (header >> 4) * 4
        if end > wire_len:
            end = max(wire_len, len(data))
        if header < 0x50 or body > end:
            self._ledgers.drop_packet("malformed")
            return
        size = end - body
        side = self._sides.get(key)
        if side is None or side.connection.closed or flags & _SYN:
            side = self._flows.place(key, found, version, sequence, ack, flags, size, ts_ns)
            if side is None:
                if self._flows.is_copy(key):
                    self._ledgers.drop_packet("other_link")
                    return
                known = self._sides.get(key)
                if known is not None and known.interface not in (None, interface):
                    self._ledgers.drop_packet("other_interface")
                    return
                self._packets.emitted += 1
                if size:
                    self._bytes.seen += size
                    self.drop_bytes("after_close", size)
                return
        if side.interface != interface:
            if side.interface is not None:
                self._ledgers.drop_packet("other_interface")
                return
            side.interface = interface
        self._packets.emitted += 1
        self._bytes.seen += size
        side.connection.segment(side, sequence, ack, flags, data[body:end] if size else b"", size, ts_ns)

    def _opened(self, first: str, second: str, link: str, midstream: bool) -> Connection:
        if len(self._open) >= self.settings.max_connections:
            oldest = heapq.nsmallest(max(1, len(self._open) // 100), self._open, key=lambda c: c.last_ns)
            for connection in oldest:
                connection.close(self._clock.now_ns, closed=False)
            self._ledgers.account.note("evicted_connections", len(oldest))
        connection = Connection(self, first, second, link, midstream=midstream)
        self._open[connection] = None
        return connection

    # -- streams

    def connection_opened(self, client: str, server: str, ts_ns: int, interface: str = "") -> Channel:
        """A connection whose bytes arrive in order. Addresses are `ip:port`."""
        self._clock.advance(ts_ns)
        connection = self._opened(client, server, "", False)
        connection.first_seq = (ts_ns // 1000) & 0xFFFFFFFF
        connection.last_ns = ts_ns
        for side in connection.sides:
            side.stream.start(0xFFFFFFFF, syn=True)
            side.interface = interface
            side.seen = True
        return Channel(self, connection)

    def stream_data(self, side: Side, data: bytes, ts_ns: int) -> None:
        self._clock.advance(ts_ns)
        self._bytes.seen += len(data)
        if side.connection.closed or side.ended:
            self.drop_bytes("after_close", len(data))
        elif data:
            side.connection.data(side, data, ts_ns)

    # -- time

    def expire(self, now_ns: int) -> None:
        """Give up on holes, idle connections and fragments that are too old."""
        self._next_sweep = now_ns + _SWEEP_NS
        if self._waiting:
            waiting, self._waiting = self._waiting, {}
            crowded = sum(c.waiting_bytes for c in waiting) > self.settings.max_total_bytes
            for connection in waiting:
                if not connection.closed and connection.sweep(now_ns, force=crowded):
                    self._waiting[connection] = None
        while self._closed and now_ns - self._closed[0][0] > self.settings.closed_ns:
            self._flows.forget(self._closed.popleft()[1])
        if now_ns < self._next_idle:
            return
        idle = self.settings.idle_ns
        self._next_idle = now_ns + max(idle // 8, _SWEEP_NS)
        for connection in [c for c in self._open if now_ns - c.last_ns > idle]:
            connection.close(now_ns, closed=False)
        self._fragments.expire(now_ns)
        self._count_fragments()

    def _count_fragments(self) -> None:
        dropped = self._fragments.take_dropped()
        if dropped:
            self._ledgers.drop_packet("fragment", dropped)

    # -- what connections tell

    def head(self) -> None:
        self._messages.seen += 1

    def keep(self, pair: Pair | None, count: int) -> bool:
        if pair is None or pair.shed:
            return False
        if self._kept + count > self.settings.max_total_bytes:
            pair.shed = True
            for message in (pair.request, pair.response):
                if message is not None:
                    self._kept -= message.kept_bytes
                    message.kept_bytes = 0
                    message.parts.clear()
            return False
        self._kept += count
        return True

    def gap(self, count: int) -> None:
        self._ledgers.account.note("gap_bytes", count)
        self._ledgers.account.note("gaps")

    def holes(self, connection: Connection) -> None:
        self._waiting[connection] = None

    def over(self, connection: Connection) -> None:
        self._open.pop(connection, None)
        self._waiting.pop(connection, None)
        self._closed.append((self._clock.now_ns, connection))

    def pair(self, connection: Connection, pair: Pair) -> None:
        """Make the exchange of it, or count why not."""
        request, response = pair.request, pair.response
        count, wire_bytes = len(pair.interim), 0
        for message in pair.interim:
            wire_bytes += message.wire_bytes
        if request is not None:
            count += 1
            wire_bytes += request.wire_bytes
            self._kept -= request.kept_bytes
        if response is not None:
            count += 1
            wire_bytes += response.wire_bytes
            self._kept -= response.kept_bytes
        reason = "shed" if pair.shed else ""
        if request is None:
            self._ledgers.account.note("unpaired")
            if not self.settings.keep_unpaired or response is None:
                reason = reason or "unpaired_response"
        if not reason and self.leave_out is not None and request is not None:
            reason = self.leave_out(request.head)
        if reason:
            self._ledgers.drop_messages(reason, count)
            self.drop_bytes(reason, wire_bytes)
            return
        if response is None:
            self._ledgers.account.note("unanswered")
        first, second = connection.sides
        if second.reader.kind is REQUEST or (request is None and first.reader.kind is RESPONSE):
            first, second = second, first
        if not connection.id:
            connection.id = connection_id(
                self.recording_id, first.address, second.address, connection.link, connection.first_seq
            )
        head, low = (request.head, request.low) if request is not None else (b"", b"")
        session = self._sessions.of(head, low, first.address, connection.id)
        exchange = exchange_of(
            pair,
            session=session,
            connection=connection.id,
            client=first.address,
            server=second.address,
            client_stream=first.stream,
            server_stream=second.stream,
            midstream=connection.midstream,
            interface=first.interface or second.interface or "",
            host=self.host,
        )
        if self._masker is not None:
            exchange = self._masker.exchange(exchange)
        self.ready.add(exchange, count, wire_bytes)


class Channel:
    """A connection that a proxy passes on."""

    __slots__ = ("_assembler", "_connection")

    def __init__(self, assembler: Assembler, connection: Connection) -> None:
        self._assembler = assembler
        self._connection = connection

    def data(self, from_client: bool, data: bytes, ts_ns: int) -> None:
        self._assembler.stream_data(self._connection.sides[0 if from_client else 1], data, ts_ns)

    def closed(self, from_client: bool, ts_ns: int) -> None:
        """This direction has sent its last byte."""
        if not self._connection.closed:
            self._connection.end(self._connection.sides[0 if from_client else 1], ts_ns)

    def reset(self, ts_ns: int) -> None:
        """Both directions ended abruptly."""
        self._connection.was_reset = True
        self._connection.close(ts_ns, closed=True)
