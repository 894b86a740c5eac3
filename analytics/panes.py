"""Outcomes -> one-second panes.

A pane is keyed by (second, run, step, route, kind, status class), and everything in it adds up, so panes that
were made of parts of a second are simply added: late outcomes are one more increment. The rules:

- `offered`, and with it `shed` and `unknown`, count in the second in which the shot was *due*;
- `completed` (an answer came), `errors` (a failure, or a status >= 500), `differing`, bytes and latencies count in the
  second in which it was *done*;
- a failed shot stands in class 0, whatever of an answer had come;
- latencies hold answers, and timeouts: leaving those out would make a target that hangs look fast. Refused and
  reset connections are in `errors` alone, because they would do the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

from wire.records import Failure, Kind, Outcome, Pane, Sketch, Verdict
from wire.sketch import SCALE, SketchBuilder, sketch_of

NS: Final = 1_000_000_000
SHED: Final = frozenset(
    {
        Failure.SHED_RATE,
        Failure.SHED_OPEN,
        Failure.SHED_LATE,
        Failure.SHED_FLOW,
        Failure.SHED_STEP,
        Failure.SHED_STOP,
    }
)
# Looked up once: a member of an enum costs as much as an addition.
_ANSWERED: Final = Failure.NONE
_UNKNOWN: Final = Failure.UNKNOWN
_SLOW: Final = frozenset({Failure.TIMEOUT, Failure.GIVEN_UP})
_SAME: Final = Verdict.SAME
_NO_VERDICT: Final = Verdict.NONE
EMPTY_SKETCH: Final = Sketch(SCALE, 0, (), ())

# second -> status, or None for what has failed -> route. The status as it is: its class is made once a pane, not once
# an outcome. Dicts in dicts: a key of three would be made, and hashed whole, for each outcome.
_Group = dict[int, dict["int | None", dict[str, "_Counts"]]]
PaneKey = tuple[int, str, int, str, str, int]  # second, run, step, route, kind, status class


def key_of(pane: Pane) -> PaneKey:
    return (pane.second, pane.run_id, pane.step, pane.route, pane.kind.value, pane.status_class)


class _Counts:
    """What one second, route and status have come to."""

    __slots__ = (
        "bytes_in",
        "bytes_out",
        "completed",
        "differing",
        "errors",
        "from_due",
        "from_send",
        "offered",
        "shed",
        "unknown",
    )

    def __init__(self) -> None:
        self.offered = self.completed = self.errors = self.shed = self.unknown = self.differing = 0
        self.bytes_out = self.bytes_in = 0
        # Latencies in ns as they are: counting them all at once costs less than half of adding each to a sketch.
        self.from_due: list[int] = []
        self.from_send: list[int] = []

    def add(self, other: _Counts) -> None:
        self.offered += other.offered
        self.completed += other.completed
        self.errors += other.errors
        self.shed += other.shed
        self.unknown += other.unknown
        self.differing += other.differing
        self.bytes_out += other.bytes_out
        self.bytes_in += other.bytes_in
        self.from_due += other.from_due
        self.from_send += other.from_send

    def freeze(self, key: PaneKey) -> Pane:
        second, run_id, step, route, kind, status_class = key
        return Pane(
            second=second,
            run_id=run_id,
            step=step,
            route=route,
            kind=Kind(kind),
            status_class=status_class,
            offered=self.offered,
            completed=self.completed,
            errors=self.errors,
            shed=self.shed,
            unknown=self.unknown,
            differing=self.differing,
            bytes_out=self.bytes_out,
            bytes_in=self.bytes_in,
            from_due=sketch_of(self.from_due) if self.from_due else EMPTY_SKETCH,
            from_send=sketch_of(self.from_send) if self.from_send else EMPTY_SKETCH,
        )


class PaneBuilder:
    """Adds outcomes up. `take()` gives what was added since, as panes to be added to those that are stored."""

    def __init__(self) -> None:
        # By run, step and kind first, because neighbours share them: only the rest is looked up for each.
        self._groups: dict[tuple[str, int, str], _Group] = {}
        self.failures: Counter[Failure] = Counter()  # of stress shots, since it was made: panes do not tell them apart

    def add(self, outcome: Outcome) -> None:
        self.add_all((outcome,))

    def add_all(self, outcomes: Iterable[Outcome]) -> int:
        """Returns when the last of them was sent, ns; 0 when none was."""
        last_sent_ns = 0
        run_id, step, kind = "", 0, None
        group: _Group = {}
        here: dict[int | None, dict[str, _Counts]] = {}
        begin_ns = end_ns = 0  # of the second that `here` is of; neighbours are due in the same one, mostly
        for outcome in outcomes:
            if outcome.kind is not kind or outcome.step != step or outcome.run_id != run_id:
                run_id, step, kind = outcome.run_id, outcome.step, outcome.kind
                group = self._groups.setdefault((run_id, step, kind.value), {})
                begin_ns = end_ns = 0
            due_ns, sent_ns = outcome.due_ns, outcome.sent_ns
            if sent_ns > last_sent_ns:
                last_sent_ns = sent_ns
            if not begin_ns <= due_ns < end_ns:
                second = due_ns // NS
                begin_ns, end_ns = second * NS, second * NS + NS
                here = group.setdefault(second, {})
            if outcome.failure is not _ANSWERED:
                _add_failed(outcome, here, group)
                if kind is Kind.STRESS:
                    self.failures[outcome.failure] += 1
                continue
            status, route, done_ns = outcome.status, outcome.route, outcome.done_ns or due_ns
            try:
                counts = here[status][route]
            except KeyError:
                counts = here.setdefault(status, {}).setdefault(route, _Counts())
            if done_ns >= end_ns or done_ns < begin_ns:
                counts.offered += 1
                counts = _counts(group, done_ns // NS, status, route)
                counts.offered -= 1
            counts.bytes_out += outcome.bytes_out
            counts.bytes_in += outcome.bytes_in
            verdict = outcome.verdict
            if verdict is not _SAME and verdict is not _NO_VERDICT:
                counts.differing += 1
            # How many there are of these tells how many were completed, and offered, but for those of two seconds.
            counts.from_due.append(done_ns - due_ns)
            counts.from_send.append(done_ns - (sent_ns or due_ns))
        return last_sent_ns

    def take(self) -> list[Pane]:
        panes = [
            counts.freeze((second, run_id, step, route, kind, status_class))
            for (run_id, step, kind), group in self._groups.items()
            for (second, route, status_class), counts in _by_class(group).items()
        ]
        self._groups.clear()
        return panes


def _counts(group: _Group, second: int, status: int | None, route: str) -> _Counts:
    routes = group.setdefault(second, {}).setdefault(status, {})
    found = routes.get(route)
    if found is None:
        found = routes[route] = _Counts()
    return found


def _add_failed(outcome: Outcome, here: dict[int | None, dict[str, _Counts]], group: _Group) -> None:
    """`here` is of the second in which it was due."""
    routes, route, failure = here.setdefault(None, {}), outcome.route, outcome.failure
    due = routes.get(route)
    if due is None:
        due = routes[route] = _Counts()
    due.offered += 1
    if failure in SHED:
        due.shed += 1
        return
    if failure is _UNKNOWN:
        due.unknown += 1
        return
    due_ns = outcome.due_ns
    done_ns = outcome.done_ns or due_ns
    done = _counts(group, done_ns // NS, None, route)
    done.bytes_out += outcome.bytes_out
    done.bytes_in += outcome.bytes_in
    if outcome.verdict is not _SAME and outcome.verdict is not _NO_VERDICT:
        done.differing += 1
    done.errors += 1
    if failure in _SLOW:
        done.from_due.append(done_ns - due_ns)
        done.from_send.append(done_ns - (outcome.sent_ns or due_ns))


def _by_class(group: _Group) -> dict[tuple[int, str, int], _Counts]:
    """By second, route and status class; what was answered is counted whole."""
    found: dict[tuple[int, str, int], _Counts] = {}
    for second, statuses in group.items():
        for status, routes in statuses.items():
            for route, counts in routes.items():
                if status is not None:
                    counts.completed = len(counts.from_due)
                    counts.offered += counts.completed
                    counts.errors = counts.completed if status >= 500 else 0
                key = second, route, status // 100 if status is not None else 0
                if key in found:
                    found[key].add(counts)
                else:
                    found[key] = counts
    return found


def add_panes(one: Pane, other: Pane) -> Pane:
    """The sum of two panes of one key. Raises ValueError for different keys."""
    if key_of(one) != key_of(other):
        raise ValueError("panes of different keys cannot be added")
    return Pane(
        second=one.second,
        run_id=one.run_id,
        step=one.step,
        route=one.route,
        kind=one.kind,
        status_class=one.status_class,
        offered=one.offered + other.offered,
        completed=one.completed + other.completed,
        errors=one.errors + other.errors,
        shed=one.shed + other.shed,
        unknown=one.unknown + other.unknown,
        differing=one.differing + other.differing,
        bytes_out=one.bytes_out + other.bytes_out,
        bytes_in=one.bytes_in + other.bytes_in,
        from_due=_add_sketches(one.from_due, other.from_due),
        from_send=_add_sketches(one.from_send, other.from_send),
        open_shots=max(one.open_shots, other.open_shots),
        oldest_open_ns=max(one.oldest_open_ns, other.oldest_open_ns),
        source=one.source + other.source,
    )


def _add_sketches(one: Sketch, other: Sketch) -> Sketch:
    if not one.counts and not one.zero:
        return other
    if not other.counts and not other.zero:
        return one
    builder = SketchBuilder()
    builder.merge(one)
    builder.merge(other)
    return builder.freeze()
