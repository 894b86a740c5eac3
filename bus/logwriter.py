"""Writes one log file: the one writer of a partition."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Sequence
from pathlib import Path

from bus import frames, writeback
from bus.batchwriter import BatchWriter
from bus.frames import FRAME_BYTES, MAX_FRAME_BYTES
from bus.logreader import LogReader
from bus.ports import BusError, BusFull, BusHeld, BusWhole
from wire import codec
from wire.codec import RecordType
from wire.records import End, Manifest

#: The kernel would begin when seconds have passed, or memory is full of it: then who asks for the disk waits for all.
_BEGIN_EVERY = 8 << 20
_LARGE = 64 << 10  # bytes of a message that is not copied to be one write with its header
_LOOK_S = 0.05  # who only asks whether a file has a writer locks it for microseconds
_UNCOUNTED = (RecordType.MANIFEST, RecordType.END, RecordType.ACCOUNT)


class LogWriter(BatchWriter):
    """The one writer of a log file. The lock is the kernel's, so it ends with the process."""

    def __init__(self, path: Path | str, manifest: Manifest, *, sync: bool = False) -> None:
        """Make the file with its manifest, or open it at its end, cutting a torn frame off.

        `sync` calls fdatasync after each message. Raises BusError if the file has a writer, is whole
        already, belongs to another recording or run, or is not a Livefire file.
        """
        self.path = Path(path)
        self.manifest = manifest  # the file's own, when there is one
        self.cut_bytes = 0  # torn bytes that were cut off when the file was opened
        self.count = 0  # records in the file, its manifest and end mark aside
        self.first_ns = 0
        self.last_ns = 0
        self._sync = sync
        self._closed = False
        self._size = 0
        self._begun = 0  # up to here the kernel was asked to bring it to the disk
        self._salt = 0
        try:
            # Not blocking: opening a pipe that nobody reads would wait for ever.
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        except OSError as error:
            why = os.strerror(error.errno or 0).lower()
            if isinstance(error, FileNotFoundError) and not self.path.parent.is_dir():
                why = f"there is no folder {self.path.parent}"
            raise BusError(f"{path}: cannot be written: {why}") from None
        try:
            if not stat.S_ISREG(os.fstat(self._fd).st_mode):
                raise BusError(f"{path}: cannot be written: not a plain file")
            self._lock()
            self._open_end(manifest)
        except BaseException:
            self.close()
            raise

    def _lock(self) -> None:
        deadline = time.monotonic() + _LOOK_S
        while True:
            try:
                return fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if time.monotonic() >= deadline:
                    raise BusHeld(f"{self.path}: another process is writing this file") from None
                time.sleep(_LOOK_S / 10)

    def _open_end(self, manifest: Manifest) -> None:
        size = os.fstat(self._fd).st_size
        if size >= frames.FILE_BYTES:
            with LogReader(self.path) as reader:
                found = self._survey(reader)
                good, self._salt = reader.next_offset, reader.salt or 0
            if found:
                self.cut_bytes = size - good
                if self.cut_bytes:
                    os.ftruncate(self._fd, good)
                self._size = good
                return
        elif not frames.may_be_beginning(os.pread(self._fd, frames.FILE_BYTES, 0)):
            raise BusError(f"{self.path}: not a Livefire file; it is left as it is")
        self.cut_bytes = size
        os.ftruncate(self._fd, 0)
        # Header and manifest are one write: a file that has a header and no manifest is torn.
        data = codec.encode((manifest,), first_ns=manifest.created_ns, last_ns=manifest.created_ns)
        self._salt = frames.salt_of(data)
        start = frames.file_header(self._salt) + frames.frame_header(data, self._salt) + data
        self._append(0, start)
        self._size = len(start)

    def _survey(self, reader: LogReader) -> bool:
        """Read what is there, count it, and refuse what must not be continued. False when there is no frame yet."""
        found = False
        while messages := reader.read():
            found = True
            for message in messages:
                self._count(message.data)
                try:
                    codec.decode_header(message.data)
                except codec.CodecError as error:
                    if error.reason == "future_version":
                        raise BusError(f"{self.path}: {error.detail}; it is left as it is") from None
        if reader.ended:
            raise BusWhole(f"{self.path}: is whole already (it has an end mark); write to another file")
        mine = reader.manifest if found else None
        if mine is not None:
            if (mine.owner_id, mine.topic) != (self.manifest.owner_id, self.manifest.topic):
                raise BusError(
                    f"{self.path}: holds {mine.topic} of {mine.owner_id}, not {self.manifest.topic} of "
                    f"{self.manifest.owner_id}; write to another file"
                )
            self.manifest = mine
        return found or reader.corrupt_bytes > 0

    @property
    def next_offset(self) -> int:
        return self._size

    def write(self, data: bytes) -> int:
        """Append one message; its offset. Raises BusFull (nothing was kept; may be called again) or BusError."""
        if self._closed:
            raise BusError(f"{self.path}: is closed; nothing can be written to it")
        if len(data) > MAX_FRAME_BYTES:
            raise BusError(f"{self.path}: a message of {len(data)} bytes, at most {MAX_FRAME_BYTES} can be written")
        offset = self._size
        header = frames.frame_header(data, self._salt)
        if len(data) < _LARGE:
            self._append(offset, header + data)
        else:
            self._append(offset, header, data)
        self._size = end = offset + FRAME_BYTES + len(data)
        if end - self._begun >= _BEGIN_EVERY:
            writeback.begin(self._fd, self._begun, end - self._begun)
            self._begun = end
        self._count(data)
        return offset

    def write_many(self, messages: Sequence[bytes]) -> list[int]:
        """Append several: all, or (BusFull, BusError) none; their offsets."""
        start, counted = self._size, (self.count, self.first_ns, self.last_ns)
        try:
            return [self.write(data) for data in messages]
        except BusError:
            self._size = start
            self.count, self.first_ns, self.last_ns = counted
            if not self._closed:
                self._cut_back(start)
            raise

    def _append(self, offset: int, *parts: bytes) -> None:
        at = offset
        try:
            for part in parts:
                view = memoryview(part)
                while view:
                    written = os.pwrite(self._fd, view, at)
                    view = view[written:]
                    at += written
            if self._sync:
                os.fdatasync(self._fd)
        except OSError as error:
            self._cut_back(offset)
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise BusFull(f"{self.path}: no room on the disk") from None
            raise BusError(f"{self.path}: write failed: {os.strerror(error.errno or 0).lower()}") from None

    def _cut_back(self, size: int) -> None:
        try:
            os.ftruncate(self._fd, size)
        except OSError:
            self.close()  # a later write behind half a frame would be lost to readers

    @property
    def _name(self) -> str:
        return str(self.path)

    def _count(self, data: bytes) -> None:
        glance = codec.glance(data)
        if glance is None or glance.type in _UNCOUNTED:
            return
        self.count += glance.records
        if glance.first_ns:
            self.first_ns = min(self.first_ns or glance.first_ns, glance.first_ns)
        self.last_ns = max(self.last_ns, glance.last_ns)

    def end(self, end: End | None = None, *, reason: str = "done", sorted: bool = False, stopped_ns: int = 0) -> None:
        """Mark the file as whole, and close it. Without an `end`, one is made of what was counted."""
        owner, partition = self.manifest.owner_id, self.manifest.partition
        mark = end or End(owner, partition, self.count, self.first_ns, self.last_ns, reason, sorted, stopped_ns)
        self.write(codec.encode((mark,), first_ns=mark.first_ns, last_ns=mark.last_ns))
        self.close()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            os.close(self._fd)

    def __enter__(self) -> LogWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
