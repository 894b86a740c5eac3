"""The feeder: reads the recording, makes shots of it, claims them, hands them to the firer, books what became of them.

Shots are made a slice (100 ms of due time) at a time, 250 ms ahead. A shot that sends back a value which
is not handed out yet is claimed with its slice and kept here until its producer is answered; its due time does not
change, so the wait is part of its latency (and is in `pool_wait_ns`, so that it is no error of sending).
"""

from __future__ import annotations

import os
import random
import resource
import select
from functools import partial
from typing import Final

import msgspec

from bus.ports import Bus, Writer
from replay import pipes, render
from replay.accounts import Accounts
from replay.away import Away
from replay.book import Books
from replay.clock import NowNs
from replay.compare import compare
from replay.exemplars import Exemplars
from replay.firerlink import FirerLink
from replay.hearing import FleetControl
from replay.identity import NOTHING, Identities, Who
from replay.orders import Orders
from replay.schedule import Item, Planned, Schedule
from replay.settings import AHEAD_NS, BEAT_NS, GRACE_NS, MS_NS, SECOND_NS, SLICE_NS, WorkerSettings
from replay.steps import Timeline
from wire.records import Beat, Failure, ShotKey, Verdict

#: Shots that are claimed and have no outcome yet; no slice is made above it.
MAX_IN_FLIGHT: Final = 50_000
_MAX_WAITING_BYTES: Final = 64 << 20
_POLL_MS: Final = 20
_MAKE_NS: Final = 20 * MS_NS  # at most, between two looks at the orders
_STEP_WAIT_NS: Final = 60 * SECOND_NS

_FAILURES = pipes.FAILURES


class _Flight(msgspec.Struct, frozen=True):
    """A claimed shot without outcome."""

    key: ShotKey
    item: Item
    produces: bool  # its answer hands out values

    @property
    def who(self) -> Who:
        return self.item.stamped.session_id, self.key.copy, self.key.lap


class Feeder:
    def __init__(
        self, settings: WorkerSettings, bus: Bus, link: FirerLink, schedule: Schedule, timeline: Timeline,
        identities: Identities, accounts: Accounts | None, books: Books, beats: Writer, authority: bytes, now: NowNs,
        *, resume_ns: int = 0, lifeline: int = 0, fleet: FleetControl | None = None,
        exemplars: Exemplars | None = None,
    ) -> None:  # fmt: skip
        """`resume_ns`: the latest due time that a worker before us has claimed. `lifeline`: fd whose end is our end.
        `fleet`: where orders to all runs are said, if anywhere."""
        self._settings, self._link, self._schedule, self._timeline = settings, link, schedule, timeline
        self._identities, self._accounts, self._books, self._beats = identities, accounts, books, beats
        self._authority, self._now, self._resume_ns, self._lifeline = authority, now, resume_ns, lifeline
        self._orders = Orders(bus, settings.run_id, timeline, fleet, most_ns=settings.lease_ns)
        self._unclaimed: tuple[tuple[ShotKey, ...], list[Planned]] | None = None  # the bus was away
        self._away = Away(now)
        self._flights: dict[int, _Flight] = {}
        self._parked: dict[int, list[int]] = {}  # producer -> shots that wait for it
        self._serial = 0
        self._end_told = False
        self._traces = render.Traces(random.Random(os.urandom(32)))
        self._made_ns = 0
        self._late_before_ns = 0
        self._lease_told = 0
        self._stop_told = 0
        self._stopping = ""
        self._ended = False
        self._exemplars = exemplars
        self._heads: dict[int, bytes] = {}  # serial -> head of its answer, until its result
        self._held_ns: dict[int, int] = {}  # serial -> how long it waited for a value

    def run(self) -> tuple[str, str]:
        """Until the schedule is done, or the run is ended, stopped, or fails. (End.reason, one line of why)."""
        poller = select.poll()
        poller.register(self._link.reader.fd, select.POLLIN)
        poller.register(self._lifeline, select.POLLIN)
        begun = self._now()
        next_beat = begun
        stop_at = 0
        while True:
            for fd, _ in poller.poll(_POLL_MS):
                if fd == self._lifeline:
                    if not os.read(fd, 4096):
                        poller.unregister(fd)
                        self._stop("failed", "the process that started this worker is gone")
                else:
                    self._link.read(self._results, self._answer)
            now = self._now()
            self._away.attempt(lambda now=now: self._orders.poll(now, self._made_ns))  # type: ignore[misc]
            if not self._link.ready and not self._link.reader.ended:
                next_beat = self._book_and_beat(now, next_beat)
                continue
            if self._link.died:
                self._abandon(Failure.UNKNOWN)
                return "failed", "the firer died; what it held is unknown"
            if self._link.bye is not None:
                # It told of everything that it had fired, so what is left has certainly not left.
                self._abandon(Failure.SHED_STOP)
                if self._link.bye and not self._stopping:
                    return "failed", self._link.bye + self._away.said
                return self._reason
            self._obey(now)
            if not self._stopping:
                if self._timeline.base_ns is None and now - begun > _STEP_WAIT_NS:
                    return "failed", "no step was announced"
                self._make(now)
            else:
                stop_at = stop_at or now
                if now - stop_at > GRACE_NS + SECOND_NS:
                    self._link.process.kill()
            self._link.writer.flush()
            next_beat = self._book_and_beat(now, next_beat)

    # -- orders

    _reason = ("done", "")

    def _obey(self, now: int) -> None:
        orders = self._orders
        if orders.lease_ns > self._lease_told:
            self._lease_told = orders.lease_ns
            self._link.lease(orders.lease_ns)
        if self._stopping:
            return
        if orders.stop_ns is not None and orders.stop_ns > now:
            if self._stop_told != orders.stop_ns:  # the firer keeps the time more exactly than we do
                self._stop_told = orders.stop_ns
                self._link.stop_at(orders.stop_ns)
        elif orders.stop_ns is not None:
            self._stop("stopped", orders.stop_reason or "stopped", orders.stop_ns)
        elif self._lease_told and now >= self._lease_told:
            self._stop("failed", "the lease ran out" + self._away.said)

    def _stop(self, reason: str, why: str, effective_ns: int = 0) -> None:
        if self._stopping:
            return
        self._stopping, self._reason = reason, (reason, why)
        for serial in self._link.stop(effective_ns):
            self._shed(serial, Failure.SHED_STOP)
        for serials in list(self._parked.values()):
            for serial in serials:
                if serial in self._flights:
                    self._shed(serial, Failure.SHED_STOP)
        self._parked.clear()

    # -- making shots

    def _make(self, now: int) -> None:
        base = self._timeline.base_ns
        if base is None or not self._lease_told or self._ended:
            return
        self._made_ns = self._made_ns or base
        end_ns = self._orders.end_ns
        deadline = now + _MAKE_NS
        while (
            self._made_ns < now + AHEAD_NS
            and self._now() < deadline  # after a stall or a restart there is much to make, and orders are still obeyed
            and len(self._flights) < MAX_IN_FLIGHT
            and self._link.writer.waiting_bytes < _MAX_WAITING_BYTES
        ):
            until = self._made_ns + SLICE_NS
            if end_ns is not None:
                until = min(until, max(end_ns, self._made_ns))
            self._late_before_ns = self._now() - self._settings.late_ns
            if not (self._slice_again() if self._unclaimed else self._slice(self._schedule.take(until))):
                break
            self._made_ns = until
            if self._schedule.finished or (end_ns is not None and until >= end_ns):
                self._ended = True
                break
        self._tell_end()

    def _tell_end(self) -> None:
        """No shot follows, also none that waited."""
        if self._ended and not self._parked and not self._stopping and not self._end_told:
            self._end_told = True
            self._link.end()

    def _slice(self, planned: list[Planned]) -> bool:
        """Claim shots and hand them over. False: the bus is away, and they come again."""
        if self._resume_ns and planned:
            planned = self._without_claimed(planned)
        if not planned:
            return True
        latest, index_at = self._timeline.latest, self._timeline.index_at
        since, number = latest.effective_ns, latest.number
        keys = tuple([
            ShotKey(
                shot.item.stamped.exchange_id, shot.copy, shot.lap,
                number if shot.due_ns >= since else index_at(shot.due_ns), shot.item.stamped.route, shot.due_ns,
            )
            for shot in planned
        ])  # fmt: skip
        self._unclaimed = keys, planned
        return self._slice_again()

    def _slice_again(self) -> bool:
        assert self._unclaimed is not None
        keys, planned = self._unclaimed
        if not self._away.attempt(lambda: self._books.claim(keys)):
            return False
        self._unclaimed = None
        for key, shot in zip(keys, planned, strict=True):
            self._hand_over(key, shot)
        self._link.send_shots()
        return True

    def settle_unclaimed(self) -> None:
        """What may be claimed, and was not fired: claim it for certain, and shed it. Raises BusAway."""
        if self._unclaimed is not None:
            keys, _ = self._unclaimed
            self._books.claim(keys)
            self._unclaimed = None
            for key in keys:
                self._books.outcome(key, Failure.SHED_STOP)

    def _without_claimed(self, planned: list[Planned]) -> list[Planned]:
        """A worker before us claimed these, and its live values died with it."""
        for shot in planned:
            if shot.due_ns <= self._resume_ns:
                self._serial += 1
                who = (shot.item.stamped.session_id, shot.copy, shot.lap)
                if self._identities.produce(who, shot.item, self._serial):
                    self._identities.failed(who, shot.item, self._serial)
        return [shot for shot in planned if shot.due_ns > self._resume_ns]

    def _hand_over(self, key: ShotKey, shot: Planned) -> None:
        self._serial += 1
        serial, item = self._serial, shot.item
        need, produces = NOTHING, False
        if self._identities.any:
            who = (item.stamped.session_id, shot.copy, shot.lap)
            need = self._identities.need(who, item, serial)
            produces = self._identities.produce(who, item, serial)
        flight = _Flight(key, item, produces)
        self._flights[serial] = flight
        if self._schedule.cut(shot):
            self._shed(serial, Failure.SHED_STEP)
        elif key.due_ns < self._late_before_ns:
            # We fell behind. The firer would shed it too; not rendering it is what lets us catch up.
            self._shed(serial, Failure.SHED_LATE)
        elif need.failed:
            self._shed(serial, Failure.SHED_FLOW)
        elif need.wait_for:
            self._parked.setdefault(need.wait_for, []).append(serial)
        else:
            self._fire(serial, flight, key.due_ns)

    def _fire(self, serial: int, flight: _Flight, ready_ns: int) -> None:
        key, item = flight.key, flight.item
        if item.unsafe and not self._settings.allow_unsafe:
            raise AssertionError("a request that may change state reached the firing path")  # surveyed before
        template = self._template(flight)
        first = render.shot_fields(template, key.copy, key.lap, self._traces.next())
        flags = pipes.WANTS_ANSWER if flight.produces else 0
        if item.head_only:
            flags |= pipes.HEAD_ONLY
        self._link.shot(serial, ready_ns, flags, first, template.last)

    def _template(self, flight: _Flight) -> render.Template:
        item, stamped = flight.item, flight.item.stamped
        changed: tuple[bytes, bytes] | None = None
        if self._accounts is not None:
            changed = self._accounts.substitute(stamped, flight.key.copy, stamped.request.head, stamped.request.body)
        raw_head, body = changed or (stamped.request.head, stamped.request.body)
        if self._identities.any:
            changed = self._identities.substitute(flight.who, item, raw_head, body) or changed
        keep_host, kind = self._settings.host == "recorded", self._settings.kind
        if changed is not None:
            return render.template(stamped, *changed, self._authority, keep_host=keep_host, kind=kind)
        if item.template is None:
            item.template = render.template(stamped, raw_head, body, self._authority, keep_host=keep_host, kind=kind)
        template: render.Template = item.template
        return template

    # -- what became of them

    def _answer(self, serial: int, answer_head: bytes, body: bytes) -> None:
        flight = self._flights.get(serial)
        if flight is not None:
            if self._exemplars is not None:
                self._heads[serial] = answer_head
            self._identities.answered(flight.who, flight.item, serial, answer_head, body)

    def _results(self, payload: bytes) -> None:
        tolerance = self._settings.length_tolerance
        for serial, sent, first, done, wait, status, number, out, received in pipes.RESULT.iter_unpack(payload):
            flight = self._flights.pop(serial, None)
            if flight is None:
                continue
            failure = _FAILURES[number]
            outcome = self._books.outcome(
                flight.key, failure, sent_ns=sent, first_byte_ns=first, done_ns=done,
                pool_wait_ns=wait + self._held_ns.pop(serial, 0), status=status, bytes_out=out, bytes_in=received,
                verdict=compare(flight.item.stamped.baseline, status, received, tolerance=tolerance)
                if failure is Failure.NONE else Verdict.NONE,
            )  # fmt: skip
            if self._exemplars is not None:
                self._exemplars.consider(outcome, partial(self._head_of, flight), self._heads.pop(serial, b""))
            if flight.produces:
                # Values that an answer did not give are failed now, so that nobody waits for them.
                self._identities.failed(flight.who, flight.item, serial)
                self._release(serial)
        self._tell_end()

    def _head_of(self, flight: _Flight) -> bytes:
        """What was sent, without what is new in every shot: trace context and marker."""
        template = self._template(flight)
        name = b"%b.%d.%d" % (template.name, flight.key.copy, flight.key.lap)
        return b"%bLivefire-Shot: %b\r\n\r\n" % (template.first, name)

    def _shed(self, serial: int, failure: Failure) -> None:
        flight = self._flights.pop(serial)
        self._held_ns.pop(serial, None)
        self._books.outcome(flight.key, failure)
        if flight.produces:
            self._identities.failed(flight.who, flight.item, serial)
            self._release(serial)

    def _release(self, producer: int) -> None:
        """The producer is done: what waited for it goes on, waits for another, or is shed."""
        waiting = self._parked.pop(producer, None)
        if waiting is None:
            return
        now = self._now()
        for serial in waiting:
            flight = self._flights.get(serial)
            if flight is None:
                continue
            need = self._identities.need(flight.who, flight.item, serial)
            if need.failed:
                self._shed(serial, Failure.SHED_FLOW)
            elif need.wait_for and need.wait_for != producer and need.wait_for in self._flights:
                self._parked.setdefault(need.wait_for, []).append(serial)
            else:
                ready = max(now, flight.key.due_ns)
                self._held_ns[serial] = ready - flight.key.due_ns
                self._fire(serial, flight, ready)
        self._link.send_shots()

    def _abandon(self, failure: Failure) -> None:
        """No further result will come."""
        self._parked.clear()
        for serial in list(self._flights):
            if serial in self._flights:
                self._books.outcome(self._flights.pop(serial).key, failure)

    # -- signs of life

    def _book_and_beat(self, now: int, next_beat: int) -> int:
        self._away.attempt(lambda: self._books.flush(now))
        if self._exemplars is not None:
            self._away.attempt(partial(self._exemplars.flush, now))
        if now < next_beat:
            return next_beat
        self._away.attempt(lambda: self.beat(now, "stopping" if self._stopping else self._state, self._reason[1]))
        return now + BEAT_NS

    @property
    def _state(self) -> str:
        if self._timeline.base_ns is None or not self._link.ready:
            return "ready" if self._link.ready else "starting"
        return "holding" if self._orders.holding else "running"

    def beat(self, now: int, state: str, reason: str = "") -> None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        cpu = usage.ru_utime + usage.ru_stime
        gauge = self._link.gauge
        open_shots = sent = answered = lag = last = 0
        ages: tuple[int, ...] = ()
        if gauge is not None:
            sent, answered, open_shots, ages = gauge.sent, gauge.answered, gauge.open_shots, gauge.open_ages_ns
            lag, last, cpu = gauge.lag_ns, gauge.last_sent_ns, cpu + gauge.cpu_s
        record = Beat(
            self._settings.run_id, self._settings.worker, now, os.getpid(), self._timeline.index_at(now), sent,
            answered, open_shots, ages[0] if ages else 0, lag, cpu, last, state, reason, ages,
        )  # fmt: skip
        self._beats.write_records((record,), first_ns=now, last_ns=now)
