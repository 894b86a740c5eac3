"""Reads one stream out of a Kafka partition that it shares with others.

Readers of one partition share what is fetched as long as they stand at the same place. One that is not read fills its
queue, then stands where it is: the others go on, and its part is fetched again when it is asked.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

from kafka import TopicPartition

from bus import kafka_layout as layout
from bus.kafka_layout import Entry
from bus.ports import BusError, BusGone, Message
from wire import codec
from wire.codec import RecordType
from wire.records import Manifest

if TYPE_CHECKING:
    from bus.kafka import KafkaBus

_QUEUE_MESSAGES: Final = 4096
_QUEUE_BYTES: Final = 8 << 20
_READ_BYTES: Final = 8 << 20
#: So many records before the place where reading begins are looked at, for the epoch and sequence that hold there.
_LOOK_BACK: Final = 32
_MARKS: Final = frozenset((int(RecordType.END), int(RecordType.MANIFEST)))


class KafkaReader:
    """Reads and tails one stream."""

    def __init__(self, bus: KafkaBus, topic: str, partition: str, at: TopicPartition, offset: int) -> None:
        self.topic, self.partition = topic, partition
        self.key = layout.key_of(bus.scope, topic, partition)
        self.at = at
        self.fenced = 0  # messages of a writer that had lost the stream to another
        self.repeats = 0  # messages that were written twice
        self.scanned = 0  # everything of the Kafka partition before this has been looked at
        self._bus = bus
        self._queue: deque[Message] = deque()
        self._queued_bytes = 0
        self._next = 0
        self._epoch, self._sequence = 0, -1
        self._end_at: int | None = None
        self._manifest: Manifest | None = None
        self._unreadable = ""  # why its manifest is none
        self._closed = False
        self._go(offset)

    def _entry(self) -> Entry:
        known = self._bus.streams.get(self.key)
        if known is None:
            raise BusGone(f"{self}: no such partition: the directory does not hold it any more")
        return known.entry

    def _go(self, offset: int) -> None:
        entry = self._entry()
        self._queue.clear()
        self._queued_bytes = 0
        self._epoch, self._sequence = 0, -1
        self._next = offset
        self.scanned = max(entry.first, offset - _LOOK_BACK)
        if entry.state == "ended":
            self._end_at = entry.last + 1

    # -- what the bus hands in

    @property
    def full(self) -> bool:
        return len(self._queue) >= _QUEUE_MESSAGES or self._queued_bytes >= _QUEUE_BYTES

    @property
    def waiting(self) -> bool:
        """Whether something can be handed out without asking the broker."""
        return bool(self._queue)

    @property
    def past_end(self) -> bool:
        """Whether all there is has been looked at, and there will be no more."""
        return self._end_at is not None and self.scanned >= self._end_at

    def take(self, record: Any) -> None:
        """One record of this stream, in order. Raises nothing: a fetch is handed out to several readers."""
        if (said := layout.sequence_in(record.headers)) is not None:
            epoch, sequence = said
            if epoch < self._epoch:
                self.fenced += record.offset >= self._next
                return
            if epoch == self._epoch and sequence <= self._sequence:
                self.repeats += record.offset >= self._next
                return
            self._epoch, self._sequence = epoch, sequence
        data = record.value
        if not data:
            return
        if len(data) > 3 and data[3] in _MARKS:
            self._note(data, record.offset)
        if record.offset < self._next:
            return
        self._queue.append(Message(self.topic, self.partition, record.offset, record.offset + 1, data))
        self._queued_bytes += len(data)

    def _note(self, data: bytes, offset: int) -> None:
        glance = codec.glance(data)
        if glance is None:
            return
        if glance.type == RecordType.END:
            self._end_at = offset + 1
        elif glance.type == RecordType.MANIFEST and self._manifest is None:
            try:
                self._manifest = codec.decode(data).records[0]
            except (codec.CodecError, IndexError) as error:
                self._unreadable = str(error)

    # -- the port

    def read(self, max_messages: int = 64) -> list[Message]:
        if self._closed:
            raise BusError(f"{self}: is closed")
        if not self._queue:
            self._bus.fill(self)
        messages: list[Message] = []
        size = 0
        while self._queue and len(messages) < max_messages and size < _READ_BYTES:
            message = self._queue.popleft()
            messages.append(message)
            size += len(message.data)
        self._queued_bytes -= size
        if messages:
            self._next = messages[-1].next_offset
        return messages

    @property
    def ended(self) -> bool:
        return self._end_at is not None and self._next >= self._end_at

    @property
    def manifest(self) -> Manifest | None:
        if self._manifest is None:
            first = self._bus.first_of(self)
            self._manifest, self._unreadable = first._manifest, first._unreadable
            if self._unreadable:
                raise BusError(f"{self}: its manifest cannot be read: {self._unreadable}")
        return self._manifest

    @property
    def next_offset(self) -> int:
        return self._next

    def seek(self, offset: int) -> None:
        self._bus.check_offset(self, offset)
        self._go(offset)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._queue.clear()
            self._bus.forget(self)

    def __enter__(self) -> KafkaReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __str__(self) -> str:
        return f"{self._bus.link.address} {self.key.decode()}"
