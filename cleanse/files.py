"""The files of a recording: what is read of its raw parts, and how the clean one is written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from bus.logfile import LogReader, LogWriter
from bus.order import Sorter
from bus.ports import BusError
from cleanse.pipeline import Pipeline
from cleanse.settings import CleanseSettings
from cleanse.sieve import LEDGER
from cleanse.stream import WRITER
from cleanse.summary import CleanseResult
from wire import codec, topics
from wire.account import Account
from wire.codec import RecordType
from wire.records import Exchange, Manifest, SourceRange, Stamped

_PART_BITS: Final = 44  # of the tag of a record: its batch's offset in its file; above them the file's number
_OFFSET: Final = (1 << _PART_BITS) - 1


def manifest_of(reader: LogReader, source: Path) -> Manifest:
    """That of a raw recording. Raises BusError for another."""
    manifest = reader.manifest
    if manifest is None:
        raise BusError(f"{source}: holds no recording yet")
    if manifest.topic == topics.CLEAN:
        raise BusError(f"{source}: is clean already; give the raw recording")
    if manifest.topic != topics.RAW:
        raise BusError(f"{source}: holds {manifest.topic}, not a recording")
    return manifest


def read(reader: LogReader, part: int, pipeline: Pipeline, sorter: Sorter[Exchange], captured: Account) -> None:
    """Sift part number `part` into the sorter. `captured` becomes the account of who recorded it. Raises BusError."""
    first = part << _PART_BITS
    # A recorder may go on writing as fast as this reads: what is there now is enough.
    size = os.stat(reader.path).st_size
    while reader.next_offset < size and (messages := reader.read(1)):
        message = messages[0]
        header: codec.Header | None = None
        try:
            header = codec.decode_header(message.data)
            captured.add(header.increment)
            if header.type is not RecordType.EXCHANGE:
                continue
            records = codec.decode(message.data, header).records
        except codec.CodecError as error:
            if error.reason == "future_version":
                raise BusError(f"{reader.path}: at {message.offset}: {error.detail}: upgrade livefire") from None
            pipeline.lose(header.count if header is not None else 0)
            continue
        for exchange in pipeline.sift(records):
            sorter.add(exchange, first + message.offset)
    if reader.corrupt_frames:
        pipeline.account.note("damaged_frames", reader.corrupt_frames)


def write(
    part: Path,
    raw: Manifest,
    source: Path,
    pipeline: Pipeline,
    sorter: Sorter[Exchange],
    settings: CleanseSettings,
    partitions: Sequence[str],
) -> CleanseResult:
    """Stamp what the sorter holds into `part`, in its order. `partitions`: those of the raw parts, by their number."""
    manifest = msgspec.structs.replace(
        raw,
        topic=topics.CLEAN,
        partition="0",
        writer=WRITER,
        settings=msgspec.to_builtins(settings),
        inputs=(source.name,),
        sorted=True,
        servers=tuple(sorted(pipeline.servers)),
    )
    routes, flows = pipeline.routes, pipeline.flows
    last_offset_ns = 0
    with LogWriter(part, manifest) as writer:
        writer.write_records((routes,))
        writer.write_records((flows,), increment=pipeline.account.take())
        for batch, sources in _batches(pipeline, sorter, settings, partitions):
            last_offset_ns = batch[-1].offset_ns
            writer.write_records(
                batch,
                first_ns=pipeline.first_ns + batch[0].offset_ns,
                last_ns=pipeline.first_ns + last_offset_ns,
                sources=sources,
                increment=pipeline.account.take(),
            )
        writer.end(reason="done", sorted=True)
    ledger = pipeline.account.ledger(LEDGER)
    return CleanseResult(
        pipeline.account, routes, flows, ledger.emitted, pipeline.sessions.count, pipeline.first_ns, last_offset_ns
    )


def _batches(
    pipeline: Pipeline, sorter: Sorter[Exchange], settings: CleanseSettings, partitions: Sequence[str]
) -> Iterator[tuple[list[Stamped], tuple[SourceRange, ...]]]:
    batch: list[Stamped] = []
    size = 0
    ranges: dict[int, tuple[int, int]] = {}  # by part: the least offset, the greatest

    def sources() -> tuple[SourceRange, ...]:
        return tuple(
            SourceRange(topics.RAW, partitions[part], low, high + 1) for part, (low, high) in sorted(ranges.items())
        )

    for _, _, tag, exchange in sorter:
        stamped = pipeline.stamp(exchange)
        part, offset = tag >> _PART_BITS, tag & _OFFSET
        low, high = ranges.get(part, (offset, offset))
        ranges[part] = min(low, offset), max(high, offset)
        batch.append(stamped)
        size += len(stamped.request.head) + len(stamped.request.body) + len(stamped.baseline.body) + 400
        if len(batch) >= settings.batch_records or size >= settings.batch_bytes:
            yield batch, sources()
            batch, size, ranges = [], 0, {}
    if batch:
        yield batch, sources()
