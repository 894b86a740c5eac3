"""The embedded bus: append-only log files. A partition is a file; a recording is one such file.

The layout is in `bus.frames`, the reader in `bus.logreader`, the writer in `bus.logwriter`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from bus.frames import FILE_MAGIC, FILE_VERSION, MAX_FRAME_BYTES, SYNC
from bus.logreader import LogReader
from bus.logwriter import LogWriter
from bus.ports import BusError, BusGone, BusHeld, check_names, is_partition
from wire import codec
from wire.account import Account
from wire.codec import RecordType
from wire.records import Manifest

__all__ = [
    "FILE_MAGIC",
    "FILE_VERSION",
    "MAX_FRAME_BYTES",
    "SYNC",
    "FileBus",
    "LogReader",
    "LogWriter",
    "account_of",
    "headers",
    "resume_offsets",
]


class FileBus:
    """A folder of partitions: `<topic>-<partition>.lf`. `runs/<run_id>/` is one such folder.

    The first hyphen ends the topic: a topic has none, a partition may have some.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def path(self, topic: str, partition: str) -> Path:
        """Where the partition is. Raises BusError for names that would be files elsewhere, or of another topic."""
        check_names(topic, partition)
        return self.root / f"{topic}-{partition}.lf"

    def writer(self, topic: str, partition: str, manifest: Manifest) -> LogWriter:
        path = self.path(topic, partition)
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise BusError(f"{self.root}: cannot be made: {os.strerror(error.errno or 0).lower()}") from None
        return LogWriter(path, manifest)

    def reader(self, topic: str, partition: str, offset: int = 0) -> LogReader:
        return LogReader(self.path(topic, partition), topic=topic, partition=partition, offset=offset)

    def held(self, topic: str, partition: str) -> bool:
        """Whether the partition has a writer now."""
        try:
            with open(self.path(topic, partition), "rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        except OSError as error:
            raise _unusable(self.path(topic, partition), error) from None
        return False

    def discard(self, topic: str, partition: str) -> None:
        if self.held(topic, partition):
            raise BusHeld(f"{self.path(topic, partition)}: another process is writing this file")
        try:
            self.path(topic, partition).unlink(missing_ok=True)
        except OSError as error:
            raise _unusable(self.path(topic, partition), error) from None

    def offset_at(self, topic: str, partition: str, since_ns: int) -> int:
        """The first batch with a record of that time or later."""
        with self.reader(topic, partition) as reader:
            while messages := reader.read():
                for message in messages:
                    glance = codec.glance(message.data)
                    if glance is not None and glance.last_ns >= since_ns and glance.type != RecordType.MANIFEST:
                        return message.offset
            return reader.next_offset

    def glance(self) -> contextlib.AbstractContextManager[None]:
        """Files say at once what is there."""
        return contextlib.nullcontext()

    def whole(self, topic: str, partition: str) -> bool:
        try:
            with self.reader(topic, partition) as reader:
                while reader.read():
                    pass
                return reader.ended
        except BusGone:
            return False

    def spread(self, topic: str) -> int:
        """One: a file is read by one process."""
        return 1

    def close(self) -> None:
        """Nothing is kept open here; readers and writers have their own files."""

    def partitions(self, topic: str) -> list[str]:
        try:
            names = os.listdir(self.root)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise _unusable(self.root, error) from None
        found = (name[:-3].partition("-") for name in names if name.endswith(".lf"))
        return sorted(partition for of, _, partition in found if of == topic and is_partition(partition))


def _unusable(path: Path, error: OSError) -> BusError:
    return BusError(f"{path}: cannot be used: {os.strerror(error.errno or 0).lower()}")


def account_of(path: Path) -> Account:
    """The account that a file carries: the sum of all increments in its batches.

    What is damaged in the file was counted by nobody else, so it is noted: `damaged_frames`,
    `unreadable_batches`. Raises BusError, also for batches of a later format version.
    """
    with LogReader(path) as reader:
        unreadable = [0]
        account = Account.total(header.increment for header in _headers(reader, unreadable))
    for name, count in (("damaged_frames", reader.corrupt_frames), ("unreadable_batches", unreadable[0])):
        if count:
            account.note(name, count)
    return account


def headers(reader: LogReader) -> Iterator[codec.Header]:
    """The headers of all batches that can be read now; messages that are no batch are passed over.

    Raises BusError for a batch of a later format version: what it counts would silently be missing.
    """
    return _headers(reader, [0])


def _headers(reader: LogReader, unreadable: list[int]) -> Iterator[codec.Header]:
    while messages := reader.read():
        for message in messages:
            try:
                yield codec.decode_header(message.data)
            except codec.CodecError as error:
                if error.reason == "future_version":
                    raise BusError(f"{reader.path}: at {message.offset}: {error.detail}: upgrade livefire") from None
                unreadable[0] += 1


def resume_offsets(output: LogReader) -> dict[tuple[str, str], int]:
    """Where a stage that wrote this output has got to: (topic, partition) of its input -> offset to go on from.

    What a batch was made from is written in the same frame, so after a kill nothing is missed and nothing twice.
    """
    ends: dict[tuple[str, str], int] = {}
    for header in headers(output):
        for source in header.sources:
            key = (source.topic, source.partition)
            ends[key] = max(ends.get(key, 0), source.end)
    return ends
