"""Records in the order of their times, in bounded memory.

Exchanges are recorded when they are complete, so they come out of order by the longest of them. What fits in
memory is sorted there; beyond that sorted runs are written as log files and merged as they are read.
"""

from __future__ import annotations

import contextlib
import heapq
import operator
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Generic, NamedTuple, TypeVar

import msgspec

from bus.logfile import LogReader, LogWriter
from wire import codec
from wire.records import Exchange, Manifest, Stamped

_BATCH_BYTES: Final = 1 << 20  # of a run: each run has one batch in memory while they are merged
_OVERHEAD: Final = 1500  # bytes of Python objects an exchange
_key = operator.itemgetter(0, 1, 2)
_tags = msgspec.msgpack.Decoder(list[tuple[int, int]])

T = TypeVar("T", Exchange, Stamped)


class Entry(NamedTuple, Generic[T]):
    """One record on its way: sorted by time, then by exchange id, then by tag."""

    at_ns: int
    exchange_id: bytes
    tag: int  # whatever the caller wants to know of it, such as the offset of its batch in the input
    record: T


class Sorter(Generic[T]):
    """Add records in any order; iterate as often as wanted. `folder` is where runs go, made when one is needed."""

    def __init__(self, memory_bytes: int, folder: Path, time_of: Callable[[T], int]) -> None:
        self._memory = memory_bytes
        self._folder = folder
        self._time_of: Callable[[T], int] = time_of
        self._held: list[Entry[T]] = []
        self._held_bytes = 0
        self._runs: list[Path] = []
        self._sorted = True
        self.count = 0
        self._clear()  # what one that was killed left would be taken for a part of these runs

    def add(self, record: T, tag: int) -> None:
        self._held.append(Entry(self._time_of(record), record.exchange_id, tag, record))
        self._sorted = False
        self.count += 1
        self._held_bytes += _bytes_of(record)
        if self._held_bytes >= self._memory:
            self._spill()

    def __iter__(self) -> Iterator[Entry[T]]:
        if not self._sorted:
            self._held.sort(key=_key)
            self._sorted = True
        if not self._runs:
            return iter(self._held)
        return heapq.merge(*(self._read(run) for run in self._runs), self._held, key=_key)

    def _spill(self) -> None:
        self._held.sort(key=_key)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        path = self._folder / f"run-{len(self._runs)}.lf"
        with LogWriter(path, Manifest("run", str(len(self._runs)), "run", 0, "livefire")) as writer:
            part: list[Entry[T]] = []
            size = 0
            for entry in self._held:
                part.append(entry)
                size += _bytes_of(entry.record)
                if size >= _BATCH_BYTES:
                    _write(writer, part)
                    part, size = [], 0
            if part:
                _write(writer, part)
        self._runs.append(path)
        self._held.clear()
        self._held_bytes = 0

    @staticmethod
    def _read(path: Path) -> Iterator[Entry[T]]:
        with LogReader(path) as reader:
            reader.read(1)  # the manifest
            while messages := reader.read(1):
                tags = _tags.decode(messages[0].data)
                batch = codec.decode(reader.read(1)[0].data)
                for (at_ns, tag), record in zip(tags, batch.records, strict=True):
                    yield Entry(at_ns, record.exchange_id, tag, record)

    def close(self) -> None:
        """Remove the runs."""
        self._clear()
        self._runs.clear()
        self._held.clear()

    def _clear(self) -> None:
        if not self._folder.is_dir():
            return
        for run in self._folder.glob("run-*.lf"):
            run.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # something else is in it, or it is not ours
            self._folder.rmdir()


def _write(writer: LogWriter, part: list[Entry[T]]) -> None:
    """Two messages: times and tags, then the records."""
    writer.write(msgspec.msgpack.encode([(entry.at_ns, entry.tag) for entry in part]))
    writer.write_records([entry.record for entry in part])


def _bytes_of(record: Exchange | Stamped) -> int:
    size = _OVERHEAD + len(record.request.head) + len(record.request.body)
    answer = record.response if isinstance(record, Exchange) else record.baseline
    if answer is not None:
        size += len(answer.head) + len(answer.body)
    return size
