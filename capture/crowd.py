"""The connections that are known, within bounds: who waits, who is over, and who goes when there are too many.

Half-open ones (a handshake, and not a byte) go before all others, so a flood of them costs no connection that is in
use. What goes is closed as it is; what comes of it afterwards is read as a connection whose beginning was not seen.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Collection

from capture.connection import Connection
from capture.ends import EVICTED, IDLE, ended
from capture.ledgers import Ledgers
from capture.settings import CaptureSettings

_RELIEF_NS = 5_000_000_000  # how often memory is counted
_RELIEF_NS_EACH = 250_000  # the more there are, the less often: it takes 3 us each
_LEAST_NS = 50_000_000
_LATE = 12  # times as long one is known whose sender sends again after its end: its pauses double


class Crowd:
    """`forget` is called with a connection whose late packets are not waited for any more."""

    def __init__(self, settings: CaptureSettings, forget: Callable[[Connection], None], ledgers: Ledgers) -> None:
        self._settings = settings
        self._forget = forget
        self._ledgers = ledgers
        self.open: dict[Connection, None] = {}
        self.waiting: dict[Connection, None] = {}  # for bytes
        self.waits = 0  # how often something began to wait since the last sweep
        self._closed: deque[tuple[int, Connection]] = deque()
        self._late: deque[tuple[int, Connection]] = deque()  # whose sender sends again
        self._next_idle = 0

    def make_room(self, now_ns: int) -> None:
        """For one more, which is counted."""
        self._ledgers.connections.seen += 1
        if len(self.open) >= self._settings.max_connections:
            self._evict(longest_idle(self.open), now_ns)

    def over(self, connection: Connection, now_ns: int) -> None:
        ended(connection, self._ledgers)
        self.open.pop(connection, None)
        self.waiting.pop(connection, None)
        self._closed.append((now_ns, connection))
        if len(self._closed) > self._settings.max_connections:
            self._forget(self._closed.popleft()[1])

    def sweep(self, now_ns: int) -> None:
        """Give up on holes that are too old, and on those that take too much; forget what is long over."""
        settings = self._settings
        self.waits = 0
        if self.waiting:
            waiting, self.waiting = self.waiting, {}
            crowded = sum(connection.waiting_cost for connection in waiting) > settings.max_total_bytes
            for connection in waiting:
                if not connection.closed and connection.sweep(now_ns, force=crowded):
                    self.waiting[connection] = None
        while self._closed and now_ns - self._closed[0][0] > settings.closed_ns:
            over_ns, connection = self._closed.popleft()
            if connection.last_ns > over_ns and len(self._late) < settings.max_connections:
                self._late.append((connection.last_ns, connection))
            else:
                self._forget(connection)
        while self._late and now_ns - self._late[0][0] > _LATE * settings.closed_ns:
            self._forget(self._late.popleft()[1])
        if now_ns < self._next_idle:
            return
        often = max(_RELIEF_NS, _RELIEF_NS_EACH * len(self.open))
        self._next_idle = now_ns + min(max(settings.idle_ns // 8, _LEAST_NS), often)
        for connection in [c for c in self.open if now_ns - c.last_ns > settings.idle_ns]:
            connection.replaced, connection.ended_by = True, IDLE
            connection.close(now_ns, closed=False)
        if found := too_large(self.open, settings.max_total_bytes):
            self._evict(found, now_ns)

    def _evict(self, connections: list[Connection], now_ns: int) -> None:
        note = self._ledgers.account.note
        note("evicted_connections", len(connections))
        half_open = sum(connection.half_open for connection in connections)
        if half_open:
            note("evicted_half_open", half_open)
        for connection in connections:
            connection.replaced, connection.ended_by = True, EVICTED
            connection.close(now_ns, closed=False)


def longest_idle(connections: Collection[Connection]) -> list[Connection]:
    """Those silent longest: of the half-open ones a twentieth of all at most; only where there are none,
    a hundredth of the others. So many at once, as all are looked at."""
    half_open = [connection for connection in connections if connection.half_open]
    count = len(connections) // 20 if half_open else len(connections) // 100
    return heapq.nsmallest(max(1, count), half_open or connections, key=lambda c: c.last_ns)


def too_large(connections: Collection[Connection], max_bytes: int) -> list[Connection]:
    """Those to be closed so that all together take no more than `max_bytes` (bodies are bounded apart, where they are
    kept). First all of them forget what they remember for comparing."""
    if sum(connection.memory_cost for connection in connections) <= max_bytes:
        return []
    for connection in connections:
        connection.forget()
    found = sorted(connections, key=lambda c: (c.memory_cost, -c.last_ns))
    total = sum(connection.memory_cost for connection in found)
    kept = len(found)
    while total > max_bytes and kept:
        kept -= 1
        total -= found[kept].memory_cost
    return found[kept:]
