"""Entries of other tools' files -> exchanges: ids, sessions, masks, and an account that balances.

What a file of exchanges needs of `Assembler`, without packets: `Output` writes it in the same way. The ledger `entries`
counts lines or entries: seen = emitted + drops by reason; what waits to be put in order is in flight.
"""

from __future__ import annotations

import heapq
from typing import Final

from capture.entry import Entry, Reject
from capture.exchange import Masker
from capture.ledgers import Ledgers
from capture.ready import Ready
from capture.session import SessionFinder
from capture.settings import CaptureSettings
from wire.account import Account
from wire.ids import connection_id, exchange_id
from wire.records import Exchange

_WINDOW: Final = 4096  # entries that are put in order of time: logs are in that of their ends
_WINDOW_BYTES: Final = 32 << 20


class Imported:
    """Not for use by several threads. Holds at most a window of entries, and what is not yet written."""

    def __init__(self, recording_id: str, settings: CaptureSettings, masker: Masker | None, key: bytes) -> None:
        """Raises ConfigError for sources of sessions that are not known."""
        self._recording_id = recording_id
        self._masker = masker
        self._sessions = SessionFinder(key, settings.sessions)
        self._ledgers = Ledgers()
        self._entries = self._ledgers.account.ledger("entries")
        self._heap: list[tuple[int, int, Entry, str]] = []
        self._heap_bytes = 0
        self._count = 0
        self._last_ns = self._ties = 0
        self.ready = Ready(self._ledgers)

    @property
    def account(self) -> Account:
        self._entries.in_flight = len(self._heap)
        self._ledgers.messages.in_flight, self._ledgers.bytes.in_flight = self.ready.messages, self.ready.wire_bytes
        return self._ledgers.account

    def note_masked(self) -> None:
        """Bring the account's notes of what was masked up to date; before each batch."""
        if self._masker is not None:
            self.account.notes.update({f"masked.{what}": count for what, count in self._masker.counts.items()})

    def add(self, found: Entry | Reject, source: str) -> None:
        """One of the file `source`, which names connections together with what the file calls them."""
        self._entries.seen += 1
        if isinstance(found, Reject):
            self._entries.drop(found.reason, intentional=found.intentional)
            return
        self._count += 1
        heapq.heappush(self._heap, (found.request_start_ns, self._count, found, source))
        self._heap_bytes += _weight(found)
        while len(self._heap) > _WINDOW or self._heap_bytes > _WINDOW_BYTES:
            self._next()

    def close(self) -> None:
        """What waits is ready."""
        while self._heap:
            self._next()

    def _next(self) -> None:
        _, _, entry, source = heapq.heappop(self._heap)
        self._heap_bytes -= _weight(entry)
        self._entries.emitted += 1
        self._ties = self._ties + 1 if entry.request_start_ns == self._last_ns > 0 else 0
        self._last_ns = entry.request_start_ns
        account = self._ledgers.account
        for note in entry.notes:
            account.note(note)
        exchange = self._exchange(entry, source)
        if entry.response is None:
            account.note("unanswered")
        messages = 1 + (entry.response is not None)
        wire_bytes = _weight(entry)
        self._ledgers.messages.seen += messages
        self._ledgers.bytes.seen += wire_bytes
        if self._masker is not None:
            exchange = self._masker.exchange(exchange)
        self.ready.add(exchange, messages, wire_bytes)

    def _exchange(self, entry: Entry, source: str) -> Exchange:
        connection = connection_id(
            self._recording_id, entry.client, entry.server, f"{source}\0{entry.connection or entry.place}", 0
        )
        head = entry.request.head
        # Logs tell whole seconds; what is put in order of time later stays in the order of the file.
        start_ns = entry.request_start_ns + self._ties
        return Exchange(
            exchange_id(connection, entry.place),
            self._sessions.of(head, head.lower(), entry.client, connection),
            connection,
            entry.client,
            entry.server,
            entry.request,
            entry.response,
            start_ns,
            max(entry.request_end_ns, start_ns),
            max(entry.response_start_ns, start_ns) if entry.response is not None and entry.response_start_ns else 0,
            max(entry.response_end_ns, start_ns) if entry.response is not None and entry.response_end_ns else 0,
            protocol=entry.protocol,
            faults=entry.faults,
        )


def _weight(entry: Entry) -> int:
    """Bytes of heads and bodies that the file held."""
    response = entry.response
    return (
        len(entry.request.head)
        + len(entry.request.body)
        + (len(response.head) + len(response.body) if response is not None else 0)
    )
