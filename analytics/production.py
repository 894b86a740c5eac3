"""Production beside stress: recorded exchanges -> outcomes of kind `production`.

The recording goes on during a drill and sees stress traffic too: what carries a marker (valid or not, as
docs/marker.md has it: only a request without any is production) is left out, and so are other servers than the entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from wire.head import field, method_of, target_of
from wire.records import Exchange, Failure, Fault, Kind, Mode, Outcome, Verdict
from wire.routes import RouteMatcher

MARKER: Final = b"livefire-marker"
_UNSEEN: Final = frozenset({Fault.GAP, Fault.MIDSTREAM, Fault.UNFINISHED})


def done_ns(exchange: Exchange) -> int:
    """When the latest that was seen of it was seen."""
    done = exchange.response_end_ns or exchange.response_start_ns or exchange.request_end_ns
    return max(done, exchange.request_start_ns)


class ProductionReader:
    """Makes outcomes of exchanges, and counts in `skipped` why others were left out."""

    def __init__(self, run_id: str, routes: RouteMatcher, servers: Sequence[str], since_ns: int) -> None:
        """`servers`: "ip:port" or ":port" of the entry; none = all. Requests before `since_ns` are left out."""
        self._run_id = run_id
        self._routes = routes
        self._exact = {server for server in servers if not server.startswith(":")}
        self._ports = tuple(server for server in servers if server.startswith(":"))
        self.since_ns = since_ns
        self.until_ns: int | None = None  # what was done later is left out
        self.skipped: dict[str, int] = {}

    def outcome(self, exchange: Exchange) -> Outcome | None:
        reason = self._reason_to_skip(exchange)
        if reason:
            self.skipped[reason] = self.skipped.get(reason, 0) + 1
            return None
        head, answer = exchange.request.head, exchange.response
        started = exchange.request_start_ns
        return Outcome(
            run_id=self._run_id,
            exchange_id=exchange.exchange_id,
            copy=0,
            lap=0,
            step=-1,
            route=self._routes.name(method_of(head), target_of(head)),
            kind=Kind.PRODUCTION,
            due_ns=started,
            sent_ns=started,
            first_byte_ns=exchange.response_start_ns if answer else 0,
            done_ns=done_ns(exchange),
            pool_wait_ns=0,
            status=answer.status if answer else 0,
            failure=Failure.NONE if answer else Failure.RESET,
            bytes_out=exchange.request.body_bytes,
            bytes_in=answer.body_bytes if answer else 0,
            verdict=Verdict.NONE,
            worker=exchange.host,
        )

    def _reason_to_skip(self, exchange: Exchange) -> str:
        if exchange.request_start_ns <= 0:
            return "no_time"
        if exchange.request_start_ns < self.since_ns:
            return "before"
        if self.until_ns is not None and done_ns(exchange) > self.until_ns:
            return "after"
        if (self._exact or self._ports) and not (
            exchange.server in self._exact or (self._ports and exchange.server.endswith(self._ports))
        ):
            return "other_server"
        if exchange.mode is Mode.OPAQUE:
            return "opaque"
        if field(exchange.request.head, MARKER) is not None:
            return "marked"
        if exchange.response is None and not _UNSEEN.isdisjoint(exchange.faults):
            return "answer_not_seen"  # the recorder's loss, not production's
        return ""
