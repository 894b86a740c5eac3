"""The ports of a bus. Synchronous, batches in and out; a message is one encoded batch (`wire.codec`).

A topic has partitions; a partition has one writer. Offsets are opaque integers that grow along a
partition: on files the byte position of the frame, on Kafka the message's offset. `next_offset` of a
message is where a reader must start to see what follows it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import msgspec

from wire.account import Increment
from wire.codec import RecordType
from wire.records import End, Manifest, Record, SourceRange

_TOPIC = re.compile(r"[a-z][a-z0-9_]*")
_PARTITION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]*")


class BusError(Exception):
    """A bus, file or partition that cannot be used. The text is one line for the user: what, where, what to do."""


class BusGone(BusError):
    """There is no such partition: nobody has made it yet, or who needed it no more has discarded it."""


class BusDamaged(BusError):
    """A file of which not even the beginning can be read: damaged, or not ours at all."""


class BusHeld(BusError):
    """The partition has a writer, in another process or this one. It is left as it is."""


class BusWhole(BusError):
    """The partition has its end mark: nothing can be added to it."""


class BusFull(BusError):
    """There is no room for the message; nothing of it was kept. Free room and write it again, or shed it."""


class BusAway(BusError):
    """The bus cannot be reached now. The same call may succeed later; a `write` may be repeated as it was."""


class Message(msgspec.Struct, frozen=True):
    topic: str
    partition: str
    offset: int
    next_offset: int
    data: bytes


class Writer(Protocol):
    """The one writer of a partition. Calls come from one thread at a time, which need not be the bus's."""

    @property
    def next_offset(self) -> int:
        """Where to read from for what is written from now on: no later message is before it."""

    def write(self, data: bytes) -> int:
        """Append one message; its offset. When this returns a killed process loses it no more.

        Raises BusFull (nothing was kept; may be called again), BusAway after a bounded time (call again with the same
        message: readers see it once, also when the first call had written it) or BusError.
        """

    def write_many(self, messages: Sequence[bytes]) -> list[int]:
        """Append several, in order, faster than one by one; their offsets. Raises as `write` does.

        After BusAway or BusFull call again with the same list: what was written already is not written twice.
        """

    def write_records(
        self,
        records: Sequence[Record],
        type: RecordType | None = None,
        *,
        first_ns: int = 0,
        last_ns: int = 0,
        sources: tuple[SourceRange, ...] = (),
        increment: Increment | None = None,
    ) -> int:
        """Encode and append one batch; its offset. Raises as `write` does, and BusError for a batch too large."""

    def end(self, end: End) -> None:
        """Mark the partition as whole. Nothing may be written after it."""

    def close(self) -> None:
        """Release the partition, without marking it whole. May be called twice."""


class Reader(Protocol):
    """Reads one partition in order. Any number of readers, in any process."""

    def read(self, max_messages: int = 64) -> list[Message]:
        """What is there now, in order; [] is definite: nothing more was there when it was called.

        Hands out `max_messages` at most, and fewer where they are large: ask again until there are none. Does not wait
        for what is not there yet. Raises BusAway, after about a second, where the bus does not say what is there.
        """

    @property
    def ended(self) -> bool:
        """True behind the end mark: once it has been read, or when reading began behind it."""

    @property
    def manifest(self) -> Manifest | None:
        """The partition's first batch; None until it can be read."""

    @property
    def next_offset(self) -> int: ...

    def seek(self, offset: int) -> None:
        """Go on from this offset, which a message gave (0 = the beginning). Raises BusError where there is none."""

    def close(self) -> None: ...


class Bus(Protocol):
    """One owner's partitions: a recording's, a run's. Used from one thread at a time."""

    def writer(self, topic: str, partition: str, manifest: Manifest) -> Writer:
        """Open a partition for writing, at its end; made when absent.

        Raises BusError if it has a writer already, is whole, or belongs to another recording or run.
        """

    def reader(self, topic: str, partition: str, offset: int = 0) -> Reader:
        """Open a partition for reading. Raises BusGone if there is none."""

    def partitions(self, topic: str) -> list[str]:
        """The partitions that exist now, sorted."""

    def held(self, topic: str, partition: str) -> bool:
        """Whether the partition has a writer now. Between machines the hold of a killed writer lapses in seconds."""

    def whole(self, topic: str, partition: str) -> bool:
        """Whether the partition is there, and has its end mark."""

    def discard(self, topic: str, partition: str) -> None:
        """Nobody needs this partition any more: a folder removes it, a cluster's retention does. Readers that have it
        open read on. Raises BusHeld while it has a writer; one that is not there is fine."""

    def offset_at(self, topic: str, partition: str, since_ns: int) -> int:
        """Where to begin reading so that nothing of that time (ns since 1970) or later is missed; earlier may come too.

        Raises BusError as `reader` does.
        """

    def glance(self) -> AbstractContextManager[None]:
        """Within it, what is there now is asked once for all readers: `read` is definite as of its beginning."""

    def spread(self, topic: str) -> int:
        """Over how many partitions a producer should deal what it writes, for as many consumers to share the work."""

    def close(self) -> None:
        """Let go of connections; its readers and writers are closed with it. May be called twice."""


def check_names(topic: str, partition: str = "0") -> None:
    """Raises BusError for names that would be files elsewhere, or of another topic. The same on every bus."""
    if not _TOPIC.fullmatch(topic):
        raise BusError(f"{topic!r} is not a topic: small letters, digits and _, beginning with a letter")
    if not is_partition(partition):
        raise BusError(f"{partition!r} is not a partition: letters, digits and _ . : -, not beginning with . : -")


def is_partition(name: str) -> bool:
    return _PARTITION.fullmatch(name) is not None
