"""A recording that was cleansed on a bus becomes a local clean file, as `livefire cleanse FILE` writes it.

Every worker fetches for itself and gets the same bytes: what the file holds depends on what was recorded, not on how
many agents, partitions and cleansers it came through, nor on what was written twice when one of them was killed.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from bus.highwater import HighWater
from bus.logfile import LogWriter
from bus.order import Entry, Sorter
from bus.ports import Bus, BusAway, BusError, Message, Reader
from wire import codec, topics
from wire.account import SHEDDING, Account, Ledger, kept_share
from wire.codec import RecordType
from wire.records import End, Flows, Manifest, RouteTable, SourceRange, Stamped
from wire.streams import (
    CLEAN_WIDTH,
    RECORDED_NOTE,
    SERVER_NOTE,
    SHED_NOTE,
    agent_of,
    clean_stream,
    parent_of,
    raw_stream,
)

LEDGER: Final = "messages"
MAX_SERVERS: Final = 10_000
_POLL_S: Final = 0.1
_WIDEST: Final = 100_000  # streams that one raw stream may become
_BATCH_RECORDS: Final = 256
_BATCH_BYTES: Final = 2 << 20
_MEMORY_BYTES: Final = 192 << 20
_APART_NS: Final = 2_000_000_000  # what two agents say of one request: their clocks agree much better
_PLACES: Final = 1 << 48  # a tag is a stream's number and an offset in it


class Progress(msgspec.Struct, frozen=True):
    """How far a fetch is."""

    exchanges: int
    streams: int  # clean streams that are known
    ended: int  # of them
    waiting_for: tuple[str, ...]  # what is still missing, in words for people; () = whole


class Fetched(msgspec.Struct, frozen=True):
    """What was written."""

    manifest: Manifest
    account: Account  # ledger "messages", of everything that was cleansed
    exchanges: int
    sessions: int
    first_ns: int  # epoch ns at which offset 0 is
    last_offset_ns: int
    repeats: int  # messages that were written twice, and dropped


class _Stream:
    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.manifest: Manifest | None = None
        self.end: End | None = None
        self.seen = 0  # exchanges of the raw stream that its account tells of


def fetch(
    bus: Bus,
    name: str,
    to: Path,
    *,
    stop: Callable[[], bool] = lambda: False,
    deadline_s: float | None = None,
    told: Callable[[Progress], None] = lambda progress: None,
    memory_bytes: int = _MEMORY_BYTES,
) -> Fetched | None:
    """Copy recording `name` from `clean` into the file `to`, sorted by time; None when `stop` said so before.

    Waits until the recording is whole: all agents that it names are there, and all their streams have ended. `to`
    appears when it is done. Raises BusError when it is not whole after `deadline_s`, or cannot be used.
    """
    if to.exists():
        raise BusError(f"{to}: exists already; remove it, or write to another file")
    recording = _Recording(bus, name, Sorter(memory_bytes, to.with_name(to.name + ".runs"), _offset_of))
    part = to.with_name(to.name + ".part")
    begun = time.monotonic()
    try:
        while True:
            if stop():
                return None
            try:
                with bus.glance():
                    found = recording.read()
                waiting_for = recording.waiting_for()
            except BusAway as error:
                found, waiting_for = False, [f"the bus ({error})"]
            told(recording.progress(waiting_for))
            if not waiting_for and not found:
                break
            if deadline_s is not None and time.monotonic() - begun > deadline_s:
                raise BusError(f"recording {name}: not whole after {deadline_s:g} s: waits for {_listed(waiting_for)}")
            if not found:
                time.sleep(_POLL_S)
        part.unlink(missing_ok=True)  # left over by a fetch that was killed
        fetched = recording.write(part)
        os.replace(part, to)
        return fetched
    finally:
        part.unlink(missing_ok=True)
        recording.close()


class _Recording:
    def __init__(self, bus: Bus, name: str, sorter: Sorter[Stamped]) -> None:
        self._bus = bus
        self._name = name
        self._sorter = sorter
        self._streams: dict[str, _Stream] = {}
        self._raw: list[str] = []  # raw streams, as they were met: a tag names one by its place here
        self._seen = HighWater()
        self._account = Account()
        self._servers: set[str] = set()
        self._learned: dict[str, RouteTable | Flows] = {}
        self._unreadable = 0

    # -- reading

    def read(self) -> bool:
        """What is there now. False when there was nothing new."""
        for name in self._bus.partitions(topics.CLEAN):
            if name not in self._streams:
                self._streams[name] = _Stream(self._bus.reader(topics.CLEAN, name))
        found = False
        for name, stream in self._streams.items():
            for message in stream.reader.read():
                found = True
                try:
                    self._take(name, stream, message)
                except (codec.CodecError, ValueError):
                    self._unreadable += 1
        return found

    def _take(self, name: str, stream: _Stream, message: Message) -> None:
        header = codec.decode_header(message.data)
        if header.type is RecordType.STAMPED or header.type is RecordType.ACCOUNT:
            if not self._seen.is_new(name, header.sources):
                return
            self._count(stream, header)
        batch = codec.decode(message.data, header).records
        if header.type is RecordType.MANIFEST:
            (manifest,) = batch
            stream.manifest = stream.manifest or manifest
        elif header.type is RecordType.END:
            (stream.end,) = batch
        elif header.type is RecordType.ROUTE_TABLE or header.type is RecordType.FLOWS:
            (record,) = batch
            if self._learned.setdefault(header.type.name, record) != record:
                raise BusError(
                    f"recording {self._name}: its cleansers were given different --learned files; cleanse it again "
                    "under another name"
                )
        elif header.type is RecordType.STAMPED:
            raw = raw_stream(name)
            if raw not in self._raw:
                self._raw.append(raw)
            tag = self._raw.index(raw) * _PLACES + (header.sources[0].first if header.sources else 0)
            for stamped in batch:
                self._sorter.add(stamped, tag)

    def _count(self, stream: _Stream, header: codec.Header) -> None:
        increment = header.increment
        for note in [note for note in increment.notes if note.startswith(SERVER_NOTE)]:
            del increment.notes[note]
            if len(self._servers) < MAX_SERVERS:
                self._servers.add(note[len(SERVER_NOTE) :])
        if LEDGER in increment.ledgers:
            stream.seen += increment.ledgers[LEDGER].seen
        self._account.add(increment)

    # -- is it whole?

    def waiting_for(self) -> list[str]:
        """What is missing, in words; [] when the recording is whole. Raises BusAway."""
        manifests = [stream.manifest for stream in self._streams.values() if stream.manifest is not None]
        if not manifests:
            return [f"a cleanser to begin with recording {self._name}"]
        raws = {raw_stream(name) for name in self._streams} | set(self._bus.partitions(topics.RAW))
        agents = {agent_of(raw) for raw in raws}
        missing = [f"agent {host}" for host in sorted({h for m in manifests for h in m.hosts} - agents)]
        width = max(self._width(manifest) for manifest in manifests)
        for raw in sorted(raws):
            streams = [self._streams.get(clean_stream(raw, j)) for j in range(width)]
            if any(stream is None or not stream.reader.ended for stream in streams):
                missing.append(f"the end of {raw}")
        return missing

    def _width(self, manifest: Manifest) -> int:
        width = manifest.settings.get(CLEAN_WIDTH, 1)
        if not isinstance(width, int) or not 1 <= width <= _WIDEST:
            raise BusError(f"recording {self._name}: {manifest.partition} says that it has {width!r} clean streams")
        return width

    def progress(self, waiting_for: list[str]) -> Progress:
        ended = sum(stream.reader.ended for stream in self._streams.values())
        return Progress(self._sorter.count, len(self._streams), ended, tuple(waiting_for))

    # -- writing

    def write(self, part: Path) -> Fetched:
        manifest = self._manifest()
        routes = self._learned.get("ROUTE_TABLE", RouteTable(self._name, ()))
        flows = self._learned.get("FLOWS", Flows(self._name, ()))
        account = self._balance()
        ledger = account.ledger(LEDGER)
        first_ns = next(iter(self._sorter)).at_ns if self._sorter.count else 0
        sessions: dict[bytes, tuple[int, int]] = {}
        last_offset_ns = 0
        with LogWriter(part, manifest) as writer:
            writer.write_records((routes,))
            writer.write_records((flows,), increment=account.take())
            for entries in self._batches(self._once(ledger)):
                batch = [_rebased(entry.record, first_ns, sessions) for entry in entries]
                ledger.emitted += len(batch)
                ledger.in_flight -= len(batch)
                last_offset_ns = batch[-1].offset_ns
                writer.write_records(
                    batch,
                    first_ns=entries[0].at_ns,
                    last_ns=entries[-1].at_ns,
                    sources=self._sources(entries),
                    increment=account.take(),
                )
            writer.end(reason="done", sorted=True)
        return Fetched(manifest, account, ledger.emitted, len(sessions), first_ns, last_offset_ns, self._seen.repeats)

    def _manifest(self) -> Manifest:
        """One for all agents. The same whoever fetches: it was made when the first agent began."""
        found = sorted(
            (s.manifest for s in self._streams.values() if s.manifest is not None),
            key=lambda manifest: (manifest.created_ns, manifest.partition),
        )
        if len({manifest.scale for manifest in found}) > 1:
            shares = ", ".join(sorted({f"{manifest.scale:g}" for manifest in found}))
            raise BusError(f"recording {self._name}: its agents recorded different shares of production ({shares})")
        hosts = {host for manifest in found for host in manifest.hosts} or {agent_of(raw) for raw in self._raw}
        settings = {key: value for key, value in found[0].settings.items() if key != CLEAN_WIDTH}
        # What the recorders shed was production's load, too: 1x is to be production's rate.
        take = self._account.notes.pop
        share = kept_share({name: (take(RECORDED_NOTE + name, 0), take(SHED_NOTE + name, 0)) for name in SHEDDING})
        return msgspec.structs.replace(
            found[0],
            partition="0",
            scale=found[0].scale * share,
            hosts=tuple(sorted(hosts)),
            inputs=tuple(sorted({raw for manifest in found for raw in manifest.inputs})),
            settings=settings,
            sorted=True,
            masked=all(manifest.masked for manifest in found),
            servers=tuple(sorted(self._servers)),
            clock_offset_ns=0,
            clock_error_ns=max(manifest.clock_error_ns for manifest in found),
        )

    def _balance(self) -> Account:
        """The account of all streams before the first exchange is written.

        What a raw stream says that it holds and no cleanser saw is missing; what a cleanser wrote and cannot be read
        here is unreadable.
        """
        account = self._account
        ledger = account.ledger(LEDGER)
        by_raw: dict[str, list[_Stream]] = {}
        for name, stream in self._streams.items():
            by_raw.setdefault(parent_of(raw_stream(name)), []).append(stream)
        for streams in by_raw.values():
            held = max((stream.end.count for stream in streams if stream.end is not None), default=0)
            missing = held - sum(stream.seen for stream in streams)
            if missing > 0:
                ledger.seen += missing
                ledger.drop("missing", missing)
        lost = ledger.emitted - self._sorter.count
        if self._unreadable:
            account.note("unreadable_batches", self._unreadable)
        if lost > 0:
            ledger.drop("unreadable", lost)
        for counts in (ledger.drops, account.notes):  # a dead letter that was read later takes back what it had cost
            for reason in [reason for reason, count in counts.items() if not count]:
                del counts[reason]
        ledger.emitted, ledger.in_flight = 0, self._sorter.count
        return account

    def _once(self, ledger: Ledger) -> Iterator[Entry[Stamped]]:
        """Of a request that passed several agents the first copy: its id is made of its connection, whoever saw it.
        Otherwise 1x would be more than production's rate."""
        recent: set[bytes] = set()
        order: deque[tuple[int, bytes]] = deque()
        for entry in self._sorter:
            while order and order[0][0] < entry.at_ns - _APART_NS:
                recent.discard(order.popleft()[1])
            if entry.exchange_id in recent:
                ledger.drop("other_agent")
                ledger.in_flight -= 1
                continue
            recent.add(entry.exchange_id)
            order.append((entry.at_ns, entry.exchange_id))
            yield entry

    @staticmethod
    def _batches(sorted_entries: Iterator[Entry[Stamped]]) -> Iterator[list[Entry[Stamped]]]:
        batch: list[Entry[Stamped]] = []
        size = 0
        for entry in sorted_entries:
            batch.append(entry)
            record = entry.record
            size += len(record.request.head) + len(record.request.body) + len(record.baseline.body) + 400
            if len(batch) >= _BATCH_RECORDS or size >= _BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _sources(self, entries: list[Entry[Stamped]]) -> tuple[SourceRange, ...]:
        """The raw batches that these came in."""
        places: dict[str, list[int]] = {}
        for entry in entries:
            number, offset = divmod(entry.tag, _PLACES)
            places.setdefault(self._raw[number], []).append(offset)
        return tuple(
            SourceRange(topics.RAW, raw, min(offsets), max(offsets) + 1) for raw, offsets in sorted(places.items())
        )

    def close(self) -> None:
        for stream in self._streams.values():
            stream.reader.close()
        self._sorter.close()


def _offset_of(stamped: Stamped) -> int:
    return stamped.offset_ns


def _rebased(stamped: Stamped, first_ns: int, sessions: dict[bytes, tuple[int, int]]) -> Stamped:
    """Its time from the recording's first request on, and its place in its session."""
    offset_ns = stamped.offset_ns - first_ns
    start, index = sessions.get(stamped.session_id, (offset_ns, 0))
    sessions[stamped.session_id] = (start, index + 1)
    return msgspec.structs.replace(stamped, offset_ns=offset_ns, session_start_ns=start, session_index=index)


def _listed(waiting_for: list[str], most: int = 4) -> str:
    more = f" and {len(waiting_for) - most} more" if len(waiting_for) > most else ""
    return ", ".join(waiting_for[:most]) + more
