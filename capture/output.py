"""Exchanges to a recording: batches with the growth of the account, then the end mark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

import msgspec

from bus.logwriter import LogWriter
from bus.ports import BusError
from capture.ready import Ready
from capture.settings import BUS_BATCH_BYTES, FILE_BATCH_BYTES, CaptureSettings
from wire import topics
from wire.account import Account, Increment
from wire.codec import RecordType
from wire.records import End, Manifest, Record

WRITER: Final = "livefire capture 0.1.0"
_MIN_BATCH_BYTES: Final = 64 << 10


class Writer(Protocol):
    """What is needed of a bus writer; see `bus.ports`."""

    @property
    def next_offset(self) -> int: ...

    def write_records(
        self,
        records: Sequence[Record],
        type: RecordType | None = None,
        *,
        first_ns: int = 0,
        last_ns: int = 0,
        increment: Increment | None = None,
    ) -> int: ...

    def end(self, end: End | None = None, *, reason: str = "done", stopped_ns: int = 0) -> None: ...

    def close(self) -> None: ...


class Maker(Protocol):
    """Where exchanges come from: `Assembler`, of packets and streams, or `Imported`, of other tools' files."""

    ready: Ready

    @property
    def account(self) -> Account: ...

    def note_masked(self) -> None: ...

    def close(self) -> None:
        """What is open or waits is ready."""


class Output:
    """The writer of one recording.

    A batch and the counts that it belongs to are one frame: a killed process leaves both or neither.
    """

    def __init__(self, writer: Writer, settings: CaptureSettings, *, bus: bool = False) -> None:
        self._writer = writer
        self._batch_bytes = settings.batch_bytes or (BUS_BATCH_BYTES if bus else FILE_BATCH_BYTES)
        self._batch_ns = settings.batch_ns
        self._written_ns = 0
        self._assembler: Maker | None = None
        self.written_exchanges = 0

    @classmethod
    def open(
        cls,
        to: Path,
        recording_id: str,
        settings: CaptureSettings,
        *,
        created_ns: int,
        host: str = "",
        inputs: tuple[str, ...] = (),
        masked: bool,
        scale: float = 1.0,
    ) -> Output:
        """Raises BusError when the file cannot be written, is whole already, or has a writer."""
        manifest = Manifest(
            topic=topics.RAW,
            partition="0",
            owner_id=recording_id,
            created_ns=created_ns,
            writer=WRITER,
            hosts=(host,) if host else (),
            scale=scale,
            settings=msgspec.to_builtins(settings),
            inputs=inputs,
            masked=masked,
        )
        return cls(LogWriter(to, manifest), settings)

    @property
    def written_bytes(self) -> int:
        return self._writer.next_offset

    def pump(self, assembler: Maker, now_ns: int) -> None:
        """Write what is ready, when it is enough or late enough. Raises BusFull, BusError."""
        self._assembler = assembler
        ready = assembler.ready
        if not self._written_ns:
            self._written_ns = now_ns
        if ready.memory_bytes < self._batch_bytes and now_ns - self._written_ns < self._batch_ns:
            return
        self._written_ns = now_ns
        self._write(assembler)
        while ready.memory_bytes >= self._batch_bytes:
            self._write(assembler)

    def _write(self, assembler: Maker) -> None:
        """One batch: exchanges, and the growth of the account."""
        ready = assembler.ready
        exchanges = ready.take(max(self._batch_bytes, _MIN_BATCH_BYTES))
        assembler.note_masked()
        account = assembler.account
        grown = account.take()
        if not exchanges and not _grew(grown):
            return
        times = [e.request_start_ns or e.response_start_ns for e in exchanges]
        try:
            self._writer.write_records(
                exchanges,
                RecordType.EXCHANGE if exchanges else RecordType.ACCOUNT,
                first_ns=min(times, default=0),
                last_ns=max(times, default=0),
                increment=grown,
            )
        except BusError:
            account.put_back(grown)
            ready.put_back()
            raise
        self.written_exchanges += len(exchanges)

    def shed(self, assembler: Maker | None = None) -> int:
        """Give up what waits, after BusFull; the next batch's account says so. How many exchanges it was."""
        whose = assembler or self._assembler
        return whose.ready.shed("no_room") if whose is not None else 0

    def end(self, assembler: Maker, reason: str = "done", *, stopped_ns: int = 0) -> None:
        """Everything that is open ends here. `stopped_ns`: until when a live recording looked, unix time.

        Raises BusFull: room may be made, or `shed`, and `end` called again."""
        self._assembler = assembler
        assembler.close()
        while len(assembler.ready):
            self._write(assembler)
        self._write(assembler)
        self._writer.end(reason=reason, stopped_ns=stopped_ns)
        self._writer.close()

    def close(self) -> None:
        """Without an end mark: as a killed process leaves it."""
        self._writer.close()


def _grew(increment: Increment) -> bool:
    return bool(increment.notes) or any(
        ledger.seen or ledger.emitted or ledger.drops or ledger.intentional for ledger in increment.ledgers.values()
    )
