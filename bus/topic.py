"""Reads all partitions of a topic, also those that appear while it reads (a worker that joins, a stop)."""

from __future__ import annotations

from collections.abc import Iterator

from bus.ports import Bus, Message, Reader
from wire import codec


class TopicReader:
    """Tails every partition of one topic. Order holds inside a partition only."""

    def __init__(self, bus: Bus, topic: str) -> None:
        self._bus = bus
        self._topic = topic
        self._readers: dict[str, Reader] = {}
        self.unreadable = 0  # messages that were no batch

    def poll(self) -> list[Message]:
        """What is there now; [] when there is nothing new. Never waits."""
        for partition in self._bus.partitions(self._topic):
            if partition not in self._readers:
                self._readers[partition] = self._bus.reader(self._topic, partition)
        return [message for reader in self._readers.values() for message in reader.read()]

    def batches(self) -> Iterator[tuple[Message, codec.Batch]]:
        """Decoded batches of what is there now; a message that is no batch is counted and passed over."""
        while messages := self.poll():
            for message in messages:
                try:
                    yield message, codec.decode(message.data)
                except codec.CodecError:
                    self.unreadable += 1

    @property
    def readers(self) -> dict[str, Reader]:
        return dict(self._readers)

    @property
    def ended(self) -> bool:
        """True when there is at least one partition and all that are known are whole."""
        return bool(self._readers) and all(reader.ended for reader in self._readers.values())

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()
