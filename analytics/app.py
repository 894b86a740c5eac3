"""Aggregation put together: outcomes (and the live recording) -> panes -> store; and windows of what is stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

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
from wire.records import Beat, Exchange, Failure, Outcome, Pane, SourceRange

PANES_FILE: Final = "panes.db"


class Progress(msgspec.Struct):
    """Of all polls so far; `last_sent_ns` is of stress and canary shots alone, `failures` of stress."""

    outcomes: int = 0
    production: int = 0
    unreadable: int = 0
    last_sent_ns: int = 0
    shed: int = 0
    failures: Counter[Failure] = msgspec.field(default_factory=Counter)


class _Portion(NamedTuple):
    panes: list[Pane]
    sources: tuple[SourceRange, ...]
    fresh: Progress


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
        topic: str = topics.OUTCOMES,
        since_ns: int = 0,
    ) -> None:
        """`recording` and `production` are given together. The recording may still be growing, or not be there yet.

        With `topic` raw the bus is a recording's, and `production` makes outcomes of what it holds. What the bus was
        given before `since_ns` need not be read; 0 = all of it is.
        """
        self._bus, self._topic, self._since_ns = bus, topic, since_ns
        self._store = store
        self._settings = settings or AnalyticsSettings()
        self._recording = recording
        self._production = production
        self._readers: dict[str, Reader] = {}
        self._recording_reader: Reader | None = None
        self._taken: dict[tuple[str, str], int] = {}  # topic, partition -> up to where it is in the store
        self._kept: _Portion | None = None  # what the store did not take, as it was away
        self.progress = Progress()

    def poll(self) -> int:
        """Take in what is there now, at most `settings.batches` a partition; how many outcomes it was. Never waits.

        What is counted is in the store when this returns. After BusAway and StoreAway it may be called again.
        """
        before = self.progress.outcomes + self.progress.production
        self._take_all()
        return self.progress.outcomes + self.progress.production - before

    def _take_all(self) -> int:
        """How many messages were read: some hold nothing that is counted, and there may be more behind them."""
        if self._kept is not None:
            self._apply(self._kept)
        found: list[list[Message]] = []
        with self._bus.glance():
            for partition in self._bus.partitions(self._topic):
                if partition not in self._readers:
                    self._readers[partition] = self._bus.reader(self._topic, partition, self._begin(partition))
            try:
                for partition, reader in self._readers.items():
                    found.append(self._read(partition, reader))
                found.append(self._read_recording())
            finally:  # a bus that goes away in the middle takes nothing of what was read
                self._take([messages for messages in found if messages])
        return sum(map(len, found))

    def _read(self, partition: str, reader: Reader) -> list[Message]:
        return reader.read(self._settings.batches)

    def _where(self, topic: str, partition: str) -> tuple[str, str]:
        """Under which name the store holds a partition."""
        return topic, partition

    def _begin(self, partition: str) -> int:
        at = self._resume(self._topic, partition)
        return at or (self._bus.offset_at(self._topic, partition, self._since_ns) if self._since_ns else 0)

    def _resume(self, topic: str, partition: str) -> int:
        where = self._where(topic, partition)
        at = self._store.resume(*where)
        if at:
            self._taken[where] = at
        return at

    def production_since(self, since_ns: int) -> None:
        """Leave out what production began before: call it before the first poll, when the start is known."""
        if self._production is not None:
            self._production.since_ns = since_ns

    def drain(self) -> None:
        """Poll until there is nothing more."""
        while self._take_all():
            pass

    def _read_recording(self) -> list[Message]:
        if self._recording is None or self._production is None:
            return []
        if self._recording_reader is None:
            name = self._recording.name
            try:
                self._recording_reader = LogReader(
                    self._recording, topic=topics.RAW, partition=name, offset=self._resume(topics.RAW, name)
                )
            except BusError:
                if self._recording.exists():
                    raise
                return []
        return self._recording_reader.read(self._settings.batches)

    def _take(self, found: list[list[Message]]) -> None:
        """Messages of several partitions, one list each: all of them or none get into the store."""
        if not found:
            return
        builder = PaneBuilder()
        fresh = Progress()
        for messages in found:
            for message in messages:
                last_sent_ns = builder.add_all(self._outcomes_of(message, fresh))
                if message.topic != topics.RAW:  # of which the outcomes are production's
                    fresh.last_sent_ns = max(fresh.last_sent_ns, last_sent_ns)
        panes = builder.take()
        fresh.failures = builder.failures
        fresh.shed = sum(pane.shed for pane in panes)
        sources = []
        for messages in found:
            first, last = messages[0], messages[-1]
            # With the damaged bytes that were skipped before it: a gap would be where the next one goes on.
            where = self._where(first.topic, first.partition)
            sources.append(SourceRange(*where, self._taken.get(where, first.offset), last.next_offset))
            self._taken[where] = last.next_offset
        self._kept = _Portion(panes, tuple(sources), fresh)
        self._apply(self._kept)

    def _outcomes_of(self, message: Message, fresh: Progress) -> Sequence[Outcome]:
        try:
            header = codec.decode_header(message.data)
            if header.type is RecordType.OUTCOME:
                outcomes: tuple[Outcome, ...] = codec.decode(message.data, header).records
                fresh.outcomes += len(outcomes)
                return outcomes
            if header.type is RecordType.EXCHANGE and self._production is not None:
                exchanges: tuple[Exchange, ...] = codec.decode(message.data, header).records
                found = [o for e in exchanges if (o := self._production.outcome(e)) is not None]
                fresh.production += len(found)
                return found
        except codec.CodecError:
            fresh.unreadable += 1
        return []

    def _apply(self, portion: _Portion) -> None:
        """Raises StoreAway: then it is kept, and comes first at the next poll."""
        if self._store.apply(portion.panes, portion.sources):
            self._count(portion.fresh)
        self._kept = None

    def _count(self, fresh: Progress) -> None:
        so_far = self.progress
        so_far.outcomes += fresh.outcomes
        so_far.production += fresh.production
        so_far.unreadable += fresh.unreadable
        so_far.shed += fresh.shed
        so_far.failures += fresh.failures
        so_far.last_sent_ns = max(so_far.last_sent_ns, fresh.last_sent_ns)

    @property
    def began_ns(self) -> int | None:
        """When the first of the known partitions was made; None while there is none."""
        made = [m.created_ns for reader in self._readers.values() if (m := reader.manifest) is not None]
        return min(made, default=None)

    @property
    def settings_told(self) -> dict[str, Any]:
        """What the partitions' writers were set to, as far as they tell."""
        return next((m.settings for r in self._readers.values() if (m := r.manifest) is not None), {})

    @property
    def ended(self) -> bool:
        """All partitions that are known are whole, read, and in the store."""
        return bool(self._readers) and self._kept is None and all(reader.ended for reader in self._readers.values())

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
