"""The load: steps announced, lease renewed, guard asked, until the last step is over or the guard says stop."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec

from analytics.panes import NS
from analytics.store_sqlite import PaneStore
from analytics.windows import ALL_ROUTES, Scope, Tally, tallies
from drill.events import EventKind
from drill.guard import Cause, Decision, Guard, Observation, oldest_open_ns
from drill.isolation import IsolationReport, Proof
from drill.pressure import Arithmetic, Level, Pressure
from drill.proof_watch import ProofWatch
from drill.settings import DrillSettings
from drill.site import Crew
from drill.verdict import StepRun
from replay.away import Away
from replay.settings import AWAY_NS, LEASE_NS, RENEW_NS
from wire.records import Beat, Kind

_SHOWN_S: Final = 3  # a live line shows the last so many seconds, so that there are percentiles

Tell = Callable[..., None]  # kind, text, **detail


class Commands(Protocol):
    """What is used of `replay.conductor.Conductor`."""

    def step(self, index: int, load: float, effective_ns: int, until_ns: int, reason: str = "") -> object: ...

    def renew(self) -> object: ...

    def stop(self, reason: str) -> object: ...

    def end(self) -> object: ...

    def beats(self) -> Mapping[str, Beat]: ...


class Books(Protocol):
    """What the workers book, as panes. `drill.site.Following`."""

    def poll(self) -> object: ...

    def drain(self) -> None: ...

    def production_since(self, since_ns: int) -> None: ...


class LoadRun(msgspec.Struct, frozen=True):
    """What was carried out. `ended_ns`: when no worker had anything open any more."""

    steps: tuple[StepRun, ...]
    decision: Decision | None
    started_ns: int
    ended_ns: int
    workers_failed: dict[str, str]
    isolation: IsolationReport | None


class Load:
    def __init__(
        self,
        *,
        run_id: str,
        settings: DrillSettings,
        arithmetics: Sequence[Arithmetic],
        pressure: Pressure,
        timeout_ns: int,
        conductor: Commands,
        fleet: Crew,
        aggregator: Books,
        store: PaneStore,
        guard: Guard,
        watch: ProofWatch | None,
        stop_asked: Callable[[], str],
        now: Callable[[], int],
        sleep: Callable[[float], None],
        tell: Tell,
        lag_ns: int = 0,
    ) -> None:
        """`lag_ns`: how much longer than among processes of one machine it takes to hear that a worker has left."""
        self._run_id, self._settings = run_id, settings
        self._arithmetics, self._pressure = arithmetics, pressure
        self._timeout_ns = timeout_ns
        self._conductor, self._fleet = conductor, fleet
        self._aggregator, self._store = aggregator, store
        self._guard, self._watch = guard, watch
        self._stop_asked, self._now, self._sleep, self._tell = stop_asked, now, sleep, tell
        self._renewed_ns = self._polled_ns = self._told_s = 0
        self._spans: dict[int, dict[Scope, Tally]] = {}
        self._isolation: IsolationReport | None = None
        self._oldest: dict[int, int] = {}
        self._announced = 0
        self._told_step = -1
        self._lag_ns = lag_ns
        self._beats: Mapping[str, Beat] = {}
        self._away = Away(now)
        self._away_ns = 0  # when the bus was away last
        self._last_word: Callable[[], object] | None = None  # stop or end, until the bus has it

    def run(self) -> LoadRun:
        problem = self._ready()
        if problem is not None:
            return LoadRun((), problem, 0, self._now(), self._fleet.failed(), None)
        for name, bound in self._fleet.bounds().items():
            self._tell(EventKind.NOTE, f"worker {name} {bound}")
        base = self._now() + self._settings.lead_ns
        end = base + self._pressure.total_ns
        self._aggregator.production_since(base)
        decision: Decision | None = None
        while (now := self._now()) < end:
            found: list[Decision | None] = [None]

            def turn(now: int = now, found: list[Decision | None] = found) -> None:
                self._keep_alive(now)
                self._announce(now, base)
                found[0] = self._look(now, base)

            decision = found[0] if self._away.attempt(turn) else self._alone(now)
            if decision is not None:
                self._last_word = functools.partial(self._conductor.stop, decision.said)
                self._away.attempt(self._speak)
                self._tell(EventKind.DECISION, f"stop: {decision.said}", **msgspec.to_builtins(decision))
                break
            self._window_line(now, base)
            self._sleep(self._settings.tick_ns / 1e9)
        else:
            self._last_word = self._conductor.end
            self._away.attempt(self._speak)
        steps = self._carried_out(base, decision)
        failed = self._fleet.failed()
        self._drain(self._settings.lead_ns + (2 * NS if decision else self._timeout_ns + 2 * NS))
        if self._watch is not None:
            self._watch.close()
        return LoadRun(steps, decision, base, self._now(), {**self._fleet.failed(), **failed}, self._isolation)

    def _speak(self) -> None:
        if self._last_word is not None:
            self._last_word()
            self._last_word = None

    def _alone(self, now: int) -> Decision | None:
        """The bus is away. After a lease's time no worker fires any more, and the drill is over."""
        self._away_ns = now
        away_ns = now - self._away.since_ns
        if away_ns < LEASE_NS:
            return None
        return Decision(now, Cause.BUS, f"the bus is away for {away_ns / NS:.1f} s: {self._away.why}")

    def _ready(self) -> Decision | None:
        """Until every worker gave a sign of life, and why it did not."""
        deadline = self._now() + self._settings.ready_ns
        while (now := self._now()) < deadline:

            def turn(now: int = now) -> None:
                self._keep_alive(now)
                self._beats = self._conductor.beats()

            if not self._away.attempt(turn) and (away := self._alone(now)) is not None:
                return away
            gone = self._fleet.gone()
            if gone:
                name, how = next(iter(gone.items()))
                return Decision(now, Cause.WORKER, f"worker {name} ended before the load: {how}")
            failed = next((b for b in self._beats.values() if b.state == "failed"), None)
            if failed is not None:
                return Decision(now, Cause.WORKER, f"worker {failed.worker} failed: {failed.reason}")
            if all(name in self._beats for name in self._fleet.names):
                return None
            self._sleep(self._settings.tick_ns / 1e9)
        missing = ", ".join(name for name in self._fleet.names if name not in self._beats)
        return Decision(
            self._now(), Cause.WORKER, f"no sign of life of {missing} in {self._settings.ready_ns / NS:g} s"
        )

    def _keep_alive(self, now: int) -> None:
        if now - self._renewed_ns >= RENEW_NS:
            self._renewed_ns = now
            self._conductor.renew()

    def _announce(self, now: int, base: int) -> None:
        levels = self._pressure.levels
        while self._announced < len(levels):
            level = levels[self._announced]
            if now < base + level.start_ns - self._settings.lead_ns:
                break
            load = self._arithmetics[level.index].recording_load
            self._conductor.step(level.index, load, base + level.start_ns, base + level.end_ns, "plan")
            self._announced += 1
        level_now = self._pressure.at(now - base)
        if level_now is not None and level_now.index != self._told_step:
            self._told_step = level_now.index
            self._tell_step(level_now)

    def _tell_step(self, level: Level) -> None:
        arithmetic = self._arithmetics[level.index]
        self._tell(
            EventKind.STEP,
            f"step {level.index + 1} of {len(self._pressure.levels)}: {arithmetic.line()} "
            f"for {(level.end_ns - level.held_ns) / NS:g} s"
            + (
                f", after a ramp of {(level.held_ns - level.start_ns) / NS:g} s"
                if level.held_ns > level.start_ns
                else ""
            ),
            step=level.index,
            load=level.load,
            rate=arithmetic.rate,
        )

    def _look(self, now: int, base: int) -> Decision | None:
        if now - self._polled_ns >= self._settings.poll_ns:
            self._polled_ns = now
            self._aggregator.poll()
            self._keep_alive(self._now())  # on a busy machine a look may take a second, and a lease has three
            self._measure(now)
        problem = ""
        if self._watch is not None:
            self._isolation = self._watch.poll(now)
            if self._isolation is not None and self._isolation.verdict is Proof.VIOLATED:
                problem = self._isolation.violations[0]
        beats = self._beats = self._conductor.beats()
        asked = self._stop_asked()
        if now - self._away_ns < NS:
            return None  # the bus is just back: whoever is silent yet may not have noticed
        level = self._pressure.at(now - base)
        if level is not None:
            self._oldest[level.index] = max(self._oldest.get(level.index, 0), oldest_open_ns(beats, now))
        return self._guard.observe(Observation(now, base, self._spans, beats, self._fleet.gone(), problem, asked))

    def _measure(self, now: int) -> None:
        end = now // NS + 1  # with the second that is under way: a decision must not wait for it to end
        longest = max(self._guard.spans_s, default=0)
        panes = self._store.panes(self._run_id, end - longest, end) if longest else []
        self._spans = {span: tallies(panes, end - span, end) for span in self._guard.spans_s}

    def _window_line(self, now: int, base: int) -> None:
        second = now // NS
        if now < base + NS or second - self._told_s < self._settings.window_s:
            return
        self._told_s = second
        first = max(second - _SHOWN_S, -(-base // NS))
        if first >= second:
            return
        found = tallies(self._store.panes(self._run_id, first, second), first, second)
        stress = found.get((Kind.STRESS, ALL_ROUTES), Tally())
        beside = found.get((Kind.PRODUCTION, ALL_ROUTES), Tally())
        level = self._pressure.at(now - base)
        seconds = second - first
        detail: dict[str, Any] = {
            "elapsed_s": (now - base) // NS,
            "step": level.index if level else -1,
            "load": level.load if level else 0.0,
            "offered_rate": stress.offered / seconds,
            "completed_rate": stress.completed / seconds,
            "error_share": stress.error_share,
            "p50_ms": stress.quantile_ms(0.5),
            "p95_ms": stress.quantile_ms(0.95),
            "production_rate": beside.completed / seconds,
            "production_p50_ms": beside.quantile_ms(0.5),
            "open": sum(beat.open_shots for beat in self._beats.values()),
        }
        self._tell(EventKind.WINDOW, window_text(detail), **detail)

    def _carried_out(self, base: int, decision: Decision | None) -> tuple[StepRun, ...]:
        stopped = decision.at_ns if decision is not None else 1 << 62
        runs = []
        for level in self._pressure.levels:
            start, end = base + level.start_ns, base + level.end_ns
            if start >= stopped:
                break
            held = base + level.held_ns
            runs.append(
                StepRun(
                    index=level.index,
                    arithmetic=self._arithmetics[level.index],
                    start_ns=held if end <= stopped else start,
                    end_ns=min(end, stopped),
                    cut=stopped < end,
                    oldest_open_ns=self._oldest.get(level.index, 0),
                    begun_ns=start,
                )
            )
        return tuple(runs)

    def _drain(self, patience_ns: int) -> None:
        """Until the workers are gone: they finish what is open, and their last outcomes count."""
        deadline = self._now() + patience_ns + self._lag_ns
        last = deadline + AWAY_NS
        while not self._fleet.all_gone:
            now = self._now()
            if self._away.since_ns:
                self._away_ns = now
            if now >= min(max(deadline, self._away_ns + 5 * NS), last):
                break

            def turn(now: int = now) -> None:
                self._speak()
                self._keep_alive(now)
                self._aggregator.poll()

            self._away.attempt(turn)
            self._sleep(self._settings.tick_ns / 1e9)
        self._away.attempt(self._aggregator.drain)


def window_text(detail: Mapping[str, Any]) -> str:
    """One line of the live view."""

    def ms(name: str) -> str:
        return "-" if detail[name] is None else f"{detail[name]:.0f} ms"

    errors = "-" if detail["error_share"] is None else f"{detail['error_share']:.1%}"
    line = (
        f"+{detail['elapsed_s']:>3} s  {detail['load']:>3g}x  offered {detail['offered_rate']:>4.0f}/s  "
        f"done {detail['completed_rate']:>4.0f}/s  p50 {ms('p50_ms'):>6}  p95 {ms('p95_ms'):>6}  errors {errors:>5}  "
        f"open {detail['open']:>3}"
    )
    if detail["production_rate"]:
        line += f"  | production {detail['production_rate']:>3.0f}/s  p50 {ms('production_p50_ms')}"
    return line
