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

_Group = dict[tuple[int, str, int], "_Counts"]  # second, route, status class
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
        # Latencies in ns as they are: counting them all at once costs half of adding each to a sketch.
        self.from_due: list[int] = []
        self.from_send: list[int] = []

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
        # Two levels, because neighbours share the run, the step and the kind: only the rest is looked up for each.
        self._groups: dict[tuple[str, int, str], _Group] = {}

    def add(self, outcome: Outcome) -> None:
        self.add_all((outcome,))

    def add_all(self, outcomes: Iterable[Outcome]) -> None:
        run_id, step, kind = "", 0, None
        group: _Group = {}
        for outcome in outcomes:
            if outcome.kind is not kind or outcome.step != step or outcome.run_id != run_id:
                run_id, step, kind = outcome.run_id, outcome.step, outcome.kind
                group = self._groups.setdefault((run_id, step, kind.value), {})
            failure, status, route, due_ns = outcome.failure, outcome.status, outcome.route, outcome.due_ns
            answered = failure is _ANSWERED
            status_class = status // 100 if answered else 0
            second = due_ns // NS
            due = group.get((second, route, status_class))
            if due is None:
                due = group[second, route, status_class] = _Counts()
            due.offered += 1
            if not answered:
                if failure in SHED:
                    due.shed += 1
                    continue
                if failure is _UNKNOWN:
                    due.unknown += 1
                    continue
            done_ns = outcome.done_ns or due_ns
            done = due
            done_s = done_ns // NS
            if done_s != second:
                found = group.get((done_s, route, status_class))
                done = found if found is not None else group.setdefault((done_s, route, status_class), _Counts())
            done.bytes_out += outcome.bytes_out
            done.bytes_in += outcome.bytes_in
            verdict = outcome.verdict
            if verdict is not _SAME and verdict is not _NO_VERDICT:
                done.differing += 1
            if answered:
                done.completed += 1
                if status >= 500:
                    done.errors += 1
            else:
                done.errors += 1
                if failure not in _SLOW:
                    continue
            done.from_due.append(done_ns - due_ns)
            done.from_send.append(done_ns - (outcome.sent_ns or due_ns))

    def take(self) -> list[Pane]:
        panes = [
            counts.freeze((second, run_id, step, route, kind, status_class))
            for (run_id, step, kind), group in self._groups.items()
            for (second, route, status_class), counts in group.items()
        ]
        self._groups.clear()
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
