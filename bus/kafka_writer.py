"""Writes one stream: the one writer, as long as it holds it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from kafka import TopicPartition

from bus import kafka_layout as layout
from bus.batchwriter import BatchWriter
from bus.kafka_layout import Entry
from bus.ports import BusAway, BusError, BusHeld
from wire import codec
from wire.records import End, Manifest

if TYPE_CHECKING:
    from bus.kafka import KafkaBus

WRITE_S: Final = 2.0  # how long a write waits for its acknowledgement
_OUTSTANDING_BYTES: Final = 16 << 20
#: A writer trusts its hold for less long than others wait before they take it.
_TRUST_S: Final = layout.HOLD_MS / 1000 - 0.5
#: How long renewals alone are trusted. They are written also when the directory gives the stream to another, as it does
#: when the brokers' clock is set forward, so now and then it is read.
_LOOK_S: Final = 5.0


class _Sent:
    """A message that was handed to the driver and is not known to be written."""

    __slots__ = ("data", "future", "sequence")

    def __init__(self, data: bytes, sequence: int, future: Any) -> None:
        self.data, self.sequence, self.future = data, sequence, future


class KafkaWriter(BatchWriter):
    """The one writer of a stream. Made by `KafkaBus.writer`, which has claimed the stream and checked the claim."""

    def __init__(self, bus: KafkaBus, name: tuple[str, str], at: TopicPartition, entry: Entry, since: float) -> None:
        self.topic, self.partition = name
        self.key = layout.key_of(bus.scope, *name)
        self.at = at
        self.manifest: Manifest | None = None
        self._bus = bus
        self._entry = entry
        self._sequence = 0
        self._last = entry.last
        self._first = entry.first
        self._next = max(entry.first, entry.last + 1)
        self._pending: deque[_Sent] = deque()
        self._answered: list[tuple[bytes, int]] = []  # message, offset: what a call that ended in BusAway had written
        self._held_until = since + _TRUST_S
        self._look_until = since + _LOOK_S
        self._renewal: Any = None  # the latest, as a future
        self._ended = False
        self._closed = False
        self._closing = threading.Lock()

    # -- the hold

    def entry(self, state: str = "open") -> Entry:
        """What the directory should say of this stream now."""
        return Entry(state, self._entry.writer, self._entry.epoch, self.at.partition, self._first, self._last)

    def renew(self, post: Callable[[bytes, Entry], Any]) -> None:
        """Say in the directory that the stream is still held; does not wait. Called from the bus's own thread."""
        since = time.monotonic()

        def written(_: Any) -> None:
            # It counts only while the hold is sure: a stream that another has taken is not got back by renewing.
            if time.monotonic() <= self._held_until:
                self._held_until = max(self._held_until, min(since + _TRUST_S, self._look_until))

        if self._renewal is not None and not self._renewal.is_done:
            return  # while no broker answers one waits, not one a second
        with self._closing:  # nothing may follow the entry that releases
            if not self._closed:
                self._renewal = post(self.key, self.entry()).add_callback(written)

    def _be_sure(self) -> None:
        """Raises BusHeld when the stream is another's by now, BusAway when that cannot be told."""
        if time.monotonic() <= self._held_until:
            return
        since = time.monotonic()
        if not self._bus.reclaimed(self.key, self.entry()):
            self._closed = True
            self._bus.dropped(self)
            raise BusHeld(f"{self}: another process has taken over; what this one wrote last is not read")
        self._held_until, self._look_until = since + _TRUST_S, since + _LOOK_S

    # -- writing

    @property
    def next_offset(self) -> int:
        return self._next

    def write(self, data: bytes) -> int:
        return self.write_many((data,))[0]

    def write_many(self, messages: Sequence[bytes]) -> list[int]:
        if self._closed or self._ended:
            raise BusError(f"{self}: is closed; nothing can be written to it")
        for data in messages:
            if len(data) > layout.MAX_MESSAGE_BYTES:
                size = f"{len(data)} bytes, at most {layout.MAX_MESSAGE_BYTES}"
                raise BusError(f"{self}: a message of {size} can be written to Kafka")
            if not data:
                raise BusError(f"{self}: an empty message cannot be written")
        offsets = self._write(messages)
        self._be_sure()
        del self._answered[: len(messages)]  # those behind may come in a call of their own
        return offsets

    def begin(self, data: bytes | None) -> int:
        """The first message of this writer: the manifest of a new stream, or the mark that its epoch has begun."""
        if data is None:
            future = self._send(layout.MARK, 0)
            self._next = int(self._bus.link.acknowledged(future, time.monotonic() + WRITE_S).offset) + 1
            return self._next - 1
        offset = self._write((data,))[0]
        self._answered.clear()
        self._first = offset
        return offset

    def _write(self, messages: Sequence[bytes]) -> list[int]:
        """Send what is not sent yet, a bounded amount ahead, and wait for all. What an earlier call wrote or left
        in doubt, and this one repeats, is not sent again."""
        deadline = time.monotonic() + WRITE_S
        answered = self._answered
        if any(done != data for (done, _), data in zip(answered, messages, strict=False)):
            answered.clear()  # the caller goes on with something else
        ahead = 0  # how many of those after them are among the pending ones
        outstanding = 0
        for sent, data in zip(self._pending, messages[len(answered) :], strict=False):
            if sent.data != data:
                break
            ahead += 1
        if ahead < len(self._pending) and len(answered) + ahead < len(messages):
            while self._pending:  # something else: order asks that the rest is written first
                data, offset = self._pending[0].data, self._settle(deadline)
                if ahead:
                    answered.append((data, offset))
                    ahead -= 1
        for sent in self._pending:
            outstanding += len(sent.data)
        at = len(answered) + ahead
        while len(answered) < len(messages):
            while at < len(messages) and (not self._pending or outstanding < _OUTSTANDING_BYTES):
                data = messages[at]
                self._pending.append(_Sent(data, self._sequence + 1, self._send(data, self._sequence + 1)))
                self._sequence += 1
                outstanding += len(data)
                at += 1
            data = self._pending[0].data
            outstanding -= len(data)
            answered.append((data, self._settle(deadline)))
            if at < len(messages):
                deadline = time.monotonic() + WRITE_S  # it moves
        return [offset for _, offset in answered[: len(messages)]]

    def _send(self, data: bytes, sequence: int) -> Any:
        headers = layout.header(self._entry.epoch, sequence)
        return self._bus.link.send(self.at.topic, self.at.partition, self.key, data, headers)

    def _settle(self, deadline: float) -> int:
        """The offset of the oldest pending message, which is taken off. Raises BusAway with all left as they are."""
        sent = self._pending[0]
        if sent.future is None:
            sent.future = self._send(sent.data, sent.sequence)
        try:
            offset = int(self._bus.link.acknowledged(sent.future, deadline).offset)
        except BusAway:
            if sent.future.is_done:  # the driver gave it up: sent again, under the same number, by the next call
                self._gave_up()
            raise
        except BusError:
            self._pending.popleft()
            self._answered.clear()  # not a call to be repeated
            raise
        self._pending.popleft()
        self._last, self._next = offset, offset + 1
        return offset

    def _gave_up(self) -> None:
        later = [sent for sent in self._pending if sent.future is not None and not sent.future.is_done]
        if later:
            return  # those behind it are under way yet: they are known before anything is sent again
        written = [sent for sent in self._pending if sent.future is not None and sent.future.succeeded()]
        for sent in self._pending:
            if sent.future is not None and sent.future.failed():
                if written:  # numbers behind its own are out: readers would take its own for a repeat
                    self._sequence += 1
                    sent.sequence = self._sequence
                sent.future = None

    @property
    def _name(self) -> str:
        return str(self)

    def end(self, end: End) -> None:
        if not self._ended:
            self.write(codec.encode((end,), first_ns=end.first_ns, last_ns=end.last_ns))
            self._ended = True
        elif self._closed:
            raise BusError(f"{self}: is closed; nothing can be written to it")
        with self._closing:
            self._bus.put(self.key, self.entry("ended"))
            self._closed = True
        self._bus.dropped(self)

    def leave(self, entry: Entry) -> None:
        """Close with this entry as the last. Raises BusAway."""
        with self._closing:
            self._closed = True
        self._bus.dropped(self)
        self._bus.put(self.key, entry)

    def close(self, until: float | None = None) -> None:
        """`until` (`time.monotonic`): how long the brokers are waited for, if not the usual time."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
        self._bus.dropped(self)
        self._bus.release(self.key, self.entry("ended" if self._ended else "released"), until)

    def __enter__(self) -> KafkaWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __str__(self) -> str:
        return f"{self._bus.link.address} {self.key.decode()}"
