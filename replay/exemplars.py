"""Single shots worth looking at: of each route the slowest and the first failed ones, their heads masked.

Bounded: of 10 s, two slowest and two failed a route, of 200 routes. They explain a window and are part of no account:
while the bus is away they are dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from bus.ports import Bus
from mask.heads import Heads
from mask.settings import MaskSettings
from mask.values import Values
from replay.book import end_partition
from replay.settings import SECOND_NS
from wire import topics
from wire.records import Exemplar, Failure, Manifest, Outcome

EVERY_NS: Final = 10 * SECOND_NS
SLOWEST: Final = 2
FAILED: Final = 2
_MAX_ROUTES: Final = 200
_MAX_HEAD: Final = 16_384

Head = Callable[[], bytes]


class _Candidate(NamedTuple):
    latency_ns: int
    outcome: Outcome
    request_head: Head
    response_head: bytes


class _Route:
    __slots__ = ("enough_ns", "failed", "slowest")

    def __init__(self) -> None:
        self.slowest: list[_Candidate] = []
        self.failed: list[_Candidate] = []
        self.enough_ns = -1  # what is not slower is none of the slowest


class Exemplars:
    def __init__(self, bus: Bus, manifest: Manifest, mask_key: bytes) -> None:
        """`mask_key`: as recorders have, so that a value has the same token here and there."""
        settings = MaskSettings()
        self._heads = Heads(Values(mask_key, settings), settings, {})
        self._run_id, self._worker = manifest.owner_id, manifest.partition
        self._writer = bus.writer(topics.EXEMPLARS, manifest.partition, manifest)
        self._routes: dict[str, _Route] = {}
        self._next_ns = 0

    def consider(self, outcome: Outcome, request_head: Head, response_head: bytes) -> None:
        """`request_head` is only called when the shot is written down. `response_head`: b"" where it is not known."""
        route = self._routes.get(outcome.route)
        if route is None:
            if len(self._routes) >= _MAX_ROUTES:
                return
            route = self._routes[outcome.route] = _Route()
        latency = outcome.done_ns - outcome.due_ns
        failed = outcome.failure is not Failure.NONE or outcome.status >= 500
        if failed:
            if outcome.sent_ns and len(route.failed) < FAILED:
                route.failed.append(_Candidate(latency, outcome, request_head, response_head))
        elif latency > route.enough_ns:
            route.slowest.append(_Candidate(latency, outcome, request_head, response_head))
            route.slowest.sort(key=lambda candidate: -candidate.latency_ns)
            del route.slowest[SLOWEST:]
            if len(route.slowest) == SLOWEST:
                route.enough_ns = route.slowest[-1].latency_ns

    def flush(self, now_ns: int, *, force: bool = False) -> None:
        """Write what was kept, when it is due. Raises BusAway; then they are gone."""
        if not force and now_ns < self._next_ns:
            return
        self._next_ns = now_ns + EVERY_NS
        routes, self._routes = self._routes, {}
        kept = [self._masked(one) for route in routes.values() for one in (*route.failed, *route.slowest)]
        if kept:
            times = [exemplar.outcome.due_ns for exemplar in kept]
            self._writer.write_records(kept, first_ns=min(times), last_ns=max(times))

    def _masked(self, one: _Candidate) -> Exemplar:
        head = one.response_head or (b"HTTP/1.1 %d\r\n\r\n" % one.outcome.status if one.outcome.status else b"")
        return Exemplar(
            one.outcome, self._heads.head(one.request_head()[:_MAX_HEAD]), self._heads.head(head[:_MAX_HEAD])
        )

    def end(self, now_ns: int, reason: str) -> None:
        """Write what is left, and that there is no more. Raises BusAway."""
        self.flush(now_ns, force=True)
        end_partition(self._writer, topics.EXEMPLARS, self._run_id, self._worker, reason)
