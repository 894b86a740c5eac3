"""The bus of many machines: streams in Kafka. The layout is in `bus.kafka_layout`, and docs/decisions.md says why.

One producer, one consumer, and a thread that renews the holds of open writers once a second. Not shared between
processes; writers and readers of one bus may be used from several threads.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import Final

from kafka import TopicPartition

from bus import kafka_layout as layout
from bus.address import KafkaAddress, KafkaSecurity
from bus.kafka_layout import Entry
from bus.kafka_link import Gone, Link
from bus.kafka_reader import KafkaReader
from bus.kafka_streams import Streams
from bus.kafka_writer import KafkaWriter
from bus.ports import BusAway, BusError, BusGone, BusHeld, BusWhole, check_names
from wire import codec
from wire.records import Manifest

_RENEW_S: Final = 1.0
_RELEASE_S: Final = 2.0
_PROBES: Final = 8


class KafkaBus:
    """The streams of one owner (`scope`) in a cluster. Connects at the first use."""

    def __init__(self, address: KafkaAddress, scope: str, security: KafkaSecurity | None = None) -> None:
        self.scope = scope
        self.link = Link(address, security or KafkaSecurity())
        self.streams = Streams(self.link, scope)
        self._readers: dict[TopicPartition, list[KafkaReader]] = {}
        self._writers: list[KafkaWriter] = []
        self._orphans: set[str] = set()  # claims of ours that came to nothing: they hold nobody up
        self._stop = threading.Event()
        self._keeper: threading.Thread | None = None

    def _topic(self, topic: str, partition: str = "0") -> tuple[str, int]:
        check_names(topic, partition)
        name = layout.kafka_topic(self.link.address.prefix, topic)
        return name, self.link.count(name, self.streams.topic)

    def _place(self, name: str, count: int, entry: Entry, where: str) -> TopicPartition:
        if entry.partition >= count and entry.partition >= (count := self.link.counted_anew(name)):
            raise BusError(f"{where}: should lie in partition {entry.partition} of {name}, which has {count}")
        return TopicPartition(name, entry.partition)

    # -- the port

    def writer(self, topic: str, partition: str, manifest: Manifest) -> KafkaWriter:
        with self.link.lock:
            name, count = self._topic(topic, partition)
            key = layout.key_of(self.scope, topic, partition)
            where = f"{self.link.address} {key.decode()}"
            self.streams.refresh()
            known = self.streams.get(key)
            old = known.entry if known else None
            if old is not None:
                if old.state == "ended":
                    raise BusWhole(f"{where}: is whole already (it has an end mark); take another name")
                if old.writer not in self._orphans and self.streams.held(key):
                    raise BusHeld(f"{where}: another process is writing it")
                at = self._place(name, count, old, where)
                claim = Entry("open", os.urandom(8).hex(), old.epoch + 1, old.partition, old.first, old.last)
            else:
                at = TopicPartition(name, layout.partition_of(partition, count))
                claim = Entry("open", os.urandom(8).hex(), 1, at.partition, self.link.end(at))
            since = time.monotonic()
            self._orphans.add(claim.writer)
            if not self.reclaimed(key, claim):
                raise BusHeld(f"{where}: another process is writing it")
            writer = KafkaWriter(self, (topic, partition), at, claim, since)
            try:
                self._begin(writer, manifest, old)
            except BusAway:
                raise
            except BaseException:
                writer.close()
                raise
            self._orphans.discard(claim.writer)
            self._keep(writer)
            return writer

    def _begin(self, writer: KafkaWriter, manifest: Manifest, old: Entry | None) -> None:
        """A new stream begins with its manifest. One that is gone on with begins a new epoch: from its mark on nothing
        of an earlier writer counts, so what stands before it is all there is."""
        writer.manifest = manifest
        if old is not None:
            writer.begin(None)
            reader = self.reader(writer.topic, writer.partition)
            try:
                try:
                    found = reader.manifest
                except Gone:  # retention is over for its beginning: it begins anew
                    found = None
                if found is not None:
                    self._may_go_on(writer, manifest, found)
                    writer.manifest = found
                    reader.seek(max(old.last, 0))
                    while reader.read():
                        pass
                    if reader.ended:
                        mine = writer.entry()
                        writer.leave(
                            Entry("ended", mine.writer, mine.epoch, mine.partition, mine.first, reader.next_offset - 1)
                        )
                        raise BusWhole(f"{writer}: is whole already (it has an end mark); take another name")
                    return
            finally:
                reader.close()
        writer.begin(codec.encode((manifest,), first_ns=manifest.created_ns, last_ns=manifest.created_ns))
        if old is not None:
            self.put(writer.key, writer.entry())  # where it begins now

    @staticmethod
    def _may_go_on(writer: KafkaWriter, mine: Manifest, found: Manifest) -> None:
        if (mine.owner_id, mine.topic) != (found.owner_id, found.topic):
            raise BusError(
                f"{writer}: holds {found.topic} of {found.owner_id}, not {mine.topic} of {mine.owner_id}; "
                "write to another partition"
            )

    def reader(self, topic: str, partition: str, offset: int = 0) -> KafkaReader:
        with self.link.lock:
            name, count = self._topic(topic, partition)
            key = layout.key_of(self.scope, topic, partition)
            where = f"{self.link.address} {key.decode()}"
            self.streams.refresh()
            known = self.streams.get(key)
            if known is None:
                raise BusGone(f"{where}: no such partition")
            reader = KafkaReader(self, topic, partition, self._place(name, count, known.entry, where), offset)
            if offset:
                self.check_offset(reader, offset)
            self._readers.setdefault(reader.at, []).append(reader)
            return reader

    def partitions(self, topic: str) -> list[str]:
        with self.link.lock:
            self.streams.refresh()
            return sorted(self.streams.names(self.scope, topic))

    def held(self, topic: str, partition: str) -> bool:
        check_names(topic, partition)
        with self.link.lock:
            self.streams.refresh()
            return self.streams.held(layout.key_of(self.scope, topic, partition))

    def whole(self, topic: str, partition: str) -> bool:
        """The directory says so; where it does not, only what came after its last word is read."""
        check_names(topic, partition)
        with self.link.lock:
            self.streams.refresh()
            known = self.streams.get(layout.key_of(self.scope, topic, partition))
            if known is None or known.entry.state == "ended":
                return known is not None
            with contextlib.closing(self.reader(topic, partition)) as reader:
                reader.seek(max(known.entry.last, 0))
                while reader.read():
                    pass
                return reader.ended

    def discard(self, topic: str, partition: str) -> None:
        if self.held(topic, partition):
            raise BusHeld(f"{self.link.address} {self.scope}/{topic}/{partition}: another process is writing it")

    def spread(self, topic: str) -> int:
        with self.link.lock:
            return self._topic(topic)[1]

    def offset_at(self, topic: str, partition: str, since_ns: int) -> int:
        with self.link.lock, contextlib.closing(self.reader(topic, partition)) as reader:
            return max(self.link.at_time(reader.at, since_ns // 1_000_000), reader.scanned)

    def glance(self) -> contextlib.AbstractContextManager[None]:
        return self.link.glance()

    def close(self) -> None:
        self._stop.set()
        until = time.monotonic() + _RELEASE_S  # for all: a bus that is away is not waited for once a writer
        for writer in list(self._writers):
            writer.close(until)
        for readers in list(self._readers.values()):
            for reader in list(readers):
                reader.close()
        self.link.close()

    # -- for the clock

    def clock_offset(self) -> tuple[int, int]:
        """(offset_ns, error_ns): the broker's clock minus this machine's, and how wrong that can be.

        Measured like NTP: the broker stamps a message between its sending and its acknowledgement; of several the one
        that was acknowledged soonest counts. The broker's stamps are in whole milliseconds. Raises BusAway.
        """
        best: tuple[int, int] | None = None
        with self.link.lock:
            self.link.broker_ms(time.monotonic() + 2.0)  # the first one connects
            for _ in range(_PROBES):
                sent = time.time_ns()  # noqa: TID251 (wall clocks are what is compared here)
                stamp_ns = self.link.broker_ms(time.monotonic() + 2.0) * 1_000_000 + 500_000
                back = time.time_ns()  # noqa: TID251
                error = (back - sent) // 2 + 500_000
                if best is None or error < best[1]:
                    best = stamp_ns - (sent + back) // 2, error
        assert best is not None
        return best

    # -- what readers ask

    def fill(self, reader: KafkaReader) -> None:
        """Look for messages of a reader until one is there, or all is looked at that was there at the call.

        Others that stand at the same place, or further on in what comes, get theirs: streams that begin at different
        places read a Kafka partition together all the same. Raises BusAway.
        """
        with self.link.lock:
            if reader.past_end:
                return
            end = self.link.end(reader.at)
            while not reader.waiting and reader.scanned < end:
                start = reader.scanned
                try:
                    records, position = self.link.fetch(reader.at, start)
                except Gone:
                    left = self.link.beginning(reader.at)
                    if not start < left <= reader.next_offset:
                        raise
                    reader.scanned = left  # only of what stands before its place is something gone
                    continue
                here = [
                    (other, other.scanned)
                    for other in self._readers.get(reader.at, ())
                    if start <= other.scanned < position and not other.full and other is not reader
                ]
                here.append((reader, start))
                by_key: dict[bytes, list[tuple[KafkaReader, int]]] = {}
                for other, since in here:
                    other.scanned = position
                    by_key.setdefault(other.key, []).append((other, since))
                for record in records:
                    for other, since in by_key.get(record.key, ()):
                        if record.offset < since or other.scanned <= record.offset:
                            continue  # it has been looked at, or the reader was full before it
                        if other.full and other is not reader:
                            other.scanned = record.offset
                            continue
                        other.take(record)

    def first_of(self, reader: KafkaReader) -> KafkaReader:
        """A reader that has read the first message of a stream, whatever this one has seen."""
        with self.link.lock:
            first = KafkaReader(self, reader.topic, reader.partition, reader.at, 0)
            first.read(1)
            return first

    def check_offset(self, reader: KafkaReader, offset: int) -> None:
        with self.link.lock:
            self.streams.refresh()
            end = self.link.end(reader.at)
            if offset < 0 or offset > end:
                raise BusError(f"{reader}: there is no offset {offset}, its Kafka partition ends at {end}")

    def forget(self, reader: KafkaReader) -> None:
        with self.link.lock, contextlib.suppress(ValueError):
            self._readers.get(reader.at, []).remove(reader)

    # -- what writers ask

    def put(self, key: bytes, entry: Entry) -> None:
        with self.link.lock:
            self.streams.put(key, entry)

    def reclaimed(self, key: bytes, entry: Entry) -> bool:
        """Write an entry, and whether it is the one that holds. Raises BusAway."""
        with self.link.lock:
            self.streams.refresh(self.streams.put(key, entry) + 1)
            known = self.streams.get(key)
            return known is not None and (known.entry.writer, known.entry.epoch) == (entry.writer, entry.epoch)

    def release(self, key: bytes, entry: Entry, until: float | None = None) -> None:
        """Write the last entry of a writer. When the bus is away the hold lapses by itself."""
        self._orphans.add(entry.writer)
        with contextlib.suppress(BusError), self.link.lock:
            self.streams.put(key, entry, until)

    def dropped(self, writer: KafkaWriter) -> None:
        with contextlib.suppress(ValueError):
            self._writers.remove(writer)

    def _keep(self, writer: KafkaWriter) -> None:
        self._writers.append(writer)
        if self._keeper is None:
            self._keeper = threading.Thread(target=self._renew, name="kafka-holds", daemon=True)
            self._keeper.start()

    def _renew(self) -> None:
        while not self._stop.wait(_RENEW_S):
            for writer in list(self._writers):
                with contextlib.suppress(BusError):  # a renewal that fails is seen by the writer: its hold is not sure
                    writer.renew(self.streams.post)
