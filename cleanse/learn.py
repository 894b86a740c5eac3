"""Learns routes and flows of a raw recording: of a file, or of all streams of one on a bus. Nothing is cleansed."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Final

import msgspec

from bus.doubts import doubts_of
from bus.logfile import LogReader
from bus.merge import Merge
from bus.order import Sorter
from bus.parts import parts_of
from bus.ports import Bus, BusAway, BusError
from cleanse.learned import TOPIC, WRITER, Learned
from cleanse.pipeline import Pipeline
from cleanse.rules.unreplayable import started_ns
from cleanse.settings import CleanseSettings
from wire import codec, topics
from wire.codec import RecordType
from wire.records import Exchange, Manifest

_POLL_S: Final = 0.1
_TELL_S: Final = 2.0  # what is waited for longer is told


class Lesson(msgspec.Struct, frozen=True):
    """What was learned, and of how much."""

    learned: Learned
    manifest: Manifest  # of the file to keep it in
    exchanges: int
    sessions: int
    doubts: tuple[str, ...] = ()  # what is wrong with the files, in one line each


def of_file(source: Path, folder: Path, settings: CleanseSettings, first: int | None = None) -> Lesson:
    """Of a raw file, or a folder of them, as far as it is written now. `folder` takes what does not fit in memory;
    `first`: how many exchanges are enough. Raises BusError."""
    with contextlib.ExitStack() as stack:
        readers = [stack.enter_context(LogReader(path, topic=topics.RAW)) for path in parts_of(source)]
        manifest = readers[0].manifest
        if manifest is None or manifest.topic != topics.RAW:
            holds = "no recording yet" if manifest is None else f"{manifest.topic}, not a raw recording"
            raise BusError(f"{source}: holds {holds}")
        exchanges = chain.from_iterable(map(_in_file, readers))
        lesson = _lesson(islice(exchanges, first), manifest.owner_id, manifest, (source.name,), folder, settings)
        # With enough of them the rest is not read, and nothing is known of it.
        return lesson if first else msgspec.structs.replace(lesson, doubts=tuple(doubts_of(readers)))


def of_bus(
    bus: Bus,
    name: str,
    folder: Path,
    settings: CleanseSettings,
    first: int | None = None,
    *,
    stop: Callable[[], bool] = lambda: False,
    deadline_s: float | None = None,
    told: Callable[[str], None] = lambda line: None,
) -> Lesson:
    """Of recording `name` on a bus, in the order of time over all streams. Waits until it is whole, or there are
    `first`; `told` what it waits for. Raises BusError when it is not after `deadline_s`, or `stop` said so, BusAway
    when the bus was never there."""
    merge = Merge(bus, topics.RAW, RecordType.EXCHANGE, started_ns)
    try:
        exchanges = islice(_on_bus(merge, name, stop, deadline_s, told), first)
        lesson = _lesson(exchanges, name, None, (), folder, settings)
        found = min(merge.manifests.values(), key=lambda manifest: (manifest.created_ns, manifest.partition))
        hosts = tuple(sorted({host for manifest in merge.manifests.values() for host in manifest.hosts}))
        manifest = _manifest(found, tuple(sorted(merge.manifests)), hosts)
        return msgspec.structs.replace(lesson, manifest=manifest)
    finally:
        merge.close()


def _lesson(
    exchanges: Iterable[Exchange],
    owner: str,
    manifest: Manifest | None,
    inputs: Sequence[str],
    folder: Path,
    settings: CleanseSettings,
) -> Lesson:
    pipeline = Pipeline(settings, owner)
    sorter = Sorter(settings.memory_bytes, folder, started_ns)
    sessions = set()
    try:
        for exchange in exchanges:
            for kept in pipeline.sift((exchange,)):
                sorter.add(kept, 0)
                sessions.add(kept.session_id or kept.connection_id)
        for entry in sorter:
            pipeline.learn(entry.record)
        held = manifest or Manifest(topics.RAW, "0", owner, 0, WRITER)
        made = _manifest(held, tuple(inputs), held.hosts)
        return Lesson(Learned(pipeline.routes, pipeline.flows), made, sorter.count, len(sessions))
    finally:
        sorter.close()


def _manifest(raw: Manifest, inputs: tuple[str, ...], hosts: tuple[str, ...]) -> Manifest:
    return msgspec.structs.replace(
        raw, topic=TOPIC, partition="0", writer=WRITER, settings={}, inputs=inputs, hosts=hosts, sorted=True
    )


def _in_file(reader: LogReader) -> Iterator[Exchange]:
    size = os.stat(reader.path).st_size  # a recorder may go on writing as fast as this reads
    while reader.next_offset < size and (messages := reader.read(1)):
        try:
            header = codec.decode_header(messages[0].data)
            if header.type is RecordType.EXCHANGE:
                yield from codec.decode(messages[0].data, header).records
        except codec.CodecError as error:
            if error.reason == "future_version":
                at = messages[0].offset
                raise BusError(f"{reader.path}: at {at}: {error.detail}: upgrade livefire") from None


def _on_bus(
    merge: Merge, name: str, stop: Callable[[], bool], deadline_s: float | None, told: Callable[[str], None]
) -> Iterator[Exchange]:
    begun = time.monotonic()
    said, reached = "", False
    while not merge.whole:
        if stop():
            raise BusError(f"recording {name}: stopped before it was whole; nothing was written")
        try:
            found, waits, reached = merge.poll(), _waits(merge), True
        except BusAway as error:
            if not reached:
                raise
            found, waits = [], f"the bus ({error})"
        yield from found
        if not found and not merge.whole:
            if deadline_s is not None and time.monotonic() - begun > deadline_s:
                raise BusError(f"recording {name}: not whole after {deadline_s:g} s: waits for {waits}")
            if waits != said and time.monotonic() - begun > _TELL_S:
                said = waits
                told(f"recording {name}: waits for {waits}")
            time.sleep(_POLL_S)


def _waits(merge: Merge) -> str:
    if not merge.manifests:
        return "somebody to begin with it"
    return f"agent {sorted(merge.missing)[0]}" if merge.missing else "the end of its streams"
