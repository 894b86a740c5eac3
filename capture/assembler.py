"""The one reassembler that every source feeds: packets, or byte streams -> exchanges.

It keeps in memory: what is known of a connection, what is open of messages, and what waits for holes to be
filled; all bounded by the settings. What is shed is whole exchanges, and counted.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from capture.channel import Channel
from capture.connection import Connection
from capture.crowd import Crowd
from capture.decode import decode
from capture.ends import OPEN, RECORDED
from capture.exchange import ExchangeMaker, Masker
from capture.flows import Flows
from capture.fragments import Fragments
from capture.frames import PacketClock
from capture.inflight import InFlight
from capture.lane import Lane
from capture.ledgers import Ledgers
from capture.message import Pair
from capture.other import Others
from capture.ready import RECORD_BYTES, Ready
from capture.run import Runs
from capture.sample import Filter
from capture.segment import Fragment, Segment
from capture.session import SessionFinder
from capture.settings import CaptureSettings
from capture.side import Side
from wire.account import Account
from wire.records import Exchange

_SWEEP_NS = 50_000_000
_MOVED_NS = 1_000_000_000  # copies of a packet follow it sooner
_MANY_WAITS = 4096
_TCP = struct.Struct(">IIBB").unpack_from
#: Of Ethernet, IPv4 without options, TCP: EtherType, version and length of the header, length, fragment, protocol,
#: addresses and ports.
_FRAME = struct.Struct(">12xHBxH2xHxB2x12s").unpack_from
_SYN = 2


class Assembler:
    """Not for use by several threads. Never raises on what packets hold."""

    def __init__(
        self,
        recording_id: str,
        settings: CaptureSettings,
        masker: Masker | None,
        key: bytes,
        *,
        host: str = "",
        general: bool = False,
    ) -> None:
        """`general` turns the fast paths off, for tests: the result is the same. Raises ConfigError for sources of
        sessions that are not known."""
        self.recording_id = recording_id
        self.settings = settings
        self.host = host
        self._masker = masker
        self._maker = ExchangeMaker(recording_id, SessionFinder(key, settings.sessions), host)
        self._ledgers = Ledgers()
        self._packets = self._ledgers.packets
        self._bytes = self._ledgers.bytes
        self._messages = self._ledgers.messages
        self.drop_bytes = self._ledgers.drop_bytes
        self.other = Others(self._ledgers.account).note
        self._flows = Flows(self._opened)
        self._sides = self._flows.side_of
        self._crowd = Crowd(settings, self._flows.forget, self._ledgers)
        self._open = self._crowd.open
        self._in_flight = InFlight()
        self.busy = self._in_flight.busy
        self._fragments = Fragments()
        self._clock = PacketClock()
        #: Reads frames where they stand, in the short way; see `frames.Sink`.
        self.lane = None if general else Lane(self, self._sides, self._clock, self._ledgers, settings)
        #: Records of a file that go on with a body; see `run`.
        self.run = Runs(self, self._sides, self._clock, self._ledgers, settings).take
        self.ready = Ready(self._ledgers)  # complete, and not yet taken
        #: Asked of a request: why its exchange is not wanted (a reason of `INTENTIONAL`), "" to keep it.
        self.leave_out: Filter | None = None
        self.sheds: Callable[[bytes], str] | None = None  # asked of each session id: why it is shed, "" to keep it

    # -- results

    @property
    def account(self) -> Account:
        """The account so far; what waits is counted when it is asked for."""
        if self.lane is not None:
            self.lane.settle()
        waits = self._in_flight
        waits.count(self._clock.now_ns)
        self._bytes.in_flight = self.ready.wire_bytes + waits.bytes
        self._messages.in_flight = self.ready.messages + waits.messages
        self._packets.in_flight = self._fragments.held
        self._ledgers.connections.in_flight = len(self._open)
        return self._ledgers.account

    @property
    def kept(self) -> int:
        """Body bytes in memory, of messages that are not over."""
        return self._ledgers.kept

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
        self.note_masked()
        return self.ready.take()

    def note_masked(self) -> None:
        """Bring the account's notes of what was masked up to date; before each batch."""
        if self._masker is not None:
            self._ledgers.account.notes.update({f"masked.{what}": count for what, count in self._masker.counts.items()})

    def finish(self) -> list[Exchange]:
        """End everything that is open, and take it."""
        self.close()
        return self.take()

    def close(self) -> None:
        """End everything that is open; what it gives is in `ready`."""
        for connection in list(self._crowd.waiting):
            connection.sweep(self._clock.now_ns, force=True)
        for connection in list(self._open):
            connection.ended_by = OPEN
            connection.close(self._clock.now_ns, closed=False)
        self._fragments.finish()
        self._count_fragments()

    def set_clock(self, offset_ns: int) -> None:  # added to the times of what is complete from now on
        self._maker.clock_offset_ns = offset_ns

    # -- packets

    def source_over(self) -> None:
        """One of several sources has ended: what were copies of its packets may be all that comes now."""
        for connection in self._open:
            for side in connection.sides:
                side.interface = None

    def kernel_dropped(self, count: int) -> None:
        self._packets.seen += count
        self._ledgers.drop_packet("kernel", count)

    def packet(self, ts_ns: int, data: bytes, wire_len: int, linktype: int = 1, interface: str = "") -> None:
        if linktype == 1 and len(data) >= 54:
            if self.lane is not None and self.lane.frame(ts_ns, data, 0, len(data), wire_len, interface):
                return
            self._packets.seen += 1
            self._pass(ts_ns)
            ethertype, version, length, fragment, protocol, key = _FRAME(data)
            if ethertype == 0x0800 and version == 0x45 and protocol == 6 and not fragment & 0x3FFF:
                end = 14 + length if length else wire_len
                self._segment(key, None, data, 34, end, wire_len, ts_ns, interface, 4)
                return
        else:
            self._packets.seen += 1
            self._pass(ts_ns)
        found = decode(linktype, data, b"", wire_len)
        frames = 1
        while isinstance(found, Fragment):  # of a packet in a packet that was fragmented itself, maybe
            whole = self._fragments.add(found, ts_ns, frames)
            self._count_fragments()
            if whole is None:
                return
            packet, frames = whole
            wire_len = len(packet)
            found = decode(101, packet, found.link, 0, found.depth)
        if isinstance(found, str):
            self._ledgers.drop_packet(found, frames)
            return
        self._packets.emitted += frames - 1
        if found.nested and found.end > wire_len:
            wire_len = found.end  # what it was before it was wrapped and cut
        self._segment(found.key, found, found.data, found.tcp_at, found.end, wire_len, ts_ns, interface, found.version)

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
                if ts_ns - side.connection.last_ns < _MOVED_NS:
                    self._ledgers.drop_packet("other_interface")
                    return
                side.other.interface = None  # it passes elsewhere now: another link of a bond, the next file
            side.interface = interface
        self._packets.emitted += 1
        self._bytes.seen += size
        if end > len(data) and size:
            self._ledgers.account.note("cut_packets")  # by a snaplen, or by who mirrored them
        side.connection.segment(side, sequence, ack, flags, data[body:end] if size else b"", size, ts_ns)
        if self._crowd.waits > _MANY_WAITS:  # also where no time passes
            self.expire(self._clock.now_ns)

    def _opened(self, first: str, second: str, link: str, midstream: bool) -> Connection:
        self._crowd.make_room(self._clock.now_ns)
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
        return Channel(connection, self._clock, self._ledgers)

    # -- time

    def _pass(self, now_ns: int) -> None:
        if now_ns > self._clock.now_ns:
            self._clock.now_ns = now_ns
            if now_ns >= self._clock.sweep_ns:
                self.expire(now_ns)

    def expire(self, now_ns: int) -> None:
        """Give up on holes, idle connections and fragments that are too old."""
        self._clock.sweep_ns = now_ns + _SWEEP_NS
        self._crowd.sweep(now_ns)
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
        if self._ledgers.kept + count > self.settings.max_total_bytes:
            pair.shed = True
            for message in (pair.request, pair.response):
                if message is not None:
                    self._ledgers.kept -= message.kept_bytes
                    message.kept_bytes = 0
                    message.parts.clear()
            return False
        self._ledgers.kept += count
        return True

    def gap(self, count: int) -> None:
        self._ledgers.account.note("gap_bytes", count)
        self._ledgers.account.note("gaps")

    def note(self, name: str, count: int = 1) -> None:
        self._ledgers.account.note(name, count)

    def holes(self, connection: Connection) -> None:
        if not connection.closed:
            self._crowd.waiting[connection] = None
            self._crowd.waits += 1

    def over(self, connection: Connection) -> None:
        self._in_flight.over(connection)
        self._crowd.over(connection, self._clock.now_ns)

    def pair(self, connection: Connection, pair: Pair) -> None:
        """Make the exchange of it, or count why not."""
        request, response = pair.request, pair.response
        count, wire_bytes = len(pair.interim), 0
        for message in pair.interim:
            wire_bytes += message.wire_bytes
        if request is not None:
            count += 1
            wire_bytes += request.wire_bytes
            self._ledgers.kept -= request.kept_bytes
        if response is not None:
            count += 1
            wire_bytes += response.wire_bytes
            self._ledgers.kept -= response.kept_bytes
        reason = "shed" if pair.shed else ""
        if request is None:
            self._ledgers.account.note("unpaired")
            if not self.settings.keep_unpaired or response is None:
                reason = reason or "unpaired_response"
        if not reason and self.leave_out is not None and request is not None:
            reason = self.leave_out(request)
        if not reason and self.sheds is not None:  # before the record is made: it is to cost less
            reason = self.sheds(self._maker.session(connection, pair))
        if reason:
            connection.became = connection.became or reason
            self._ledgers.drop_messages(reason, count)
            self.drop_bytes(reason, wire_bytes)
            return
        if response is None:
            self._ledgers.account.note("unanswered")
        connection.became = RECORDED
        exchange = self._maker.exchange(connection, pair)
        if self._masker is not None:
            exchange = self._masker.exchange(
                exchange,
                request.block if request is not None else b"",
                response.block if response is not None else b"",
            )
        self.ready.add(exchange, count, wire_bytes)

    def plain(self, connection: Connection, asker: Side, answerer: Side, pair: Pair) -> None:
        """As `pair`, where nothing is out of the ordinary: what is left then is most of what is recorded."""
        request, response = pair.request, pair.response
        if request is None or response is None or response.start_ns < request.end_ns or self.sheds is not None:
            self.pair(connection, pair)
            return
        if 0 <= response.ack < request.end_offset:  # its sender had not received all of it
            self.pair(connection, pair)
            return
        if self.leave_out is not None and self.leave_out(request):
            self.pair(connection, pair)
            return
        self._ledgers.kept -= request.kept_bytes + response.kept_bytes
        connection.became = RECORDED
        exchange = self._maker.plain(connection, asker, answerer, request, response, self._masker)
        weight = request.wire_bytes + response.wire_bytes
        self.ready.add(exchange, 2, weight, RECORD_BYTES + weight)
