"""The directory of streams: who writes which, where each begins, which are whole. It is also the lock.

All read one partition in order and come to the same answer: an entry with a later epoch than the one before is the
stream's; one with the same epoch only when it is by the same writer. So of two that claim at once the first wins.
"""

from __future__ import annotations

import time
from typing import Any

from kafka import TopicPartition

from bus import kafka_layout as layout
from bus.kafka_layout import Entry, Known
from bus.kafka_link import Gone, Link
from bus.ports import BusError

_WRITE_S = 2.0
_LOOK_ENTRIES = 10_000  # renewals of holds are entries, too: a writer makes one a second


class Streams:
    """The directory as far as it has been read. Calls are made under the link's lock."""

    def __init__(self, link: Link, scope: str = "") -> None:
        """`scope`: of one owner alone; "" = of all."""
        self._link = link
        self._of = f"{scope}/".encode() if scope else b""
        self.topic = layout.kafka_topic(link.address.prefix, layout.STREAMS)
        self._at = TopicPartition(self.topic, 0)
        self._entries: dict[bytes, Known] = {}
        self._names: dict[tuple[str, str], set[str]] = {}  # of streams, by owner and topic
        self._position = -1
        self._applied = 0  # entries since what retention took was looked for

    def refresh(self, end: int | None = None) -> None:
        """Read what is there, or up to a known `end`. Raises BusAway, BusError when there is no directory."""
        if self._position < 0:
            if self._link.count(self.topic) != 1:
                raise BusError(f"{self._link.address}: {self.topic} must have one partition, it has several")
            self._position = self._link.beginning(self._at)
        if end is None:
            end = self._link.end(self._at)
        while self._position < end:
            try:
                records, self._position = self._link.fetch(self._at, self._position)
            except Gone:  # who only writes seldom looks: retention has passed its place
                beginning = self._link.beginning(self._at)
                if beginning <= self._position:
                    raise
                self._position = beginning
                self._forget(beginning)
                continue
            for record in records:
                self._apply(record)
            self._applied += len(records)
        if self._applied >= _LOOK_ENTRIES:
            self._applied = 0
            self._forget(self._link.beginning(self._at))

    def _forget(self, beginning: int) -> None:
        """What retention has taken from the directory: who reads it now does not hear of those streams, either."""
        for key in [key for key, known in self._entries.items() if known.offset < beginning]:
            del self._entries[key]
            place = layout.stream_of(key)
            if place is not None:
                names = self._names[place[:2]]
                names.discard(place[2])
                if not names:
                    del self._names[place[:2]]

    def _apply(self, record: Any) -> None:
        if not record.key or not record.value or not record.key.startswith(self._of):
            return
        entry, place = layout.decode_entry(record.value), layout.stream_of(record.key)
        if entry is None or place is None:
            return
        known = self._entries.get(record.key)
        if known is not None:
            old = known.entry
            if entry.epoch < old.epoch or (entry.epoch == old.epoch and entry.writer != old.writer):
                return
            if entry.epoch == old.epoch and old.state == "ended":
                return  # nothing undoes an end
        self._entries[record.key] = Known(entry, record.timestamp, record.offset)
        self._names.setdefault(place[:2], set()).add(place[2])

    def get(self, key: bytes) -> Known | None:
        return self._entries.get(key)

    def names(self, scope: str, topic: str) -> set[str]:
        """The streams of an owner's topic."""
        return self._names.get((scope, topic), set())

    def scopes(self, topic: str) -> set[str]:
        """The owners of streams of a topic."""
        return {scope for scope, of in self._names if of == topic}

    def put(self, key: bytes, entry: Entry, until: float | None = None) -> int:
        """Write an entry, and wait until it is written; its offset. Raises BusAway, BusError."""
        return int(self._link.acknowledged(self.post(key, entry), until or time.monotonic() + _WRITE_S).offset)

    def post(self, key: bytes, entry: Entry) -> Any:
        """Write an entry; a future. May be called from any thread."""
        return self._link.send(self.topic, 0, key, layout.encode_entry(entry), [])

    def held(self, key: bytes) -> bool:
        """Whether a writer has the stream now, as far as the directory has been read. Raises BusAway."""
        known = self._entries.get(key)
        if known is None or known.entry.state != "open":
            return False
        return self._link.broker_ms(time.monotonic() + _WRITE_S) - known.at_ms < layout.HOLD_MS
