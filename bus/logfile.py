"""The embedded bus: append-only log files. A partition is a file; a recording is one such file.

    file  = "LIVEFIRE" u16 file version, u16 zero, u32 zero     (16 bytes)
    frame = "\xf1LFr" u32 length, u32 crc32 of the message, u32 crc32 of the 12 bytes before   (16 bytes)
            message (wire.codec)

The header of a frame has a checksum of its own: a damaged length is known to be damaged, and the reader looks
for the next frame rather than believing that the file ends there. A frame whose header is whole and whose
message is not all there yet is either being written or torn: a reader waits, a writer that opens the
file cuts it off.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from bus.ports import BusError, BusFull, Message
from wire import codec
from wire.account import Account, Increment
from wire.codec import RecordType
from wire.records import End, Manifest, Record, SourceRange

FILE_VERSION: Final = 1
FILE_MAGIC: Final = b"LIVEFIRE"
SYNC: Final = b"\xf1LFr"
MAX_FRAME_BYTES: Final = 128 << 20

_FILE = struct.Struct(">8sHHI")
_FRAME = struct.Struct(">4sIII")
_CHUNK = 1 << 20


def _file_header_problem(head: bytes, path: object) -> str | None:
    if len(head) < _FILE.size:
        return f"{path}: not a Livefire file: {len(head)} bytes are too few (was the copy cut off?)"
    magic, version, _, _ = _FILE.unpack(head)
    if magic != FILE_MAGIC:
        hint = " (a capture? use: livefire import)" if head[:4] in _CAPTURE_MAGICS else ""
        return f"{path}: not a Livefire file{hint}"
    if version > FILE_VERSION:
        return f"{path}: file version {version} is newer than this program reads ({FILE_VERSION}): upgrade livefire"
    return None


_CAPTURE_MAGICS: Final = (
    b"\xd4\xc3\xb2\xa1", b"\xa1\xb2\xc3\xd4", b"\x4d\x3c\xb2\xa1", b"\xa1\xb2\x3c\x4d", b"\x0a\x0d\x0d\x0a",
)  # fmt: skip


class LogReader:
    """Reads and tails one log file, or a stream of one (a pipe)."""

    def __init__(
        self,
        path: Path | str,
        *,
        topic: str = "",
        partition: str = "0",
        offset: int = 0,
        stream: BinaryIO | None = None,
    ) -> None:
        """Raises BusError for a file that is absent, foreign, or of a future version.

        An empty file, or one shorter than its header, may still be being made: it reads as nothing.
        """
        self.path = Path(path)
        self.topic, self.partition = topic, partition
        self.corrupt_frames = 0  # runs of damaged bytes that were skipped
        self.corrupt_bytes = 0
        self._stream = stream
        self._ended = False
        self._manifest: Manifest | None = None
        self._checked = False
        self._buffer = bytearray()
        self._at = 0  # file position of the buffer's first byte
        self._in_damage = False
        if stream is None:
            try:
                self._file: BinaryIO = open(self.path, "rb", buffering=0)  # noqa: SIM115
            except FileNotFoundError:
                raise BusError(f"{path}: no such file") from None
            except IsADirectoryError:
                raise BusError(f"{path}: is a folder, not a Livefire file") from None
            except PermissionError:
                raise BusError(f"{path}: permission denied (recordings are readable by their owner alone)") from None
        else:
            self._file = stream
        self._check_header()
        if offset:
            self.seek(offset)

    # -- reading

    def read(self, max_messages: int = 64) -> list[Message]:
        messages: list[Message] = []
        while len(messages) < max_messages:
            message = self._next()
            if message is None:
                break
            messages.append(message)
        return messages

    def _check_header(self) -> bool:
        if self._checked:
            return True
        while len(self._buffer) < _FILE.size:
            if not self._fill():
                break
        head = bytes(self._buffer[: _FILE.size])
        if len(head) < _FILE.size and FILE_MAGIC.startswith(head[:8]):
            return False
        problem = _file_header_problem(head, self.path)
        if problem:
            self.close()
            raise BusError(problem)
        self._checked = True
        del self._buffer[: _FILE.size]
        self._at = _FILE.size
        return True

    def _fill(self) -> bool:
        data = self._file.read(_CHUNK)
        if not data:
            return False
        self._buffer += data
        return True

    def _have(self, count: int) -> bool:
        while len(self._buffer) < count:
            if not self._fill():
                return False
        return True

    def _next(self) -> Message | None:
        if not self._check_header():
            return None
        while True:
            if not self._have(_FRAME.size):
                return None
            sync, length, crc, header_crc = _FRAME.unpack_from(self._buffer)
            if sync != SYNC or header_crc != zlib.crc32(self._buffer[:12]) or length > MAX_FRAME_BYTES:
                if not self._skip_damage():
                    return None
                continue
            if not self._have(_FRAME.size + length):
                return None
            data = bytes(self._buffer[_FRAME.size : _FRAME.size + length])
            offset = self._at
            if zlib.crc32(data) != crc:
                self._count_damage(_FRAME.size + length)
                self._drop(_FRAME.size + length)
                self._in_damage = False
                continue
            self._in_damage = False
            self._drop(_FRAME.size + length)
            self._note(data)
            return Message(self.topic, self.partition, offset, self._at, data)

    def _skip_damage(self) -> bool:
        """Drop bytes up to what may be the next frame. False when more bytes are needed to tell."""
        found = self._buffer.find(SYNC, 1)
        skip = found if found > 0 else len(self._buffer) - (len(SYNC) - 1)
        if skip > 0:
            self._count_damage(skip)
            self._drop(skip)
        return found > 0 or self._fill()

    def _count_damage(self, count: int) -> None:
        if not self._in_damage:
            self.corrupt_frames += 1
            self._in_damage = True
        self.corrupt_bytes += count

    def _drop(self, count: int) -> None:
        del self._buffer[:count]
        self._at += count

    def _note(self, data: bytes) -> None:
        kind = data[3] if len(data) > 3 else 0
        if kind == RecordType.END:
            self._ended = True
        elif kind == RecordType.MANIFEST and self._manifest is None:
            try:
                self._manifest = codec.decode(data).records[0]
            except codec.CodecError as error:
                raise BusError(f"{self.path}: {error.detail}") from None

    # -- where it stands

    @property
    def ended(self) -> bool:
        return self._ended

    @property
    def next_offset(self) -> int:
        return self._at

    @property
    def waiting_bytes(self) -> int:
        """Bytes at the end that are no whole frame: being written, or torn."""
        return len(self._buffer)

    @property
    def manifest(self) -> Manifest | None:
        if self._manifest is None and self._stream is None:
            with LogReader(self.path) as other:
                for message in other.read(1):
                    if message.data[3] == RecordType.MANIFEST:
                        self._manifest = other._manifest
        return self._manifest

    def seek(self, offset: int) -> None:
        if self._stream is not None:
            raise BusError(f"{self.path}: a stream cannot be read from the middle")
        self._buffer.clear()
        self._at = max(offset, _FILE.size) if self._checked else 0
        self._file.seek(self._at)
        self._ended = False

    def close(self) -> None:
        if self._stream is None:
            self._file.close()

    def __enter__(self) -> LogReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class LogWriter:
    """The one writer of a log file. The lock is the kernel's, so it ends with the process."""

    def __init__(self, path: Path | str, manifest: Manifest, *, sync: bool = False) -> None:
        """Make the file with its manifest, or open it at its end, cutting a torn frame off.

        `sync` calls fdatasync after each message. Raises BusError if the file has a writer, is whole
        already, or is not a Livefire file.
        """
        self.path = Path(path)
        self._sync = sync
        self._closed = False
        self.cut_bytes = 0  # torn bytes that were cut off when the file was opened
        self.count = 0  # records written by this writer
        self.first_ns = 0
        self.last_ns = 0
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise BusError(f"{path}: cannot be written: {os.strerror(error.errno or 0).lower()}") from None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._fd)
            raise BusError(f"{path}: another process is writing this file") from None
        try:
            self._open_end(manifest)
        except BaseException:
            self.close()
            raise

    def _open_end(self, manifest: Manifest) -> None:
        size = os.fstat(self._fd).st_size
        if size < _FILE.size:
            head = os.pread(self._fd, _FILE.size, 0)
            if not FILE_MAGIC.startswith(head[:8]) and head[:8] != FILE_MAGIC:
                raise BusError(f"{self.path}: not a Livefire file; it is left as it is")
            os.ftruncate(self._fd, 0)
            self._append(_FILE.pack(FILE_MAGIC, FILE_VERSION, 0, 0), 0)
            self._size = _FILE.size
            self.manifest = manifest
            self.write(codec.encode((manifest,), first_ns=manifest.created_ns, last_ns=manifest.created_ns))
            return
        with LogReader(self.path) as reader:
            good = reader.next_offset
            first: Manifest | None = None
            while messages := reader.read():
                good = messages[-1].next_offset
                first = first or reader.manifest
                for message in messages:
                    try:
                        header = codec.decode_header(message.data)
                    except codec.CodecError:
                        continue
                    if header.type not in (RecordType.MANIFEST, RecordType.END, RecordType.ACCOUNT):
                        self._counted(header.count, header.first_ns, header.last_ns)
            if reader.ended:
                raise BusError(f"{self.path}: is whole already (it has an end mark); write to another file")
        self.manifest = first or manifest
        self.cut_bytes = size - good
        if self.cut_bytes:
            os.ftruncate(self._fd, good)
        self._size = good

    @property
    def next_offset(self) -> int:
        return self._size

    def write(self, data: bytes) -> int:
        offset = self._size
        frame = _FRAME.pack(SYNC, len(data), zlib.crc32(data), 0)[:12]
        self._append(frame + struct.pack(">I", zlib.crc32(frame)) + data, offset)
        self._size = offset + _FRAME.size + len(data)
        return offset

    def _append(self, data: bytes, offset: int) -> None:
        view = memoryview(data)
        at = offset
        try:
            while view:
                written = os.pwrite(self._fd, view, at)
                view = view[written:]
                at += written
            if self._sync:
                os.fdatasync(self._fd)
        except OSError as error:
            os.ftruncate(self._fd, offset)
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise BusFull(f"{self.path}: no room on the disk") from None
            raise BusError(f"{self.path}: write failed: {os.strerror(error.errno or 0).lower()}") from None

    def write_records(
        self,
        records: Sequence[Record],
        type: RecordType | None = None,
        *,
        first_ns: int = 0,
        last_ns: int = 0,
        sources: tuple[SourceRange, ...] = (),
        increment: Increment | None = None,
    ) -> int:
        data = codec.encode(records, type, first_ns=first_ns, last_ns=last_ns, sources=sources, increment=increment)
        offset = self.write(data)
        self._counted(len(records), first_ns, last_ns)
        return offset

    def _counted(self, count: int, first_ns: int, last_ns: int) -> None:
        self.count += count
        if first_ns:
            self.first_ns = min(self.first_ns or first_ns, first_ns)
        self.last_ns = max(self.last_ns, last_ns)

    def end(self, end: End | None = None, *, reason: str = "done", sorted: bool = False) -> None:
        mark = end or End(
            self.manifest.owner_id, self.manifest.partition, self.count, self.first_ns, self.last_ns, reason, sorted
        )
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


class FileBus:
    """A folder of partitions: `<topic>-<partition>.lf`. `runs/<run_id>/` is one such folder."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def path(self, topic: str, partition: str) -> Path:
        return self.root / f"{topic}-{partition}.lf"

    def writer(self, topic: str, partition: str, manifest: Manifest) -> LogWriter:
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        return LogWriter(self.path(topic, partition), manifest)

    def reader(self, topic: str, partition: str, offset: int = 0) -> LogReader:
        return LogReader(self.path(topic, partition), topic=topic, partition=partition, offset=offset)

    def partitions(self, topic: str) -> list[str]:
        prefix = f"{topic}-"
        names = (entry.name for entry in os.scandir(self.root)) if self.root.is_dir() else ()
        return sorted(name[len(prefix) : -3] for name in names if name.startswith(prefix) and name.endswith(".lf"))


def account_of(path: Path) -> Account:
    """The account that a file carries: the sum of all increments in its batches."""
    with LogReader(path) as reader:
        return Account.total(header.increment for header in headers(reader))


def headers(reader: LogReader) -> Iterator[codec.Header]:
    """The headers of all batches that can be read now; messages that are no batch are passed over."""
    while messages := reader.read():
        for message in messages:
            try:
                yield codec.decode_header(message.data)
            except codec.CodecError:
                continue
