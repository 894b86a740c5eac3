"""The firing loop: fires shots at their times and gathers their answers. One thread, alone in its process.

It wakes once for several shots (every 250 to 1000 us by the rate), fires what is due, then takes in
what came. Receive times are the kernel's, so a latency is not the tick's. It has no part in deciding what is fired;
but it alone holds what must never fail: the caps, the lease, the stop.
"""

from __future__ import annotations

import heapq
import resource
import select
import socket
import time
from typing import Final

import httptools
import msgspec

from livefire_shadow import marker
from replay import pipes
from replay.caps import RateCap
from replay.clock import NowNs, realtime_ns
from replay.pipes import FrameType, Gauge, PipeReader, PipeWriter
from replay.pool import MAX_ANSWER_BYTES, WRITABLE, Connection, Poller, Pool
from wire.records import Failure

MIN_TICK_NS: Final = 250_000
MAX_TICK_NS: Final = 1_000_000
SHOTS_PER_TICK: Final = 8  # aimed at: fewer wake-ups cost less, but shots leave later
GAUGE_NS: Final = 250_000_000
_TIMERS_NS: Final = 10_000_000
_FLUSH_NS: Final = 5_000_000
_NEVER: Final = 1 << 62
_MAX_AGES: Final = 64
_LEASE_OUT: Final = "the lease ran out"

_NONE = pipes.NUMBER_OF[Failure.NONE]


class MarkerMaker:
    """The marker's header line, signed anew once a second."""

    def __init__(self, run_id: str, key_id: str, key: bytes, lifetime_s: int) -> None:
        self._run_id, self._key_id, self._key, self._lifetime_s = run_id, key_id, key, lifetime_s
        self._second = -1
        self._line = b""

    def line(self, now_ns: int) -> bytes:
        second = now_ns // 1_000_000_000
        if second != self._second:
            value = marker.sign(self._run_id, second + self._lifetime_s, self._key_id, self._key)
            self._line = b"%b: %b\r\n" % (marker.HEADER.encode(), value.encode())
            self._second = second
        return self._line


class Firer:
    def __init__(
        self, settings: pipes.FirerSettings, reader: PipeReader, writer: PipeWriter, poller: Poller, now: NowNs
    ) -> None:
        self._settings, self._reader, self._writer, self._poller, self._now = settings, reader, writer, poller, now
        self._marker = MarkerMaker(
            settings.run_id, settings.key_id, bytes.fromhex(settings.key_hex), settings.marker_lifetime_s
        )
        self._cap = RateCap(settings.max_rate)
        self._pool = Pool(settings.address, settings.port, poller)
        self._heap: list[tuple[int, int, int, bytes, bytes]] = []  # ready, serial, flags, parts
        self._open: dict[int, Connection] = {}  # by serial, the oldest first
        self._results: list[bytes] = []
        self._urgent = False  # somebody waits for a result
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
        next_gauge, next_timers, next_flush, gauge_sent = now, now, now, 0
        while True:
            busy = self._wake(now, woke)
            if self._gone:
                self._pool.close_all()
                return
            now = woke = self._now()
            self._fire(now)
            now = self._now()
            for connection, events in busy:
                self._serve(connection, events, now)
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
            if self._results and (self._urgent or now >= next_flush or len(self._results) > 1000):
                self._flush_results()
                next_flush = now + _FLUSH_NS
            elif self._writer.waiting_bytes:
                self._writer.flush()
            if self._leave(now):
                return

    # -- waking

    def _wake(self, now: int, woke: int) -> list[tuple[Connection, int]]:
        """Wait for the next tick, then take the feeder's frames and the list of connections with news."""
        wake = max(self._heap[0][0], woke + self._tick_ns) if self._heap else _NEVER
        timeout = 0.0
        if self._open or self._results:
            wake = min(wake, woke + MAX_TICK_NS)
        wait = min(wake - now, 20_000_000)
        if wait > 2_000_000 and not self._open:
            timeout = (wait // 1_000_000 - 1) / 1000  # epoll counts in whole milliseconds
        elif wait > 0:
            time.sleep(wait / 1e9)
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
        return busy

    def take_frames(self, frames: list[tuple[int, bytes]]) -> None:
        for kind, payload in frames:
            if kind == FrameType.SHOTS:
                self._take_shots(payload)
            elif kind == FrameType.LEASE:
                self._lease_ns = pipes.TIME.unpack(payload)[0]
            elif kind == FrameType.STOP:
                self._stop_ns = min(self._stop_ns, pipes.TIME.unpack(payload)[0])
            elif kind == FrameType.END:
                self._ending = True

    def _take_shots(self, payload: bytes) -> None:
        at, end, size = 0, len(payload), pipes.SHOT.size
        unpack, heap, push = pipes.SHOT.unpack_from, self._heap, heapq.heappush
        while at < end:
            serial, ready, flags, first, last = unpack(payload, at)
            at += size
            middle = at + first
            push(heap, (ready, serial, flags, payload[at:middle], payload[middle : middle + last]))
            at = middle + last
        if self._stopped is not None:
            self._shed_all()

    # -- firing

    def _fire(self, now: int) -> None:
        heap = self._heap
        if now >= self._stop_ns:
            self._stop(now, "stopped")
        if not heap or heap[0][0] > now or self._stopped is not None:
            return
        clock, open_shots, settings = self._now, self._open, self._settings
        line = self._marker.line(now)
        while heap and heap[0][0] <= now:
            if now >= self._lease_ns:
                self._stop(now, _LEASE_OUT)
                return
            ready, serial, flags, first, last = heapq.heappop(heap)
            if now - ready > settings.late_ns:
                self._shed(serial, Failure.SHED_LATE)
                continue
            if len(open_shots) >= settings.max_open:
                self._shed(serial, Failure.SHED_OPEN)
                continue
            if not self._cap.admit(now):
                self._shed(serial, Failure.SHED_RATE)
                continue
            connection = self._pool.take()
            if connection is None:
                try:
                    connection = self._pool.connect()
                except OSError:
                    self._result(serial, 0, 0, now, 0, 0, Failure.CONNECT, 0, 0, False)
                    continue
            connection.begin(serial, flags, now, first + line + last)
            open_shots[serial] = connection
            self._lag_ns = now - ready
            if not connection.connecting:
                self._send(connection, now)
            now = clock()

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
        while True:
            try:
                data = connection.receive(now, self._skew_ns)
                if data is None:
                    return
                if data:
                    connection.feed(data)
                elif not connection.end_of_stream():
                    self._fail(connection, now, Failure.RESET)
                    return
            except OSError:
                self._fail(connection, now, Failure.RESET)
                return
            except httptools.HttpParserError:
                self._fail(connection, now, Failure.PROTOCOL)
                return
            if connection.complete:
                self._finish(connection, now)
                return
            if len(data) < 1 << 15:
                return

    def _finish(self, connection: Connection, now: int) -> None:
        self._answered += 1
        serial = connection.serial
        if connection.answer is not None:
            if connection.answer_bytes <= MAX_ANSWER_BYTES:
                head = connection.answer_head()
                payload = pipes.ANSWER.pack(serial, len(head)) + head + b"".join(connection.answer)
                self._flush_results()
                self._writer.put(pipes.frame(FrameType.ANSWER, payload))
            self._urgent = True
        self._close_books(connection, connection.last_ns or now, Failure.NONE)
        if connection.keep and not connection.out:
            self._pool.put_back(connection, now)
        else:
            self._pool.close(connection)

    def _fail(self, connection: Connection, now: int, failure: Failure) -> None:
        self._urgent = self._urgent or connection.answer is not None
        self._close_books(connection, now, failure)
        self._pool.close(connection)

    def _close_unsent(self, connection: Connection) -> None:
        """The run was stopped while the connection was being made: not a byte has left."""
        del self._open[connection.serial]
        self._shed(connection.serial, Failure.SHED_STOP)
        self._pool.close(connection)

    def _close_books(self, connection: Connection, done: int, failure: Failure) -> None:
        del self._open[connection.serial]
        sent = connection.sent_ns
        wait = (sent or done) - connection.asked_ns
        out = connection.out_bytes - len(connection.out) if sent else 0
        self._result(
            connection.serial, sent, connection.first_ns, done, wait, connection.status, failure, out,
            connection.body_bytes, self._urgent,
        )  # fmt: skip

    def _result(
        self, serial: int, sent: int, first: int, done: int, wait: int, status: int, failure: Failure, out: int,
        body: int, urgent: bool,
    ) -> None:  # fmt: skip
        self._results.append(
            pipes.RESULT.pack(serial, sent, first, done, wait, status, pipes.NUMBER_OF[failure], out, body)
        )
        self._urgent = self._urgent or urgent

    def _shed(self, serial: int, failure: Failure) -> None:
        self._result(serial, 0, 0, 0, 0, 0, failure, 0, 0, True)

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
                    self._fail(connection, now, Failure.TIMEOUT)
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
                    self._fail(connection, now, Failure.TIMEOUT)
        self._shed_all()

    def _shed_all(self) -> None:
        for shot in self._heap:
            self._shed(shot[1], Failure.SHED_STOP)
        self._heap.clear()

    def _leave(self, now: int) -> bool:
        if now >= self._lease_ns > 0 and self._stopped is None and not (self._ending and not self._heap):
            self._stop(now, _LEASE_OUT)
        if self._open or self._heap or (self._stopped is None and not self._ending):
            return False
        self._gauge(now)
        self._flush_results()
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
            usage.ru_utime + usage.ru_stime, len(self._heap),
        )  # fmt: skip
        self._writer.put(pipes.frame(FrameType.GAUGE, msgspec.msgpack.encode(gauge)))

    def _flush_results(self) -> None:
        if self._results:
            self._writer.put(pipes.frame(FrameType.RESULTS, b"".join(self._results)))
            self._results.clear()
        self._urgent = False
