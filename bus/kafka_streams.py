"""The directory of streams: who writes which, where each begins, which are whole. It is also the lock.

All read one partition in order and come to the same answer: an entry with a later epoch than the one before is the
stream's; one with the same epoch only when it is by the same writer. So of two that claim at once the first wins.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from kafka import TopicPartition

from bus import kafka_layout as layout
from bus.kafka_layout import Entry, Known
from bus.kafka_link import Link
from bus.ports import BusError

_WRITE_S = 2.0


class Streams:
    """The directory as far as it has been read. Calls are made under the link's lock."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._at = TopicPartition(layout.kafka_topic(link.address.prefix, layout.STREAMS), 0)
        self._entries: dict[bytes, Known] = {}
        self._position = -1

    def refresh(self, end: int | None = None) -> None:
        """Read what is there, or up to a known `end`. Raises BusAway, BusError when there is no directory."""
        if self._position < 0:
            if self._link.count(self._at.topic) != 1:
                raise BusError(f"{self._link.address}: {self._at.topic} must have one partition, it has several")
            self._position = self._link.beginning(self._at)
        if end is None:
            end = self._link.end(self._at)
        while self._position < end:
            records, self._position = self._link.fetch(self._at, self._position)
            for record in records:
                self._apply(record)

    def _apply(self, record: Any) -> None:
        entry = layout.decode_entry(record.value) if record.key and record.value else None
        if entry is None:
            return
        known = self._entries.get(record.key)
        if known is not None:
            old = known.entry
            if entry.epoch < old.epoch or (entry.epoch == old.epoch and entry.writer != old.writer):
                return
            if entry.epoch == old.epoch and old.state == "ended":
                return  # nothing undoes an end
        self._entries[record.key] = Known(entry, record.timestamp)

    def get(self, key: bytes) -> Known | None:
        return self._entries.get(key)

    def names(self, scope: str, topic: str) -> Iterator[str]:
        """The streams of an owner's topic."""
        start = layout.key_of(scope, topic, "")
        return (key[len(start) :].decode() for key in self._entries if key.startswith(start))

    def scopes(self, topic: str) -> set[str]:
        """The owners of streams of a topic."""
        split = (key.decode().split("/", 2) for key in self._entries)
        return {parts[0] for parts in split if len(parts) == 3 and parts[1] == topic}

    def put(self, key: bytes, entry: Entry) -> int:
        """Write an entry, and wait until it is written; its offset. Raises BusAway, BusError."""
        return int(self._link.acknowledged(self.post(key, entry), time.monotonic() + _WRITE_S).offset)

    def post(self, key: bytes, entry: Entry) -> Any:
        """Write an entry; a future. May be called from any thread."""
        return self._link.send(self._at.topic, 0, key, layout.encode_entry(entry), [])

    def held(self, key: bytes) -> bool:
        """Whether a writer has the stream now, as far as the directory has been read. Raises BusAway."""
        known = self._entries.get(key)
        if known is None or known.entry.state != "open":
            return False
        return self._link.broker_ms(time.monotonic() + _WRITE_S) - known.at_ms < layout.HOLD_MS
