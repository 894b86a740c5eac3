"""What waits in connections, for the account: counted anew only where bytes came since.

Of 20,000 open connections few have something to do at a time; the others cost nothing when the account is asked for.
"""

from __future__ import annotations

from typing import Final

from capture.connection import Connection

_LATELY_NS: Final = 250_000_000
_NOTHING: Final = (0, 0)


class InFlight:
    __slots__ = ("_lately", "_next_forget_ns", "_waiting", "busy", "bytes", "messages")

    def __init__(self) -> None:
        self.busy: dict[Connection, None] = {}  # see `side.Host`; always the same object
        self.bytes = self.messages = 0  # as of the last `count`
        self._waiting: dict[Connection, tuple[int, int]] = {}  # of those that are not busy: what waits in them
        self._lately: dict[Connection, None] = {}  # those in which nothing waits, and that were busy a moment ago
        self._next_forget_ns = 0

    def count(self, now_ns: int) -> None:
        """Bring `bytes` and `messages` up to date. `now_ns`: the time that packets told."""
        for connection in self.busy:
            self._waits_no_more(connection)
            waiting = connection.in_flight()
            if waiting != _NOTHING:
                self._waiting[connection] = waiting
                self.bytes += waiting[0]
                self.messages += waiting[1]
            else:
                self._lately[connection] = None
        self.busy.clear()
        if now_ns >= self._next_forget_ns:
            self._forget_idle(now_ns)

    def over(self, connection: Connection) -> None:
        self.busy.pop(connection, None)
        self._lately.pop(connection, None)
        self._waits_no_more(connection)

    def _waits_no_more(self, connection: Connection) -> None:
        count, messages = self._waiting.pop(connection, _NOTHING)
        self.bytes -= count
        self.messages -= messages

    def _forget_idle(self, now_ns: int) -> None:
        """What is remembered of connections for speed alone: 0.5 KB and a head, of each of 20,000 that are open."""
        self._next_forget_ns = now_ns + _LATELY_NS
        for connection in [c for c in self._lately if c.last_ns <= now_ns - _LATELY_NS]:
            connection.exchange_ids, connection.session_low = None, b""
            del self._lately[connection]
