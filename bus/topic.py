"""Reads all partitions of a topic, also those that appear while it reads (a worker that joins, a stop)."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator

from bus.ports import Bus, BusGone, Message, Reader
from wire import codec


class TopicReader:
    """Tails every partition of one topic. Order holds inside a partition only."""

    def __init__(self, bus: Bus, topic: str, accept: Callable[[str], bool] | None = None, *, since_ns: int = 0) -> None:
        """`accept` is asked once of each partition, when it is first seen; what it refuses is never opened.

        `since_ns`: what was written before that time (ns since 1970) need not come; 0 = all of it does.
        """
        self._bus = bus
        self._since_ns = since_ns
        self._topic = topic
        self._accept = accept
        self._refused: set[str] = set()
        self._readers: dict[str, Reader] = {}
        self._polled: deque[Message] = deque()  # taken from the readers, not yet handed out
        self.unreadable = 0  # messages that were no batch

    def poll(self) -> list[Message]:
        """What is there now; [] when there is nothing new. Raises BusAway as readers do: nothing is lost by it."""
        with self._bus.glance():
            listed = self._bus.partitions(self._topic)
            for partition in listed:
                if partition in self._readers or partition in self._refused:
                    continue
                if self._accept is not None and not self._accept(partition):
                    self._refused.add(partition)
                    continue
                since_ns, topic = self._since_ns, self._topic
                with contextlib.suppress(BusGone):  # discarded since it was listed
                    offset = self._bus.offset_at(topic, partition, since_ns) if since_ns else 0
                    self._readers[partition] = self._bus.reader(topic, partition, offset)
            for partition, reader in list(self._readers.items()):
                if reader.ended:
                    continue
                found = reader.read()
                self._polled.extend(found)
                # Who listens for weeks hears of many that are over, or were discarded without an end.
                if reader.ended:
                    reader.close()
                elif not found and partition not in listed:
                    self._readers.pop(partition).close()
        polled = list(self._polled)
        self._polled.clear()
        return polled

    def batches(self) -> Iterator[tuple[Message, codec.Batch]]:
        """Decoded batches of what is there now; a message that is no batch is counted and passed over.

        May be left in the middle: what was not handed out comes next time.
        """
        while messages := self.poll():
            self._polled.extend(messages)
            while self._polled:
                message = self._polled.popleft()
                try:
                    batch = codec.decode(message.data)
                except codec.CodecError:
                    self.unreadable += 1
                    continue
                yield message, batch

    @property
    def readers(self) -> dict[str, Reader]:
        return dict(self._readers)

    @property
    def ended(self) -> bool:
        """True when there is at least one partition, all that are known are whole, and all has been handed out."""
        return bool(self._readers) and not self._polled and all(reader.ended for reader in self._readers.values())

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()
