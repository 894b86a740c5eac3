"""A writer around a writer: what the bus cannot take now waits on disk, and follows in order when it is back.

Nothing is lost and nothing comes twice, whenever the bus goes away and whenever this process is killed: what was
being sent is sent again as it was, for the bus's own writer knows it then; after a kill, what the bus has of the
spool is found by comparing. What a killed process had in flight will not come any more: the first message of the next
one is preceded by an increment that closes its books.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from bus.batchwriter import BatchWriter
from bus.ports import Bus, BusAway, BusError, BusFull, BusHeld, Reader, Writer
from bus.spool import Lane, Mark, Spool
from wire import codec
from wire.account import Increment
from wire.codec import RecordType
from wire.records import End, Manifest

_HELD_NS: Final = 10_000_000_000  # a killed writer's hold has lapsed long before
_UNCOUNTED: Final = frozenset({RecordType.MANIFEST, RecordType.END, RecordType.ACCOUNT})

#: What is in flight by ledger, and ns in which nobody wrote -> what closes those books; None: nothing is to be said.
Closing = Callable[[Mapping[str, int], int], Increment | None]


class SpooledWriter(BatchWriter):
    """One stream of a bus that may be away, even before it was ever reached. Calls come from one thread."""

    def __init__(
        self,
        spool: Spool,
        bus: Bus,
        topic: str,
        partition: str,
        manifest: Manifest,
        closing: Closing,
        *,
        monotonic_ns: Callable[[], int],
    ) -> None:
        """`manifest.created_ns` tells this process's messages from those of an earlier one. Opens the spool alone.

        Raises BusHeld, BusError as `Lane`.
        """
        self.topic, self.partition = topic, partition
        self.manifest = manifest
        self._spool = spool
        self._bus = bus
        self._closing = closing
        self._monotonic_ns = monotonic_ns
        self._lane = Lane(spool, topic, partition, manifest)
        self._writer: Writer | None = None
        self._held_ns = 0  # since when another one was found writing; 0 = not
        self._books = _Books()
        self._found: deque[bytes] = deque()  # digests of what is on the bus and may be in the spool, too
        self._chunk: list[bytes] | None = None  # being sent: comes again as it is until it is acknowledged
        self._told_damaged = 0
        self._covers = 0  # how many of the lane's messages that is
        self._doubtful: bytes | None = None  # being sent, and kept nowhere else
        self.ended = False

    @property
    def next_offset(self) -> int:
        """Where the stream on the bus ends, as far as that is known; what waits comes behind it."""
        return self._books.next

    @property
    def waiting(self) -> bool:
        return self._lane.waiting

    @property
    def connected(self) -> bool:
        return self._writer is not None

    # -- writing

    def write(self, data: bytes) -> int:
        """Hand one message to the bus, or keep it on disk. Raises BusFull (nothing was kept), BusError."""
        if not self._lane.waiting and not self._spool.resting:
            began_ns = self._monotonic_ns()
            try:
                self.connect()
                if self._doubtful is not None and self._doubtful != data:
                    self._send([self._doubtful], self.manifest)
                self._send([data], self.manifest)
                self._lane.mark_at(self._mark(self._lane.next_segment))
                return self._books.next
            except (BusAway, BusFull) as error:
                if self._chunk is None:
                    self._doubtful = None
                elif self._doubtful is None:
                    self._doubtful = data
                if isinstance(error, BusFull):
                    raise
                self._spool.went_away(began_ns)
        if self._doubtful is not None:  # before what comes now, and only once
            doubtful = self._doubtful
            self._lane.append(doubtful)
            self._covers, self._doubtful = 1, None
            if doubtful == data:
                return self._books.next
        self._lane.append(data)
        return self._books.next

    @property
    def _name(self) -> str:
        return f"{self.topic} {self.partition}"

    def end(self, end: End | None = None, *, reason: str = "done", sorted: bool = False, stopped_ns: int = 0) -> None:
        """Mark the stream as whole, or leave the mark in the spool. What it counts is told when it gets there."""
        mark = end or End(self.manifest.owner_id, self.partition, 0, 0, 0, reason, sorted, stopped_ns)
        if not self._lane.waiting and not self._spool.resting:
            began_ns = self._monotonic_ns()
            try:
                self.connect()
                return self._finish(mark, self.manifest)
            except BusAway:
                self._spool.went_away(began_ns)
        self._lane.append(codec.encode((mark,), first_ns=mark.first_ns, last_ns=mark.last_ns))

    def drain(self) -> bool:
        """Send some of what waits, if the bus is back; True when nothing waits any more. Raises BusError."""
        if not self._lane.waiting or self._spool.resting:
            return not self._lane.waiting
        began_ns = self._monotonic_ns()
        try:
            self.connect()
            found = self._lane.peek(self._covers) if self._covers else self._lane.peek()
            if found is None:
                return True
            if found.ends:
                self._finish(codec.decode(found.messages[0]).records[0], found.manifest)
                return True
            self._send(found.messages, found.manifest)
        except BusAway:
            self._spool.went_away(began_ns)
            return False
        if self._lane.pop():
            self._lane.mark_at(self._mark(self._lane.next_segment + 1))
        return not self._lane.waiting

    def close(self) -> None:
        """Release the stream, without marking it whole. What waits is left for the next process."""
        if self._writer is not None:
            self._writer.close()
        self._lane.close(forget=self.ended)

    # -- the bus

    def connect(self) -> None:
        """Open the stream on the bus, if it is not open. Raises BusAway, also while a killed writer's hold lapses.

        Raises BusHeld and BusError for what cannot be gone on with.
        """
        if self._writer is not None:
            return
        first = self._lane.peek()
        try:
            self._writer = self._bus.writer(
                self.topic, self.partition, first.manifest if first is not None else self.manifest
            )
        except BusHeld as error:
            self._held_ns = self._held_ns or self._monotonic_ns()
            if self._monotonic_ns() - self._held_ns > _HELD_NS:
                raise BusHeld(f"{error} (each recorder has a name of its own)") from None
            raise BusAway(str(error)) from None
        except BusAway:
            self._held_ns = 0
            raise
        except BusError:
            if first is not None and self._bus.whole(self.topic, self.partition):
                self._lane.discard()  # killed between marking the stream whole and removing these
            raise
        try:
            self._catch_up()
        except BaseException:
            self._writer.close()
            self._writer = None
            raise
        self._held_ns = 0
        self._spool.came_back()

    def _catch_up(self) -> None:
        """Read the end of the stream: the books of who wrote last, and what has arrived of the spool."""
        reader, mark = self._reader()
        books, found = _Books(mark), deque[bytes]()
        try:
            while messages := reader.read():
                found_manifest = reader.manifest
                if found_manifest is not None and found_manifest.masked and not self.manifest.masked:
                    raise BusError(
                        f"{self.partition} of {self.manifest.owner_id}: was begun masked, and would go on unmasked; "
                        "give the recording another name"
                    )
                for message in messages:
                    books.see(message.data, counts=message.offset >= books.next_marked)
                    books.last, books.next = message.offset, message.next_offset
                    if message.offset >= books.next_marked:
                        found.append(_digest(message.data))
        finally:
            reader.close()
        self._books = books
        self._found = found if self._lane.waiting else deque()

    def _reader(self) -> tuple[Reader, Mark | None]:
        """From the lane's mark on, and the mark. One behind the stream's end is of a stream that is gone, as topics
        are that were made anew: then all is read."""
        if self._lane.mark is not None:
            with contextlib.suppress(BusError):
                return self._bus.reader(self.topic, self.partition, self._lane.mark.last), self._lane.mark
        return self._bus.reader(self.topic, self.partition), None

    def _send(self, messages: Sequence[bytes], manifest: Manifest, *, last: bool = False) -> None:
        """Raises BusAway: what was sent comes again as it was, before anything else."""
        assert self._writer is not None
        if self._chunk is None:
            self._chunk = self._news(messages, manifest, last)
            self._covers = len(messages)
        if self._chunk:
            offsets = self._writer.write_many(self._chunk)
            self._books.last, self._books.next = offsets[-1], self._writer.next_offset
        for data in self._chunk:
            self._books.see(data)
        self._books.writer_ns = manifest.created_ns
        self._chunk, self._covers, self._doubtful = None, 0, None
        self._spool.came_back()

    def _news(self, messages: Sequence[bytes], manifest: Manifest, last: bool) -> list[bytes]:
        """Those that are not on the bus yet, behind what closes the books of the process before. `last`: the end
        follows, so those books are closed even when there is nothing new."""
        news = []
        for data in messages:
            if self._found and (digest := _digest(data)) in self._found:
                while self._found.popleft() != digest:
                    pass
                self._books.writer_ns = manifest.created_ns
            else:
                self._found.clear()  # they arrive in order: what follows is not there either
                news.append(data)
        if self._lane.damaged > self._told_damaged:
            note = Increment({}, {"damaged_frames": self._lane.damaged - self._told_damaged})
            news.insert(0, codec.encode((), RecordType.ACCOUNT, increment=note))
            self._told_damaged = self._lane.damaged
        if (news or last) and self._books.writer_ns != manifest.created_ns and self._books.wrote:
            blind_ns = max(0, manifest.created_ns - self._books.last_ns) if self._books.last_ns else 0
            closing = self._closing({name: count for name, count in self._books.in_flight.items() if count}, blind_ns)
            if closing is not None:
                news.insert(0, codec.encode((), RecordType.ACCOUNT, increment=closing))
        return news

    def _mark(self, segment: int) -> Mark:
        books = self._books
        return Mark(segment, books.last, books.next, books.writer_ns, books.count, books.first_ns, books.last_ns)

    def _finish(self, mark: End, manifest: Manifest) -> None:
        assert self._writer is not None
        self._send((), manifest, last=True)
        books = self._books
        self._writer.end(
            msgspec.structs.replace(mark, count=books.count, first_ns=books.first_ns, last_ns=books.last_ns)
        )
        self.ended = True
        self._lane.mark_at(self._mark(self._lane.next_segment))
        self._lane.discard()


class _Books:
    """What is on the bus of a stream."""

    def __init__(self, mark: Mark | None = None) -> None:
        self.writer_ns = mark.writer_ns if mark is not None else 0
        self.last = mark.last if mark is not None else 0
        self.next = self.next_marked = mark.next if mark is not None else 0
        self.count = mark.records if mark is not None else 0
        self.first_ns = mark.first_ns if mark is not None else 0
        self.last_ns = mark.last_ns if mark is not None else 0
        self.in_flight: dict[str, int] = {}
        self.wrote = False  # there is something besides the manifest

    def see(self, data: bytes, counts: bool = True) -> None:
        try:
            header = codec.decode_header(data)
        except codec.CodecError:
            return
        if header.type == RecordType.MANIFEST:
            return
        self.wrote = True
        for name, ledger in header.increment.ledgers.items():
            self.in_flight[name] = ledger.in_flight
        if not counts or header.type in _UNCOUNTED:
            return
        self.count += header.count
        if header.first_ns:
            self.first_ns = min(self.first_ns or header.first_ns, header.first_ns)
        self.last_ns = max(self.last_ns, header.last_ns)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
