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

from collections.abc import Iterable
from typing import Final

from wire.records import Failure, Kind, Outcome, Pane, Sketch, Verdict
from wire.sketch import SCALE, SketchBuilder

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
EMPTY_SKETCH: Final = Sketch(SCALE, 0, (), ())
_NO_DIFFERENCE: Final = (Verdict.NONE, Verdict.SAME)

PaneKey = tuple[int, str, int, str, str, int]  # second, run, step, route, kind, status class


def key_of(pane: Pane) -> PaneKey:
    return (pane.second, pane.run_id, pane.step, pane.route, pane.kind.value, pane.status_class)


class _Counts:
    """A pane being made."""

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
        self.from_due: SketchBuilder | None = None
        self.from_send: SketchBuilder | None = None

    def latency(self, from_due_ns: int, from_send_ns: int) -> None:
        if self.from_due is None or self.from_send is None:
            self.from_due, self.from_send = SketchBuilder(), SketchBuilder()
        self.from_due.add(from_due_ns)
        self.from_send.add(from_send_ns)

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
            from_due=self.from_due.freeze() if self.from_due else EMPTY_SKETCH,
            from_send=self.from_send.freeze() if self.from_send else EMPTY_SKETCH,
        )


class PaneBuilder:
    """Adds outcomes up. `take()` gives what was added since, as panes to be added to those that are stored."""

    def __init__(self) -> None:
        self._counts: dict[PaneKey, _Counts] = {}

    def _at(self, time_ns: int, outcome: Outcome, status_class: int) -> _Counts:
        key = (time_ns // NS, outcome.run_id, outcome.step, outcome.route, outcome.kind.value, status_class)
        found = self._counts.get(key)
        if found is None:
            found = self._counts[key] = _Counts()
        return found

    def add(self, outcome: Outcome) -> None:
        failure = outcome.failure
        answered = failure is Failure.NONE
        status_class = outcome.status // 100 if answered else 0
        due = self._at(outcome.due_ns, outcome, status_class)
        due.offered += 1
        if failure in SHED:
            due.shed += 1
            return
        if failure is Failure.UNKNOWN:
            due.unknown += 1
            return
        done_ns = outcome.done_ns or outcome.due_ns
        done = self._at(done_ns, outcome, status_class)
        done.bytes_out += outcome.bytes_out
        done.bytes_in += outcome.bytes_in
        if answered:
            done.completed += 1
        if not answered or outcome.status >= 500:
            done.errors += 1
        if outcome.verdict not in _NO_DIFFERENCE:
            done.differing += 1
        if answered or failure in (Failure.TIMEOUT, Failure.GIVEN_UP):
            done.latency(done_ns - outcome.due_ns, done_ns - (outcome.sent_ns or outcome.due_ns))

    def add_all(self, outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            self.add(outcome)

    def take(self) -> list[Pane]:
        panes = [counts.freeze(key) for key, counts in self._counts.items()]
        self._counts.clear()
        return panes


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
