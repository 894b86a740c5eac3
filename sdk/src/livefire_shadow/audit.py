"""Counters of what this process did with marked requests, for the run's verdict.

One `Audit` a process (`AUDIT`), because the guard on SQLAlchemy's engines is one a process too.
"""

import json
import os
import threading
from collections import Counter
from datetime import UTC, datetime

from livefire_shadow.marker import Reason

PATH = "/.livefire/audit"
# Distinct places kept; a violation at a further place is still counted, in `violations_elsewhere`.
MAX_PLACES = 200


class Audit:
    """Thread-safe counters; `snapshot()` is what `GET /.livefire/audit` answers."""

    def __init__(self, service: str = "") -> None:
        self._lock = threading.Lock()
        self.service = service
        self._clear()

    def _clear(self) -> None:
        self._since = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._totals: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._statements: Counter[str] = Counter()
        self._writes: Counter[str] = Counter()
        self._mocked: Counter[str] = Counter()
        self._blocked: Counter[tuple[str, str]] = Counter()
        self._violations: Counter[tuple[str, str, str, str]] = Counter()
        self._lost: Counter[str] = Counter()

    def reset(self) -> None:
        """Sets every counter to zero: for tests."""
        with self._lock:
            self._clear()

    def marked_request(self) -> None:
        """A request with a valid marker reached the handler."""
        self._add("marked_requests")

    def production_request(self) -> None:
        """A request without a marker reached the handler."""
        self._add("production_requests")

    def refused(self, reason: Reason) -> None:
        """A request was answered 403 for its marker."""
        with self._lock:
            self._refused[reason] += 1

    def audit_read(self, allowed: bool) -> None:
        """`GET /.livefire/audit` was answered with counters, or (no marker) with 403."""
        self._add("audit_reads" if allowed else "audit_reads_refused")

    def shadow_statement(self, store: str, is_write: bool) -> None:
        """A statement was let through to the shadow of `store`."""
        with self._lock:
            self._statements[store] += 1
            if is_write:
                self._writes[store] += 1

    def setup_statement(self) -> None:
        """A statement of `shadow_setup()` was let through: no stress request's, so in neither count of shadows."""
        self._add("setup_statements")

    def production_write(self) -> None:
        """A production request's writing statement was let through."""
        self._add("production_writes")

    def propagated(self) -> None:
        """A stress request went on to a service inside, with its marker."""
        self._add("propagated")

    def mocked(self, host: str) -> None:
        """A stress request for the third party `host` (host:port) went to its mock."""
        with self._lock:
            self._mocked[host] += 1

    def blocked_outbound(self, host: str, place: str) -> None:
        """A stress request for `host` (host:port) was not sent."""
        with self._lock:
            key = (place, host)
            if key in self._blocked or len(self._blocked) < MAX_PLACES:
                self._blocked[key] += 1
            else:
                self._totals["blocked_outbound_elsewhere"] += 1

    def violation(self, kind: str, place: str, store: str, head: str) -> None:
        """Work reached for the wrong store at `place` and was refused; `head` is the statement without values."""
        with self._lock:
            key = (kind, place, store, head)
            if key in self._violations or len(self._violations) < MAX_PLACES:
                self._violations[key] += 1
            else:
                self._totals["violations_elsewhere"] += 1

    def lost(self, place: str) -> None:
        """A store or a call was asked for at `place` with no context bound."""
        with self._lock:
            self._totals["lost_context"] += 1
            if place in self._lost or len(self._lost) < MAX_PLACES:
                self._lost[place] += 1

    def snapshot(self) -> dict[str, object]:
        """The counters as JSON-able values; the shape is listed in docs/marker.md."""
        with self._lock:
            totals = self._totals
            return {
                "service": self.service,
                "pid": os.getpid(),
                "since": self._since,
                "marked_requests": totals["marked_requests"],
                "production_requests": totals["production_requests"],
                "refused": dict(self._refused),
                "audit_reads": totals["audit_reads"],
                "audit_reads_refused": totals["audit_reads_refused"],
                "shadow_statements": dict(self._statements),
                "shadow_writes": dict(self._writes),
                "setup_statements": totals["setup_statements"],
                "production_writes": totals["production_writes"],
                "propagated": totals["propagated"],
                "mocked": dict(self._mocked),
                "blocked_outbound": [
                    {"place": place, "host": host, "count": count} for (place, host), count in self._blocked.items()
                ],
                "blocked_outbound_elsewhere": totals["blocked_outbound_elsewhere"],
                "violations": [
                    {"kind": kind, "place": place, "store": store, "statement": head, "count": count}
                    for (kind, place, store, head), count in self._violations.items()
                ],
                "violations_elsewhere": totals["violations_elsewhere"],
                "lost_context": totals["lost_context"],
                "lost_places": dict(self._lost),
            }

    def as_json(self) -> bytes:
        """`snapshot()` as UTF-8 JSON."""
        return json.dumps(self.snapshot()).encode()

    def _add(self, name: str) -> None:
        with self._lock:
            self._totals[name] += 1


AUDIT = Audit()
