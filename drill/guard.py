"""The guard: says when the load has to stop, and why. A pure state machine; time comes in with what is observed.

It decides once, and for good. Reasons, in the order in which they are looked at:

- `isolation`: the proof broke while the load was on;
- `worker`: one is gone, failed, or silent longer than `silent_ns` (its lease is about to end);
- `cap`: as many shots are open as the plan allows;
- `blind`: a threshold is about production, and nothing of production has been seen for some time: the recorder may be
  gone, and nobody would know what the load does to real users;
- `threshold`: one with `over` failed on the last so many seconds, or the oldest open shot is too old.

A threshold is not judged before its span lies inside the time under load: a window that is half empty says
nothing of health.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final

import msgspec

from analytics.windows import ALL_ROUTES, Scope, Tally
from drill.thresholds import Grade, Judgement, Source, Threshold, judge, judge_age, shown_ns
from wire.records import Beat, Kind

SILENT_NS: Final = 1_500_000_000
BLIND_NS: Final = 10_000_000_000  # at least, and twice the threshold's span


class Cause(StrEnum):
    ISOLATION = "isolation"
    WORKER = "worker"
    CAP = "cap"
    BLIND = "blind"
    THRESHOLD = "threshold"
    ASKED = "asked"  # a person, or `livefire stop`
    BUS = "bus"  # it is away for as long as a lease lasts; the load has ended by itself


class Observation(msgspec.Struct, frozen=True):
    """What is known at one moment."""

    now_ns: int
    started_ns: int  # when the load began
    spans: Mapping[int, Mapping[Scope, Tally]]  # by length in s: sums of the last so many seconds
    beats: Mapping[str, Beat]  # the latest of each worker
    gone: Mapping[str, str] = {}  # workers whose process ended: name -> how
    isolation_problem: str = ""
    asked: str = ""


class Decision(msgspec.Struct, frozen=True):
    """Stop. `said` is one line that names what, where, and how much."""

    at_ns: int
    cause: Cause
    said: str
    threshold: str = ""
    route: str = ""
    value: float | None = None


class Guard:
    def __init__(
        self, thresholds: Sequence[Threshold], *, max_open: int, workers: Sequence[str], silent_ns: int = SILENT_NS
    ) -> None:
        self._thresholds = [threshold for threshold in thresholds if threshold.guards]
        self._max_open = max_open
        self._workers = tuple(workers)
        self._silent_ns = silent_ns
        self._of_production = [t for t in self._thresholds if t.source is Source.PRODUCTION and t.over_s]
        self._production_ns = 0  # when production was last seen; 0 = not yet
        self.decision: Decision | None = None
        self.judgements: dict[str, Judgement] = {}  # the latest of each threshold, by its text

    @property
    def spans_s(self) -> tuple[int, ...]:
        """The lengths of span that an observation has to hold."""
        return tuple(sorted({threshold.over_s for threshold in self._thresholds if threshold.over_s}))

    def observe(self, seen: Observation) -> Decision | None:
        """The decision, at the moment at which it is made; None before, and after."""
        if self.decision is not None:
            return None
        self.decision = (
            self._isolation(seen)
            or self._asked(seen)
            or self._worker(seen)
            or self._cap(seen)
            or self._blind(seen)
            or self._threshold(seen)
        )
        return self.decision

    def _isolation(self, seen: Observation) -> Decision | None:
        if not seen.isolation_problem:
            return None
        return Decision(seen.now_ns, Cause.ISOLATION, f"isolation is violated: {seen.isolation_problem}")

    def _asked(self, seen: Observation) -> Decision | None:
        return Decision(seen.now_ns, Cause.ASKED, seen.asked) if seen.asked else None

    def _worker(self, seen: Observation) -> Decision | None:
        for name in self._workers:
            if name in seen.gone:
                return Decision(seen.now_ns, Cause.WORKER, f"worker {name} is gone: {seen.gone[name]}")
            beat = seen.beats.get(name)
            if beat is not None and beat.state == "failed":
                return Decision(seen.now_ns, Cause.WORKER, f"worker {name} failed: {beat.reason or 'no reason given'}")
            silent_ns = seen.now_ns - (seen.started_ns if beat is None else max(beat.at_ns, seen.started_ns))
            if silent_ns > self._silent_ns:
                return Decision(
                    seen.now_ns, Cause.WORKER, f"worker {name} gave no sign of life for {shown_ns(silent_ns)}"
                )
        return None

    def _cap(self, seen: Observation) -> Decision | None:
        open_shots = sum(beat.open_shots for beat in seen.beats.values())
        if open_shots < self._max_open:
            return None
        return Decision(
            seen.now_ns, Cause.CAP, f"{open_shots} shots are open, the plan's cap", "caps.open", "", float(open_shots)
        )

    def _blind(self, seen: Observation) -> Decision | None:
        if not self._of_production:
            return None
        span_s = min(threshold.over_s for threshold in self._of_production)
        tally = seen.spans.get(span_s, {}).get((Kind.PRODUCTION, ALL_ROUTES))
        if tally is not None and (tally.offered or tally.finished):
            self._production_ns = seen.now_ns
        unseen_ns = seen.now_ns - (self._production_ns or seen.started_ns)
        if unseen_ns <= max(BLIND_NS, 2 * span_s * 1_000_000_000):
            return None
        threshold = self._of_production[0].text
        return Decision(
            seen.now_ns,
            Cause.BLIND,
            f"nothing of production was seen for {shown_ns(unseen_ns)}: {threshold} is blind",
            threshold,
        )

    def _threshold(self, seen: Observation) -> Decision | None:
        for threshold in self._thresholds:
            judgement = self._judge(threshold, seen)
            if judgement is None:
                continue
            self.judgements[threshold.text] = judgement
            if judgement.grade is Grade.FAIL:
                route = "" if judgement.route == ALL_ROUTES else judgement.route
                return Decision(seen.now_ns, Cause.THRESHOLD, judgement.said(), threshold.text, route, judgement.value)
        return None

    def _judge(self, threshold: Threshold, seen: Observation) -> Judgement | None:
        if threshold.metric == "oldest open":
            return judge_age(threshold, oldest_open_ns(seen.beats, seen.now_ns))
        if seen.now_ns - seen.started_ns < threshold.over_s * 1_000_000_000:
            return None
        return judge(threshold, seen.spans.get(threshold.over_s, {}))


def oldest_open_ns(beats: Mapping[str, Beat], now_ns: int) -> int:
    """The age now of the oldest shot that was open at a worker's latest beat. It may have been answered since, so
    the time since the beat is not added."""
    return max((beat.oldest_open_ns for beat in beats.values()), default=0)
