"""Exchanges in the order of their requests, in bounded memory.

Exchanges are recorded when they are complete, so they come out of order by the longest of them. What fits in
memory is sorted there; beyond that sorted runs are written as log files and merged as they are read.
"""

from __future__ import annotations

import heapq
import operator
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from bus.logfile import LogReader, LogWriter
from cleanse.rules.unreplayable import started_ns
from wire import codec
from wire.records import Exchange, Manifest

Entry = tuple[int, bytes, int, Exchange]  # start, exchange id, offset of its batch in the input, exchange

_BATCH_BYTES: Final = 1 << 20  # of a run: each run has one batch in memory while they are merged
_OVERHEAD: Final = 1500  # bytes of Python objects an exchange
_key = operator.itemgetter(0, 1, 2)


class Sorter:
    """Add exchanges in any order; iterate as often as wanted. `folder` is where runs go, made when one is needed."""

    def __init__(self, memory_bytes: int, folder: Path) -> None:
        self._memory = memory_bytes
        self._folder = folder
        self._held: list[Entry] = []
        self._held_bytes = 0
        self._runs: list[Path] = []
        self._sorted = True
        self.count = 0

    def add(self, exchange: Exchange, input_offset: int) -> None:
        self._held.append((started_ns(exchange), exchange.exchange_id, input_offset, exchange))
        self._sorted = False
        self.count += 1
        self._held_bytes += _bytes_of(exchange)
        if self._held_bytes >= self._memory:
            self._spill()

    def __iter__(self) -> Iterator[Entry]:
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
        with LogWriter(path, Manifest("raw", str(len(self._runs)), "run", 0, "cleanse")) as writer:
            part: list[Exchange] = []
            size = 0
            for _, _, offset, exchange in self._held:
                # The offset in the input stands before the host while it waits.
                part.append(msgspec.structs.replace(exchange, host=f"{offset}\0{exchange.host}"))
                size += _bytes_of(exchange)
                if size >= _BATCH_BYTES:
                    writer.write_records(part)
                    part, size = [], 0
            if part:
                writer.write_records(part)
        self._runs.append(path)
        self._held.clear()
        self._held_bytes = 0

    @staticmethod
    def _read(path: Path) -> Iterator[Entry]:
        with LogReader(path) as reader:
            while messages := reader.read(1):
                batch = codec.decode(messages[0].data)
                for record in batch.records:
                    if isinstance(record, Exchange):
                        offset, _, host = record.host.partition("\0")
                        yield (
                            started_ns(record),
                            record.exchange_id,
                            int(offset),
                            msgspec.structs.replace(record, host=host),
                        )

    def close(self) -> None:
        """Remove the runs."""
        for run in self._runs:
            run.unlink(missing_ok=True)
        if self._runs:
            self._folder.rmdir()
        self._runs.clear()
        self._held.clear()


def _bytes_of(exchange: Exchange) -> int:
    size = _OVERHEAD + len(exchange.request.head) + len(exchange.request.body)
    if exchange.response is not None:
        size += len(exchange.response.head) + len(exchange.response.body)
    return size
