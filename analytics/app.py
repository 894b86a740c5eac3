"""Aggregation put together: outcomes (and the live recording) -> panes -> store; and windows of what is stored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from analytics.panes import NS, PaneBuilder
from analytics.production import ProductionReader
from analytics.settings import AnalyticsSettings, seconds
from analytics.store_port import PaneWriter, StoreError
from analytics.store_sqlite import PaneStore, StoredPanes
from analytics.windows import Window, text_table, windows
from bus.logfile import FileBus, LogReader
from bus.ports import Bus, BusError, Message, Reader
from wire import codec, topics
from wire.codec import RecordType
from wire.records import Beat, Exchange, Outcome, SourceRange

PANES_FILE: Final = "panes.db"


class Progress(msgspec.Struct):
    """Of all polls so far; `last_sent_ns` is of stress and canary shots alone."""

    outcomes: int = 0
    production: int = 0
    unreadable: int = 0
    last_sent_ns: int = 0
    shed: int = 0


class Aggregator:
    """Tails a run's outcomes, and a live recording if given. It goes on where the store stands."""

    def __init__(
        self,
        bus: Bus,
        store: PaneWriter,
        settings: AnalyticsSettings | None = None,
        *,
        recording: Path | None = None,
        production: ProductionReader | None = None,
    ) -> None:
        """`recording` and `production` are given together. The recording may still be growing, or not be there yet."""
        self._bus = bus
        self._store = store
        self._settings = settings or AnalyticsSettings()
        self._recording = recording
        self._production = production
        self._readers: dict[str, Reader] = {}
        self._recording_reader: Reader | None = None
        self._taken: dict[tuple[str, str], int] = {}  # topic, partition -> up to where it is in the store
        self.progress = Progress()

    def poll(self) -> int:
        """Take in what is there now, at most `settings.batches` a partition; how many outcomes it was. Never waits.

        What is counted is in the store when this returns.
        """
        before = self.progress.outcomes + self.progress.production
        self._take_all()
        return self.progress.outcomes + self.progress.production - before

    def _take_all(self) -> int:
        """How many messages were read: some hold nothing that is counted, and there may be more behind them."""
        for partition in self._bus.partitions(topics.OUTCOMES):
            if partition not in self._readers:
                self._readers[partition] = self._bus.reader(
                    topics.OUTCOMES, partition, self._resume(topics.OUTCOMES, partition)
                )
        taken = sum(self._take(reader.read(self._settings.batches)) for reader in self._readers.values())
        return taken + self._take_recording()

    def _resume(self, topic: str, partition: str) -> int:
        at = self._store.resume(topic, partition)
        if at:
            self._taken[topic, partition] = at
        return at

    def production_since(self, since_ns: int) -> None:
        """Leave out what production began before: call it before the first poll, when the start is known."""
        if self._production is not None:
            self._production.since_ns = since_ns

    def drain(self) -> None:
        """Poll until there is nothing more."""
        while self._take_all():
            pass

    def _take_recording(self) -> int:
        if self._recording is None or self._production is None:
            return 0
        if self._recording_reader is None:
            name = self._recording.name
            try:
                self._recording_reader = LogReader(
                    self._recording, topic=topics.RAW, partition=name, offset=self._resume(topics.RAW, name)
                )
            except BusError:
                if self._recording.exists():
                    raise
                return 0
        return self._take(self._recording_reader.read(self._settings.batches))

    def _take(self, messages: list[Message]) -> int:
        if not messages:
            return 0
        builder = PaneBuilder()
        fresh = Progress()
        for message in messages:
            try:
                header = codec.decode_header(message.data)
                if header.type is RecordType.OUTCOME:
                    outcomes: list[Outcome] = list(codec.decode(message.data, header).records)
                    fresh.outcomes += len(outcomes)
                    fresh.last_sent_ns = max(fresh.last_sent_ns, max((o.sent_ns for o in outcomes), default=0))
                elif header.type is RecordType.EXCHANGE and self._production is not None:
                    exchanges: list[Exchange] = list(codec.decode(message.data, header).records)
                    outcomes = [o for e in exchanges if (o := self._production.outcome(e)) is not None]
                    fresh.production += len(outcomes)
                else:
                    continue
            except codec.CodecError:
                fresh.unreadable += 1
                continue
            builder.add_all(outcomes)
        self._apply(builder, messages, fresh)
        return len(messages)

    def _apply(self, builder: PaneBuilder, messages: list[Message], fresh: Progress) -> None:
        first, last = messages[0], messages[-1]
        panes = builder.take()
        fresh.shed = sum(pane.shed for pane in panes)
        # With the damaged bytes that were skipped before it: a gap would be where the next one goes on.
        where = (first.topic, first.partition)
        source = SourceRange(*where, self._taken.get(where, first.offset), last.next_offset)
        self._taken[where] = last.next_offset
        if self._store.apply(panes, (source,)):
            self._count(fresh)

    def _count(self, fresh: Progress) -> None:
        so_far = self.progress
        so_far.outcomes += fresh.outcomes
        so_far.production += fresh.production
        so_far.unreadable += fresh.unreadable
        so_far.shed += fresh.shed
        so_far.last_sent_ns = max(so_far.last_sent_ns, fresh.last_sent_ns)

    @property
    def ended(self) -> bool:
        """All partitions of outcomes that are known are whole and read."""
        return bool(self._readers) and all(reader.ended for reader in self._readers.values())

    def watermark_s(self, beats: dict[str, Beat]) -> int | None:
        """The second before which no pane of stress grows any more: what is open was due after it, or all has ended."""
        if self.ended:
            return 1 << 40
        if not beats:
            return None
        bound = min(beat.at_ns - beat.oldest_open_ns - max(beat.lag_ns, 0) for beat in beats.values())
        return (bound - self._settings.settle_ns) // NS

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()
        if self._recording_reader is not None:
            self._recording_reader.close()


def aggregate(run_dir: Path) -> Path:
    """Make or bring up to date a run's panes (`livefire windows` of a run that had no aggregator); the store's path.

    Raises BusError, StoreError. When another process is at it, its panes are taken as they are.
    """
    path = run_dir / PANES_FILE
    if not FileBus(run_dir).partitions(topics.OUTCOMES) and not path.exists():
        raise BusError(f"{run_dir}: no outcomes there (is it a run's folder?)")
    try:
        store = PaneStore(path)
    except StoreError:
        if path.exists():
            return path
        raise
    with store:
        aggregator = Aggregator(FileBus(run_dir), store)
        aggregator.drain()
        if aggregator.ended:
            store.set_note("watermark_s", str(1 << 40))
        aggregator.close()
    return path


def stored_windows(run_dir: Path, *, every: str = "5s", over: str | None = None) -> Iterator[Window]:
    """Windows of a run, oldest first. `over` is `every` unless given. Raises ConfigError, BusError, StoreError."""
    every_s = seconds(every, "every")
    over_s = seconds(over, "over") if over else every_s
    run_id = run_dir.resolve().name
    with StoredPanes(aggregate(run_dir)) as store:
        panes = store.panes(run_id)
        start = store.note("start_s")
        mark = store.note("watermark_s")
    start_s = int(start) if start else min((pane.second for pane in panes), default=0)
    yield from windows(
        panes, every_s=every_s, over_s=over_s, start_s=start_s, watermark_s=int(mark) if mark is not None else None
    )


def window_dicts(run_dir: Path, *, every: str = "5s", over: str | None = None) -> list[dict[str, Any]]:
    """What `livefire windows RUN --json` prints, one a line. Raises as `stored_windows`."""
    return [window.as_dict() for window in stored_windows(run_dir, every=every, over=over)]


__all__ = ["Aggregator", "Progress", "aggregate", "stored_windows", "text_table", "window_dicts"]
