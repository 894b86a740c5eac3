"""Where messages wait while the bus is away: a bounded folder of log files, one run of segments a stream.

    <folder>/<topic>-<stream>.<number>.lf    segments, removed once the bus has what is in them
    <folder>/<topic>-<stream>.<number>.lf.damaged    one of which nothing can be read, set aside
    <folder>/<topic>-<stream>.mark           how far the bus has got, and the lock of the stream's only recorder

The mark is overwritten in place: on a full disk it is what lets a segment go, so it must not need room itself. It
says where on the bus to look, after a kill, for what of the first segment has arrived; the messages themselves are
compared, so a mark that is old costs reading and nothing else. A new process begins a new segment.
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from isal.isal_zlib import crc32

from bus.logfile import FileBus, LogReader, LogWriter
from bus.ports import BusDamaged, BusError, BusFull, BusHeld
from wire import codec
from wire.codec import RecordType
from wire.records import Manifest

MIN_SPOOL_BYTES: Final = 1 << 20
_RETRY_NS: Final = 500_000_000  # the bus is asked again so often
_SEGMENT_BYTES: Final = 8 << 20
_CHUNK_BYTES: Final = 1 << 20  # handed to the bus at once
_CHUNK_MESSAGES: Final = 64
_NUMBER = re.compile(r"(.+)\.(\d{8})")
_MARK = struct.Struct(">7QI")


class Mark(NamedTuple):
    """What is on the bus of a stream: all segments before `segment`, and before `next` nothing of that one."""

    segment: int
    last: int = 0  # offset of the last message that was acknowledged
    next: int = 0  # the offset behind it
    writer_ns: int = 0  # when the process began that wrote it
    records: int = 0  # up to there
    first_ns: int = 0
    last_ns: int = 0

    def pack(self) -> bytes:
        return _MARK.pack(*self, crc32(_MARK.pack(*self, 0)))

    @classmethod
    def unpack(cls, data: bytes) -> Mark | None:
        """None for what is none, or damaged."""
        if len(data) != _MARK.size:
            return None
        *fields, check = _MARK.unpack(data)
        return cls(*fields) if check == crc32(_MARK.pack(*fields, 0)) else None


class Spool:
    """The folder, shared by the streams of one recorder: their room, and whether their bus is away."""

    def __init__(self, folder: Path, max_bytes: int, *, monotonic_ns: Callable[[], int]) -> None:
        """Raises BusError for a folder that cannot be made."""
        self.folder = folder
        self.max_bytes = max_bytes
        self.files = FileBus(folder)
        self._monotonic_ns = monotonic_ns
        self._retry_ns = 0
        self.away = False  # since the bus was last asked
        self.lanes: list[Lane] = []
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise BusError(f"{folder}: cannot be made: {os.strerror(error.errno or 0).lower()}") from None

    @property
    def used_bytes(self) -> int:
        return sum(lane.size for lane in self.lanes)

    @property
    def fill(self) -> float:
        """0 = empty, 1 = full, by what is allowed or by what the disk has, whichever is less."""
        used = self.used_bytes
        if not used:
            return 0.0
        found = os.statvfs(self.folder)
        return min(1.0, used / max(1, min(self.max_bytes, used + found.f_bavail * found.f_frsize)))

    def take_room(self, count: int) -> None:
        """Raises BusFull where so many bytes more are too many."""
        if self.used_bytes + count > self.max_bytes:
            raise BusFull(f"{self.folder}: the spool is full ({self.max_bytes >> 20} MB), and the bus is away")

    @property
    def resting(self) -> bool:
        """The bus was away a moment ago: it need not be asked yet."""
        return self.away and self._monotonic_ns() < self._retry_ns

    def went_away(self, began_ns: int) -> None:
        """`began_ns`: when the call began that failed. A bus that takes its time to fail is asked less often."""
        now_ns = self._monotonic_ns()
        self.away = True
        self._retry_ns = now_ns + max(_RETRY_NS, 2 * (now_ns - began_ns))

    def came_back(self) -> None:
        self.away = False


class Waiting(NamedTuple):
    """The messages at the head of a lane, of one process: the one that began at `manifest.created_ns`."""

    messages: list[bytes]
    manifest: Manifest
    ends: bool  # it is the end mark


class Lane:
    """The segments of one stream: appended at one end, read and removed at the other."""

    def __init__(self, spool: Spool, topic: str, partition: str, manifest: Manifest) -> None:
        """Finds what an earlier process left. `manifest.created_ns` names this process.

        Raises BusHeld where another process has it, BusError for files that are not of this recording.
        """
        self.spool = spool
        self.manifest = manifest
        self._topic, self._partition = topic, partition
        self._segment_bytes = min(_SEGMENT_BYTES, max(64 << 10, spool.max_bytes // 64))
        self._sizes: dict[int, int] = {}
        self._tail: LogWriter | None = None
        self._head: LogReader | None = None
        self._taken = self._peeked = 0  # offsets in the head: behind what `pop` let go, behind what `peek` gave
        self._peeked_damage = 0
        self.damaged = 0  # runs of bytes that could not be read, and so went with their segments
        self._mark_file = -1
        self._mark_path = path = spool.files.path(topic, partition).with_suffix(".mark")
        try:
            self._mark_file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._mark_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.mark = Mark.unpack(os.pread(self._mark_file, _MARK.size + 1, 0))
            if self.mark is None:
                os.pwrite(self._mark_file, bytes(_MARK.size), 0)  # takes its room
        except BlockingIOError:
            self.close()
            raise BusHeld(f"{path}: another recorder writes {partition} (each has a name of its own)") from None
        except OSError as error:
            self.close()
            raise BusError(f"{path}: cannot be written: {os.strerror(error.errno or 0).lower()}") from None
        try:
            self._find()
        except BaseException:
            self.close()
            raise
        self._number = max(self._sizes, default=(self.mark.segment - 1) if self.mark else -1) + 1
        spool.lanes.append(self)

    def _find(self) -> None:
        for name in self.spool.files.partitions(self._topic):
            match = _NUMBER.fullmatch(name)
            if match and match[1] == self._partition:
                self._sizes[int(match[2])] = self._path(int(match[2])).stat().st_size
        for number in sorted(self._sizes):
            if self.mark is not None and number < self.mark.segment:
                self._remove(number)
            else:
                self._check(number)

    def _check(self, number: int) -> None:
        try:
            with LogReader(self._path(number)) as reader:
                found = reader.manifest
        except BusDamaged:
            # A machine that lost its power may leave zeros of what it never wrote: what is whole goes on without it.
            path = self._path(number)
            path.replace(path.with_suffix(".lf.damaged"))
            del self._sizes[number]
            self.damaged += 1
            return
        if found is not None and found.owner_id != self.manifest.owner_id:
            raise BusError(f"{reader.path}: waits for {found.owner_id}, not for {self.manifest.owner_id}")

    def _path(self, number: int) -> Path:
        return self.spool.files.path(self._topic, f"{self._partition}.{number:08d}")

    @property
    def size(self) -> int:
        return sum(self._sizes.values())

    @property
    def waiting(self) -> bool:
        return bool(self._sizes)

    @property
    def next_segment(self) -> int:
        """The first one that is not on the bus."""
        return min(self._sizes, default=self._number)

    def append(self, data: bytes) -> None:
        """Raises BusFull: nothing of it was kept."""
        self.spool.take_room(len(data))
        tail = self._tail
        if tail is None or tail.next_offset >= self._segment_bytes:
            tail = self._begin_segment()
        tail.write(data)
        self._sizes[self._number - 1] = tail.next_offset

    def _begin_segment(self) -> LogWriter:
        path = self._path(self._number)
        try:
            tail = LogWriter(path, self.manifest)
        except BusFull:
            path.unlink(missing_ok=True)
            raise
        if self._tail is not None:
            self._tail.close()
        self._tail = tail
        self._sizes[self._number] = tail.next_offset
        self._number += 1
        return tail

    def peek(self, most: int = _CHUNK_MESSAGES) -> Waiting | None:
        """What comes next, at most so many messages; an end mark comes alone. None when nothing waits."""
        while self._sizes:
            number = min(self._sizes)
            if self._head is None:
                self._head, self._taken = LogReader(self._path(number)), 0
            messages: list[bytes] = []
            size, ends = 0, False
            self._head.seek(self._taken)
            self._peeked = self._taken
            damaged = self._head.corrupt_frames
            while size < _CHUNK_BYTES and len(messages) < most and not ends and (found := self._head.read(1)):
                data = found[0].data
                kind = glance.type if (glance := codec.glance(data)) is not None else 0
                if kind == RecordType.END and messages:
                    break
                ends = kind == RecordType.END
                if kind != RecordType.MANIFEST:
                    messages.append(data)
                    size += len(data)
                self._peeked = found[0].next_offset
            self._peeked_damage = self._head.corrupt_frames - damaged
            if messages:
                # Without a manifest it is not known whose they are: not this process's, whose books go on.
                manifest = self._head.manifest or msgspec.structs.replace(self.manifest, created_ns=1)
                return Waiting(messages, manifest, ends)
            self.damaged += self._peeked_damage
            self._drop_head(number)
        return None

    def pop(self) -> bool:
        """What `peek` gave last is on the bus. True when its segment is all there: `mark_at` may let it go."""
        assert self._head is not None
        self._taken = self._peeked
        self.damaged += self._peeked_damage
        self._head.seek(self._taken)
        damaged = self._head.corrupt_frames
        if self._head.read(1):
            return False
        self.damaged += self._head.corrupt_frames - damaged
        return True

    def mark_at(self, mark: Mark) -> None:
        """Everything before `mark.segment` is on the bus; those files are removed."""
        os.pwrite(self._mark_file, mark.pack(), 0)
        self.mark = mark
        for number in [number for number in self._sizes if number < mark.segment]:
            self._drop_head(number)

    def _drop_head(self, number: int) -> None:
        if self._head is not None:
            self._head.close()
            self._head = None
        self._taken = 0
        if number == self._number - 1 and self._tail is not None:
            self._tail.close()
            self._tail = None
        self._remove(number)

    def _remove(self, number: int) -> None:
        self._path(number).unlink(missing_ok=True)
        del self._sizes[number]

    def discard(self) -> None:
        """Remove all that waits: the bus has it."""
        for number in sorted(self._sizes):
            self._drop_head(number)

    def close(self, *, forget: bool = False) -> None:
        """What waits is left where it is. `forget`: the stream is whole, and its mark of no more use."""
        if forget and self._mark_file >= 0:
            self._mark_path.unlink(missing_ok=True)
        for file in (self._tail, self._head):
            if file is not None:
                file.close()
        self._tail = self._head = None
        if self._mark_file >= 0:
            os.close(self._mark_file)
            self._mark_file = -1
