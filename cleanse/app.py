"""Cleanses a recording: reads a raw file, writes a clean one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from bus.logfile import LogReader, LogWriter
from bus.order import Sorter
from bus.ports import BusError
from cleanse.pipeline import Pipeline
from cleanse.rules.unreplayable import started_ns
from cleanse.settings import CleanseSettings
from cleanse.sieve import LEDGER
from wire import codec, topics
from wire.account import Account
from wire.codec import RecordType
from wire.records import Exchange, Flows, Manifest, RouteTable, SourceRange, Stamped

WRITER = "livefire cleanse"


class CleanseResult(msgspec.Struct, frozen=True):
    account: Account  # ledger "messages"
    routes: RouteTable
    flows: Flows
    exchanges: int
    sessions: int
    first_ns: int  # epoch ns at which offset 0 is
    last_offset_ns: int


def cleanse(
    source: Path,
    to: Path,
    settings: CleanseSettings | None = None,
    until_ns: int | None = None,
    from_ns: int | None = None,
) -> CleanseResult:
    """Read the raw recording `source` as far as it is written now, write the clean one `to`, sorted by time.

    Exchanges that began after `until_ns` or before `from_ns` (epoch ns) are left out. `to` appears when it is whole:
    until then its name ends in .part. Raises BusError for files that cannot be used, ConfigError for rules that
    cannot be meant.
    """
    settings = settings or CleanseSettings()
    if to.exists():
        raise BusError(f"{to}: exists already; remove it, or write to another file")
    part = to.with_name(to.name + ".part")
    with LogReader(source, topic=topics.RAW) as reader:
        manifest = _manifest_of(reader, source)
        pipeline = Pipeline(settings, manifest.owner_id, until_ns, from_ns)
        sorter = Sorter(settings.memory_bytes, to.with_name(to.name + ".runs"), started_ns)
        try:
            _read(reader, pipeline, sorter)
            for entry in sorter:
                pipeline.learn(entry.record)
            # Left over by a cleanse that was killed: its work is done again from the start.
            part.unlink(missing_ok=True)
            result = _write(part, manifest, source, pipeline, sorter, settings)
            os.replace(part, to)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        finally:
            sorter.close()
    return result


def summary_lines(result: CleanseResult) -> list[str]:
    """What was kept and what was left out, for people."""
    ledger = result.account.ledger(LEDGER)
    routes = len(result.routes.routes)
    lines = [
        f"kept {result.exchanges:,} of {_count(ledger.seen, 'exchange')} in {_count(result.sessions, 'session')}, "
        f"{_count(routes, 'route')}, {_count(len(result.flows.flows), 'flow')}"
    ]
    dropped = sorted((ledger.intentional | ledger.drops).items(), key=lambda item: (-item[1], item[0]))
    if dropped:
        lines.append("left out: " + ", ".join(f"{count:,} {reason}" for reason, count in dropped))
    damaged = result.account.notes.get("damaged_frames", 0) + result.account.notes.get("unreadable_batches", 0)
    if damaged:
        lines.append(f"the recording is damaged in {_count(damaged, 'place')}")
    return lines


def _manifest_of(reader: LogReader, source: Path) -> Manifest:
    manifest = reader.manifest
    if manifest is None:
        raise BusError(f"{source}: holds no recording yet")
    if manifest.topic == topics.CLEAN:
        raise BusError(f"{source}: is clean already; give the raw recording")
    if manifest.topic != topics.RAW:
        raise BusError(f"{source}: holds {manifest.topic}, not a recording")
    return manifest


def _read(reader: LogReader, pipeline: Pipeline, sorter: Sorter[Exchange]) -> None:
    # A recorder may go on writing as fast as this reads: what is there now is enough.
    size = os.stat(reader.path).st_size
    while reader.next_offset < size and (messages := reader.read(1)):
        message = messages[0]
        header: codec.Header | None = None
        try:
            header = codec.decode_header(message.data)
            if header.type is not RecordType.EXCHANGE:
                continue
            records = codec.decode(message.data, header).records
        except codec.CodecError as error:
            if error.reason == "future_version":
                raise BusError(f"{reader.path}: at {message.offset}: {error.detail}: upgrade livefire") from None
            pipeline.lose(header.count if header is not None else 0)
            continue
        for exchange in pipeline.sift(records):
            sorter.add(exchange, message.offset)
    if reader.corrupt_frames:
        pipeline.account.note("damaged_frames", reader.corrupt_frames)


def _write(
    part: Path, raw: Manifest, source: Path, pipeline: Pipeline, sorter: Sorter[Exchange], settings: CleanseSettings
) -> CleanseResult:
    now_ns = time.time_ns()
    manifest = msgspec.structs.replace(
        raw,
        topic=topics.CLEAN,
        partition="0",
        created_ns=now_ns,
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
        for batch, sources in _batches(pipeline, sorter, settings):
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
    pipeline: Pipeline, sorter: Sorter[Exchange], settings: CleanseSettings
) -> Iterator[tuple[list[Stamped], tuple[SourceRange, ...]]]:
    batch: list[Stamped] = []
    size = 0
    low = high = 0
    for _, _, offset, exchange in sorter:
        stamped = pipeline.stamp(exchange)
        low = min(low, offset) if batch else offset
        high = max(high, offset) if batch else offset
        batch.append(stamped)
        size += len(stamped.request.head) + len(stamped.request.body) + len(stamped.baseline.body) + 400
        if len(batch) >= settings.batch_records or size >= settings.batch_bytes:
            yield batch, (SourceRange(topics.RAW, "0", low, high + 1),)
            batch, size = [], 0
    if batch:
        yield batch, (SourceRange(topics.RAW, "0", low, high + 1),)


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}" + ("" if n == 1 else "s")
