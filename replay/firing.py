"""The firing loop: fires shots at their times and gathers their answers. One thread, alone in its process.

It wakes once for several shots (every 250 to 1000 us by the rate), fires what is due, then takes in
what came. Receive times are the kernel's, so a latency is not the tick's. It has no part in deciding what is fired;
but it alone holds what must never fail: the caps, the lease, the stop.

Most of the CPU goes into what is done once a shot and once an answer (`_fire`, `_harvest`): they are written long
where a call would cost more than it says.
"""

from __future__ import annotations

import resource
import select
import socket
import time
from typing import Final

import httptools
import msgspec

from replay import pipes
from replay.caps import RateCap
from replay.clock import NowNs, realtime_ns
from replay.markerline import MarkerLine
from replay.pipes import FrameType, Gauge, PipeReader, PipeWriter
from replay.pool import CHUNK, MAX_ANSWER_BYTES, READABLE, WRITABLE, Connection, Poller, Pool
from replay.told import Told
from replay.waiting import WaitingShots
from wire.records import Failure

MIN_TICK_NS: Final = 250_000
MAX_TICK_NS: Final = 1_000_000
SHOTS_PER_TICK: Final = 10  # aimed at: fewer wake-ups cost less, but shots leave later
GAUGE_NS: Final = 250_000_000
#: Fired before answers are looked at again. After a stall the backlog then goes out on the connections that were
#: answered meanwhile; fired in one go it would open one for each shot, fall further behind, and never recover.
BURST: Final = 64
_NEW_BEHIND: Final = 16  # connections opened at most in one burst of a backlog
_TIMERS_NS: Final = 10_000_000
_NEVER: Final = 1 << 62
_MAX_AGES: Final = 64
_LEASE_OUT: Final = "the lease ran out"

_NONE: Final = pipes.NUMBER_OF[Failure.NONE]
_UNKNOWN: Final = (-1, 0, 0)


class Firer:
    def __init__(
        self, settings: pipes.FirerSettings, reader: PipeReader, writer: PipeWriter, poller: Poller, now: NowNs
    ) -> None:
        self._settings, self._reader, self._writer, self._poller, self._now = settings, reader, writer, poller, now
        self._marker = MarkerLine(
            settings.run_id, settings.key_id, bytes.fromhex(settings.key_hex), settings.marker_lifetime_s
        )
        self._cap = RateCap(settings.max_rate)
        self._pool = Pool(settings.address, settings.port, poller)
        self._waiting = WaitingShots()
        self._behind = False  # more is due than was fired
        self._quiet = True  # no answer came of late
        self._open: dict[int, Connection] = {}  # by serial, the oldest first
        self._told = Told(writer)
        self._lease_ns = 0
        self._stop_ns = _NEVER
        self._stopped: str | None = None
        self._give_up_ns = _NEVER
        self._ending = False
        self._gone = False  # the feeder is gone
        self._sent = self._answered = 0
        self._lag_ns = self._last_sent_ns = 0
        self._tick_ns = MAX_TICK_NS
        self._skew_ns = 0

    def run(self) -> None:
        """Until END and all is answered, STOP or the lease's end and the grace is over, or the feeder is gone."""
        self._poller.add(self._reader.fd)
        self._writer.put(pipes.frame(FrameType.READY))
        now = woke = self._now()
        self._measure_skew()
        next_gauge, next_timers, gauge_sent = now, now, 0
        while True:
            busy = self._wake(now, woke)
            if self._gone:
                self._pool.close_all()
                return
            now = woke = self._now()
            self._fire(now)
            now = self._now()
            self._harvest(busy, now)
            if now >= next_timers:
                self._time_out(now)
                next_timers = now + _TIMERS_NS
            if now >= next_gauge:
                self._adapt((self._sent - gauge_sent) * 1e9 / max(now - next_gauge + GAUGE_NS, 1))
                gauge_sent = self._sent
                self._measure_skew()
                self._pool.close_idle(now)
                self._gauge(now)
                next_gauge = now + GAUGE_NS
            self._told.flush_if_due(now)
            if self._leave(now):
                return

    # -- waking

    def _wake(self, now: int, woke: int) -> list[tuple[Connection, int]]:
        """Wait for the next tick, then take the feeder's frames and the list of connections with news."""
        timeout = 0.0
        if self._behind:
            if self._quiet and self._open:  # the target may wait for the core that we are on
                time.sleep(MIN_TICK_NS / 1e9)
        else:
            wake = max(self._waiting.next_ns(_NEVER), woke + self._tick_ns)
            if self._told.rows:
                wake = min(wake, max(self._told.next_ns, woke + self._tick_ns))
            wait = min(wake - now, 20_000_000)
            if wait > 2_000_000 and (self._quiet or not self._open):
                timeout = (wait // 1_000_000 - 1) / 1000  # epoll counts in whole milliseconds
            elif wait > 0:
                if self._open:
                    wait = min(wait, woke + MAX_TICK_NS - now)
                time.sleep(max(wait, 0) / 1e9)
        busy: list[tuple[Connection, int]] = []
        by_fd = self._pool.by_fd
        for fd, events in self._poller.poll(timeout):
            connection = by_fd.get(fd)
            if connection is None:
                if fd == self._reader.fd:
                    self.take_frames(self._reader.read(1))
                    self._gone = self._reader.ended
            elif connection.serial:
                busy.append((connection, events))
            else:
                self._pool.close(connection)  # news on an idle connection: the server closes it
        self._quiet = not busy
        return busy

    def take_frames(self, frames: list[tuple[int, bytes]]) -> None:
        for kind, payload in frames:
            if kind == FrameType.SHOTS:
                self._waiting.add(payload)
                if self._stopped is not None:
                    self._shed_all()
            elif kind == FrameType.LEASE:
                self._lease_ns = pipes.TIME.unpack(payload)[0]
            elif kind == FrameType.STOP:
                self._stop_ns = min(self._stop_ns, pipes.TIME.unpack(payload)[0])
            elif kind == FrameType.END:
                self._ending = True

    # -- firing

    def _fire(self, now: int) -> None:
        if now >= self._stop_ns:
            self._stop(now, "stopped")
        most = min(BURST, len(self._pool.idle) + _NEW_BEHIND) if self._behind else BURST
        shots = self._waiting.due(now, most)
        self._behind = len(shots) == most
        if not shots:
            return
        clock, open_shots, idle, admit = self._now, self._open, self._pool.idle, self._cap.admit
        late_ns, max_open = self._settings.late_ns, self._settings.max_open
        limit = min(self._lease_ns, self._stop_ns)
        line = self._marker.at(now)
        for number, (ready, serial, flags, first, last) in enumerate(shots):
            if now >= limit:
                self._waiting.put_back(shots[number:])
                self._stop(now, "stopped" if now >= self._stop_ns else _LEASE_OUT)
                return
            if now - ready > late_ns:
                self._told.shed(serial, Failure.SHED_LATE, flags)
                continue
            if len(open_shots) >= max_open:
                self._told.shed(serial, Failure.SHED_OPEN, flags)
                continue
            if not admit(now):
                self._told.shed(serial, Failure.SHED_RATE, flags)
                continue
            if idle:
                connection = idle.pop()  # the one used last
            else:
                try:
                    connection = self._pool.connect()
                except OSError:
                    self._told.result(serial, 0, 0, now, 0, 0, Failure.CONNECT, 0, 0)
                    self._told.urgent = True
                    continue
            connection.begin(serial, flags, now, first + line + last)
            open_shots[serial] = connection
            if not connection.connecting:
                self._send(connection, now)
            now = clock()
        self._lag_ns = now - ready

    def _send(self, connection: Connection, now: int) -> None:
        begun = connection.sent_ns
        try:
            if not connection.send(now):
                self._poller.change(connection.fd, writing=True)
        except OSError:
            self._fail(connection, now, Failure.RESET)
            return
        if not begun:
            self._sent += 1
            self._last_sent_ns = now

    # -- answers

    def _harvest(self, busy: list[tuple[Connection, int]], now: int) -> None:
        """Take in the answers. One whose head was read before, word for word, is not parsed again."""
        known, skew, open_shots, idle = self._pool.known, self._skew_ns, self._open, self._pool.idle
        pack, append = pipes.RESULT.pack, self._told.rows.append
        for connection, events in busy:
            if events != READABLE or not connection.plain:
                self._serve(connection, events, now)
                continue
            connection.plain = False
            try:
                data = connection.receive(now, skew)
            except OSError:
                self._fail(connection, now, Failure.RESET)
                continue
            if data is None:
                continue
            whole, status, body = known.get(data[: data.find(b"\r\n\r\n") + 4], _UNKNOWN)
            if whole != len(data):
                if self._parse(connection, data, now):
                    self._receive(connection, now)
                continue
            serial, sent = connection.serial, connection.sent_ns
            del open_shots[serial]
            append(
                pack(
                    serial, sent, connection.first_ns, connection.last_ns, sent - connection.asked_ns, status, _NONE,
                    connection.out_bytes, body,
                )
            )  # fmt: skip
            self._answered += 1
            connection.serial = connection.first_ns = connection.last_ns = 0
            connection.idle_since = now
            idle.append(connection)

    def _serve(self, connection: Connection, events: int, now: int) -> None:
        if not connection.serial:
            return  # closed in this tick
        if connection.connecting:
            if not events & ~1:
                return
            if connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._fail(connection, now, Failure.CONNECT)
                return
            connection.connecting = False
            self._poller.change(connection.fd, writing=False)
            if now >= min(self._stop_ns, self._lease_ns) or self._stopped is not None:
                self._close_unsent(connection)
                return
            self._send(connection, now)
            return
        if connection.out and events & WRITABLE:
            self._send(connection, now)
            if connection.serial and not connection.out:
                self._poller.change(connection.fd, writing=False)
        if connection.serial and events & ~WRITABLE:
            self._receive(connection, now)

    def _receive(self, connection: Connection, now: int) -> None:
        """All that is there now."""
        try:
            while (data := connection.receive(now, self._skew_ns)) is not None:
                if not self._parse(connection, data, now):
                    return
        except OSError:
            self._fail(connection, now, Failure.RESET)

    def _parse(self, connection: Connection, data: bytes, now: int) -> bool:
        """Take in a piece of an answer. True when there may be more of it there now."""
        try:
            if data:
                connection.feed(data)
            elif not connection.end_of_stream():
                self._fail(connection, now, Failure.RESET)
                return False
        except httptools.HttpParserError:
            self._fail(connection, now, Failure.PROTOCOL)
            return False
        if connection.complete:
            self._pool.remember(connection, data)
            self._finish(connection, now)
            return False
        return len(data) >= CHUNK

    def _finish(self, connection: Connection, now: int) -> None:
        self._answered += 1
        if connection.answer is not None:
            if connection.answer_bytes <= MAX_ANSWER_BYTES:
                self._told.answer(connection.serial, connection.answer_head(), connection.answer)
            self._told.urgent = True
        self._close_books(connection, connection.last_ns or now, Failure.NONE)
        if connection.keep and not connection.out:
            self._pool.put_back(connection, now)
        else:
            self._pool.close(connection)

    def _fail(self, connection: Connection, now: int, failure: Failure) -> None:
        if connection.answer is not None:
            self._told.urgent = True
        self._close_books(connection, now, failure)
        self._pool.close(connection)

    def _close_unsent(self, connection: Connection) -> None:
        """The run was stopped while the connection was being made: not a byte has left."""
        del self._open[connection.serial]
        self._told.shed(connection.serial, Failure.SHED_STOP, connection.flags)
        self._pool.close(connection)

    def _close_books(self, connection: Connection, done: int, failure: Failure) -> None:
        del self._open[connection.serial]
        sent = connection.sent_ns
        wait = (sent or done) - connection.asked_ns
        out = connection.out_bytes - len(connection.out) if sent else 0
        self._told.result(
            connection.serial, sent, connection.first_ns, done, wait, connection.status, failure, out,
            connection.body_bytes,
        )  # fmt: skip

    # -- time

    def _time_out(self, now: int) -> None:
        limit = now - self._settings.timeout_ns
        expired = []
        for connection in self._open.values():  # the oldest first
            if connection.asked_ns > limit:
                break
            expired.append(connection)
        for connection in expired:
            self._fail(connection, now, Failure.TIMEOUT)
        if now >= self._give_up_ns:
            for connection in list(self._open.values()):
                if connection.sent_ns:
                    self._fail(connection, now, Failure.GIVEN_UP)
                else:
                    self._close_unsent(connection)

    def _stop(self, now: int, reason: str) -> None:
        if self._stopped is None:
            self._stopped = reason
            self._give_up_ns = now + self._settings.grace_ns
            # A request of which a part is still unsent is cut off here: nothing leaves after a stop.
            for connection in list(self._open.values()):
                if connection.connecting:
                    self._close_unsent(connection)
                elif connection.out:
                    self._fail(connection, now, Failure.GIVEN_UP)
        self._shed_all()

    def _shed_all(self) -> None:
        for _, serial, flags, _, _ in self._waiting.take_all():
            self._told.shed(serial, Failure.SHED_STOP, flags)

    def _leave(self, now: int) -> bool:
        if now >= self._lease_ns > 0 and self._stopped is None and not (self._ending and not self._waiting):
            self._stop(now, _LEASE_OUT)
        if self._open or self._waiting or (self._stopped is None and not self._ending):
            return False
        self._gauge(now)
        self._told.flush()
        self._writer.put(pipes.frame(FrameType.BYE, (self._stopped or "").encode()))
        deadline = now + 1_000_000_000
        while not self._writer.flush() and not self._writer.broken and self._now() < deadline:
            select.select((), (self._writer.fd,), (), 0.1)
        self._pool.close_all()
        return True

    def _adapt(self, rate_per_s: float) -> None:
        self._tick_ns = int(min(max(SHOTS_PER_TICK * 1e9 / (rate_per_s + 1), MIN_TICK_NS), MAX_TICK_NS))

    def _measure_skew(self) -> None:
        before = self._now()
        wall = realtime_ns()
        self._skew_ns = wall - (before + self._now()) // 2

    def _gauge(self, now: int) -> None:
        ages = []
        for connection in self._open.values():
            ages.append(now - connection.asked_ns)
            if len(ages) == _MAX_AGES:
                break
        usage = resource.getrusage(resource.RUSAGE_SELF)
        gauge = Gauge(
            now, self._sent, self._answered, len(self._open), tuple(ages), self._lag_ns, self._last_sent_ns,
            usage.ru_utime + usage.ru_stime, len(self._waiting),
        )  # fmt: skip
        self._writer.put(pipes.frame(FrameType.GAUGE, msgspec.msgpack.encode(gauge)))
