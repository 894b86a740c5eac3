"""What a drill comes to: each step judged, the capacity, the exit code. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from analytics.panes import NS
from analytics.windows import ALL_ROUTES, Scope, Tally, tallies
from drill.guard import Cause, Decision
from drill.isolation import IsolationReport, Proof
from drill.pressure import Arithmetic
from drill.thresholds import Grade, Judgement, Threshold, judge, judge_age
from replay.summary import TOLD
from wire.records import Failure, Kind, Pane

FINE: Final = 0
INCONCLUSIVE: Final = 96
STOPPED: Final = 97
VIOLATED: Final = 98
FAILED: Final = 99
MAX_SHED: Final = 0.05  # of the shots of a step; above, what was offered is not what was meant
MIN_REACHED: Final = 0.7  # of a step's planned rate; below, its load was never on


class StepRun(msgspec.Struct, frozen=True):
    """A step as it was carried out: [start_ns, end_ns), unix time. `cut`: the guard stopped the load in it.

    It took effect at `begun_ns` (0: at `start_ns`); what lies between is the ramp, which is load like any other for
    the guard, and is no part of what the step is judged by. A step that was cut is shown whole, with its ramp.
    """

    index: int
    arithmetic: Arithmetic
    start_ns: int
    end_ns: int
    cut: bool = False
    oldest_open_ns: int = 0  # the highest that was seen
    begun_ns: int = 0


class StepResult(msgspec.Struct, frozen=True):
    """`held`: every threshold that could be judged was kept; None when none could, or the step was cut short."""

    index: int
    load: float
    planned_rate: float
    start_ns: int
    end_ns: int
    seconds: float
    cut: bool
    held: bool | None
    stress: Tally
    production: Tally
    judgements: tuple[Judgement, ...]
    routes: dict[str, Tally]
    begun_ns: int = 0

    @property
    def offered_rate(self) -> float:
        return self.stress.offered / self.seconds if self.seconds else 0.0

    @property
    def completed_rate(self) -> float:
        return self.stress.completed / self.seconds if self.seconds else 0.0

    @property
    def reached(self) -> float:
        """The share of the planned rate that was offered, once the ramp was over."""
        return self.offered_rate / self.planned_rate if self.planned_rate else 1.0

    @property
    def shed_share(self) -> float:
        return self.stress.shed / self.stress.offered if self.stress.offered else 0.0

    def as_dict(self) -> dict[str, Any]:
        return {
            "step": self.index + 1,
            "load": self.load,
            "planned_rate": round(self.planned_rate, 3),
            "begun_ns": self.begun_ns,
            "start_ns": self.start_ns,
            "end_ns": self.end_ns,
            "seconds": self.seconds,
            "cut": self.cut,
            "held": self.held,
            "offered_rate": round(self.offered_rate, 3),
            "completed_rate": round(self.completed_rate, 3),
            "stress": figures(self.stress),
            "production": figures(self.production),
            "thresholds": [
                {
                    "threshold": j.threshold.text,
                    "grade": j.grade.value,
                    "value": None if j.value is None else j.threshold.shown(j.value),
                    "route": None if j.route == ALL_ROUTES else j.route,
                }
                for j in self.judgements
            ],
            "routes": {route: figures(tally) for route, tally in sorted(self.routes.items())},
        }


def figures(tally: Tally) -> dict[str, Any]:
    """Counts and latencies (ms, from due) of a sum, for JSON."""
    return {
        "offered": tally.offered,
        "completed": tally.completed,
        "failed": tally.failed,
        "errors": tally.errors,
        "error_share": tally.error_share,
        "shed": tally.shed,
        "unknown": tally.unknown,
        "differing": tally.differing,
        "p50_ms": tally.quantile_ms(0.5),
        "p90_ms": tally.quantile_ms(0.9),
        "p95_ms": tally.quantile_ms(0.95),
        "p99_ms": tally.quantile_ms(0.99),
        "max_ms": tally.max_ms,
    }


def judge_step(
    run: StepRun, panes: Sequence[Pane], thresholds: Sequence[Threshold], decision: Decision | None
) -> StepResult:
    """A threshold `over` so many seconds is judged on every span of that length inside the step, and the worst
    counts; where no span has enough samples, and without `over`, on the step as a whole. The decision counts as it was
    made: what the guard saw then may look better once the late answers are in."""
    by_second: dict[int, list[Pane]] = {}
    for pane in panes:
        by_second.setdefault(pane.second, []).append(pane)
    first, end = -(-run.start_ns // NS), max(run.end_ns // NS, run.start_ns // NS + 1)
    # Without a ramp behind it, a step has all the shots that bear its name, those of its first broken second too.
    ramped = 0 < run.begun_ns < run.start_ns
    own = (p for p in panes if p.step == run.index and p.kind is Kind.STRESS)
    stress = tallies(own, first, end) if ramped else tallies(own, 0, 1 << 40)
    beside = tallies((p for s in range(first, end) for p in by_second.get(s, ())), first, end)
    whole = {**{scope: t for scope, t in beside.items() if scope[0] is Kind.PRODUCTION}, **stress}
    judgements = []
    for threshold in thresholds:
        if threshold.metric == "oldest open":
            found = judge_age(threshold, run.oldest_open_ns)
        else:
            starts = range(first, end - threshold.over_s + 1) if threshold.over_s else ()
            spans = (judge(threshold, _span(by_second, at, threshold.over_s)) for at in starts)
            graded = [j for j in spans if j.grade is not Grade.UNKNOWN]
            found = max(graded, key=lambda j: j.value or 0.0) if graded else judge(threshold, whole)
        stopped = run.cut and decision is not None and decision.cause is Cause.THRESHOLD
        if stopped and decision is not None and decision.threshold == threshold.text and found.grade is not Grade.FAIL:
            found = Judgement(threshold, Grade.FAIL, decision.value, decision.route or ALL_ROUTES)
        judgements.append(found)
    failed = any(j.grade is Grade.FAIL for j in judgements)
    blamed = run.cut and decision is not None and decision.cause in (Cause.THRESHOLD, Cause.CAP)
    judged = any(j.grade is Grade.PASS for j in judgements)
    held = False if failed or blamed else None if run.cut or not judged else True
    return StepResult(
        index=run.index,
        load=run.arithmetic.load,
        planned_rate=run.arithmetic.rate,
        start_ns=run.start_ns,
        end_ns=run.end_ns,
        seconds=float(end - first) if ramped else (run.end_ns - run.start_ns) / NS,
        cut=run.cut,
        held=held,
        stress=stress.get((Kind.STRESS, ALL_ROUTES), Tally()),
        production=beside.get((Kind.PRODUCTION, ALL_ROUTES), Tally()),
        judgements=tuple(judgements),
        routes={route: tally for (_, route), tally in stress.items() if route != ALL_ROUTES},
        begun_ns=run.begun_ns or run.start_ns,
    )


def _span(by_second: Mapping[int, Sequence[Pane]], first: int, length: int) -> Mapping[Scope, Tally]:
    seconds = range(first, first + length)
    return tallies((pane for second in seconds for pane in by_second.get(second, ())), first, first + length)


class Capacity(msgspec.Struct, frozen=True):
    """The highest load that was held, with every lower one. `rate` is what was offered there, per second."""

    step: int | None = None  # index; None: not even the lowest was held
    load: float = 0.0
    rate: float = 0.0
    limited: bool = False  # a higher step was not held: the knee lies between
    reached: float = 1.0  # the share of the step's planned rate that was offered

    def said(self) -> str:
        if self.step is None:
            return "no step was held" if self.limited else "no step could be judged"
        more = "" if self.limited else "at least "
        part = f", {self.reached:.0%} of what was meant" if self.reached < 0.95 else ""
        return f"{more}{self.load:g}x = {self.rate:,.0f} requests/s{part}"


def capacity_of(steps: Sequence[StepResult]) -> Capacity:
    best: StepResult | None = None
    limited = False
    for step in sorted(steps, key=lambda s: s.load):
        if step.held is False:
            limited = True
            break
        if step.held and step.shed_share <= MAX_SHED:
            best = step
    if best is None:
        return Capacity(limited=limited)
    return Capacity(best.index, best.load, best.offered_rate, limited, best.reached)


class Fidelity(msgspec.Struct, frozen=True):
    """At the step nearest to 1x: the share of answers that were the recorded ones, and of shots that were sent. Of a
    step that was cut short all count as sent: what the stop held back says nothing of the load before it."""

    step: int | None = None
    same: float | None = None  # None: nothing was answered
    sent: float | None = None

    @property
    def score(self) -> float | None:
        return None if self.same is None or self.sent is None else self.same * self.sent


def fidelity_of(steps: Sequence[StepResult]) -> Fidelity:
    found = min(steps, key=lambda step: abs(step.load - 1.0), default=None)
    if found is None or not found.stress.completed:
        return Fidelity(found.index if found else None)
    t = found.stress
    sent = 1.0 if found.cut else 1 - t.shed / max(t.offered, t.shed, 1)
    return Fidelity(found.index, 1 - t.differing / t.completed, sent)


class Verdict(msgspec.Struct, frozen=True):
    """`headline` is one line; `reasons` say why, for people."""

    exit_code: int
    headline: str
    reasons: tuple[str, ...] = ()


def verdict_of(
    *,
    steps: Sequence[StepResult],
    decision: Decision | None,
    isolation: IsolationReport,
    disposable: bool,
    fidelity: Fidelity,
    enough_fidelity: float,
    workers_failed: Mapping[str, str],
    failures: Mapping[Failure, int],
    lost: int = 0,
) -> Verdict:
    """`lost`: shots that were claimed and have no outcome, or, below 0, outcomes that nobody claimed. `failures`: why
    shots of the whole load failed, or were shed."""
    capacity = capacity_of(steps)
    if isolation.verdict is Proof.VIOLATED:
        return Verdict(VIOLATED, "isolation is violated", isolation.violations)
    doubts = _doubts(steps, decision, isolation, disposable, fidelity, enough_fidelity, workers_failed, failures)
    if lost:
        doubts.append(f"the account does not balance: {abs(lost):,} shots {'lost' if lost > 0 else 'too many'}")
    failed = [
        f"step {step.index + 1} ({step.load:g}x): {j.said()}"
        for step in steps
        for j in step.judgements
        if j.grade is Grade.FAIL
    ]
    if doubts:
        # What was seen all the same: it is no proof, and it is what people ask next.
        stopped = [decision.said] if decision is not None and decision.said not in doubts else []
        return Verdict(INCONCLUSIVE, "inconclusive", (*doubts, *stopped, *failed))
    if decision is not None:
        return Verdict(STOPPED, f"stopped by the guard; capacity {capacity.said()}", (decision.said,))
    if failed:
        return Verdict(FAILED, f"a threshold failed; capacity {capacity.said()}", tuple(failed))
    return Verdict(FINE, f"every step was held; capacity {capacity.said()}")


def _doubts(
    steps: Sequence[StepResult],
    decision: Decision | None,
    isolation: IsolationReport,
    disposable: bool,
    fidelity: Fidelity,
    enough_fidelity: float,
    workers_failed: Mapping[str, str],
    failures: Mapping[Failure, int],
) -> list[str]:
    doubts = []
    if decision is not None and decision.cause in (Cause.WORKER, Cause.ASKED, Cause.BLIND, Cause.BUS):
        doubts.append(decision.said)
    doubts.extend(f"worker {name} failed: {how}" for name, how in workers_failed.items())
    if isolation.verdict is Proof.NOT_PROVEN and not disposable:
        doubts.append(isolation.said())
    if not steps:
        return [*doubts, "no load was fired"]
    # Of what went out in a ramp nothing is judged: it is neither this step's load nor the one before.
    all_ramp = [s for s in steps if not s.cut and s.begun_ns < s.start_ns and not (s.stress.offered or s.stress.shed)]
    doubts.extend(
        f"step {s.index + 1} ({s.load:g}x): ended before its load was reached: make it longer, or its ramp shorter"
        for s in all_ramp
    )
    if fidelity.same is None and not any(s.index == fidelity.step for s in all_ramp):
        why = ", ".join(f"{failures[what]:,} {TOLD[what]}" for what in sorted(failures, key=lambda f: -failures[f]))
        doubts.append("nothing was answered at the lowest load" + (f"; of all shots {why}" if why else ""))
    elif fidelity.score is not None and fidelity.score < enough_fidelity:
        doubts.append(
            f"fidelity {fidelity.score:.0%} is below {enough_fidelity:.0%}: at {steps[fidelity.step or 0].load:g}x "
            f"{fidelity.same:.0%} of the answers were as recorded, {fidelity.sent:.0%} of the shots were sent"
        )
    shed = [s for s in steps if s.shed_share > MAX_SHED and not s.cut]
    doubts.extend(f"step {s.index + 1} ({s.load:g}x): {s.shed_share:.0%} of the shots were shed" for s in shed)
    doubts.extend(
        f"step {s.index + 1} ({s.load:g}x): {s.offered_rate:,.0f}/s were offered of {s.planned_rate:,.0f}/s planned: "
        f"it is shorter than the recorded sessions, or fires a quiet part of them; make it longer"
        for s in steps
        if s.reached < MIN_REACHED and not s.cut and s not in all_ramp
    )
    if all(step.held is None for step in steps) and steps[0].judgements:
        doubts.append("no threshold had enough samples")
    elif decision is None:
        of_each = zip(*(step.judgements for step in steps), strict=True)
        doubts.extend(
            f"{judged[0].threshold.text}: never judged, there were not enough samples"
            for judged in of_each
            if all(j.grade is Grade.UNKNOWN for j in judged)
        )
    return doubts
