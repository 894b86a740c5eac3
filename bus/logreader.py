"""Reads and tails one log file, or a stream of one.

A frame whose header is whole and whose message is not all there yet is either being written or torn: a reader
waits, a writer that opens the file cuts it off. So nothing incomplete is kept between two reads of a file: what
stands there may be something else by then.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO, Final

from isal.isal_zlib import crc32

from bus import frames
from bus.frames import FILE_BYTES, FRAME_BYTES, SYNC
from bus.ports import BusDamaged, BusError, BusGone, Message
from wire import codec
from wire.codec import RecordType
from wire.records import Manifest

_CHUNK: Final = 1 << 20
_READ_BYTES: Final = 8 << 20  # about how much one `read` hands out: 64 large messages would not be bounded memory
_MARKS: Final = frozenset((int(RecordType.END), int(RecordType.MANIFEST)))
_END_FRAME_BYTES: Final = 1 << 16  # more than the frame of an end mark takes


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

        An empty file, or one shorter than its header, may still be being made: it reads as nothing. With a
        `stream`, `path` is only its name in messages.
        """
        self.path = Path(path)
        self.topic, self.partition = topic, partition
        self.corrupt_frames = 0  # runs of damaged bytes that were skipped
        self.corrupt_bytes = 0
        self._stream = stream
        self._own = stream is None
        self._fd = -1
        self._salt: int | None = None  # None until the file header has been read
        self._buffer: bytes | bytearray = b"" if stream is None else bytearray()
        self._base = 0  # file position of the buffer's first byte
        self._at = 0  # file position of what is read next
        self._offset = offset  # where to begin, once the header has been read
        self._waiting = 0
        self._suspect = -1
        self._in_damage = False
        self._end_at: int | None = None  # position behind the end mark
        self._manifest: Manifest | None = None
        self._no_manifest = False
        if stream is None:
            self._open()
        elif offset:
            raise BusError(f"{path}: a stream cannot be read from the middle")
        try:
            if self._stream is None:
                self._begin()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        try:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise BusGone(f"{self.path}: no such file") from None
        except PermissionError:
            raise BusError(f"{self.path}: permission denied (recordings are readable by their owner alone)") from None
        except OSError as error:
            raise BusError(f"{self.path}: cannot be read: {os.strerror(error.errno or 0).lower()}") from None
        mode = os.fstat(self._fd).st_mode
        if stat.S_ISREG(mode):
            return
        if stat.S_ISDIR(mode):
            self.close()
            raise BusError(f"{self.path}: is a folder, not a Livefire file")
        if self._offset:
            self.close()
            raise BusError(f"{self.path}: a stream cannot be read from the middle")
        self._stream, self._buffer = os.fdopen(self._fd, "rb", buffering=0), bytearray()

    # -- reading

    def read(self, max_messages: int = 64) -> list[Message]:
        """What is there now: at most `max_messages` and about 8 MiB; [] when there is nothing new.

        A stream is waited for, until it has at least one message; there [] means that it is over. Raises
        BusError.
        """
        messages: list[Message] = []
        size = 0
        while len(messages) < max_messages and size < _READ_BYTES:
            message = self._next(wait=not messages)
            if message is None:
                break
            messages.append(message)
            size += len(message.data)
        return messages

    def _have(self, count: int, wait: bool = True) -> bool:
        """Whether `count` bytes from here on are in the buffer, having read them if they are there."""
        if self._base + len(self._buffer) - self._at >= count:
            return True
        if isinstance(self._buffer, bytearray):
            return wait and self._receive(count)
        try:
            self._buffer = os.pread(self._fd, max(_CHUNK, count), self._at)
        except OSError as error:
            raise BusError(f"{self.path}: cannot be read: {os.strerror(error.errno or 0).lower()}") from None
        self._base = self._at
        return len(self._buffer) >= count

    def _receive(self, count: int) -> bool:
        assert self._stream is not None and isinstance(self._buffer, bytearray)
        # read1 hands over what has come; read would wait for a whole chunk of a slow stream.
        receive = getattr(self._stream, "read1", self._stream.read)
        del self._buffer[: self._at - self._base]
        self._base = self._at
        while len(self._buffer) < count:
            try:
                data = receive(_CHUNK)
            except OSError as error:
                raise BusError(f"{self.path}: cannot be read: {os.strerror(error.errno or 0).lower()}") from None
            if not data:
                return False
            self._buffer += data
        return True

    def _peek(self, start: int, end: int) -> bytes:
        """The bytes from `start` up to `end`, counted from here, as far as they are in the buffer."""
        cursor = self._at - self._base
        return bytes(self._buffer[cursor + start : cursor + end])

    def _begin(self) -> bool:
        """Read the file header. False when it is not there yet. Raises BusError."""
        if self._salt is not None:
            return True
        self._have(FILE_BYTES)
        head = self._peek(0, FILE_BYTES)
        if frames.may_be_beginning(head):
            self._waiting = len(head)
            return False
        self._salt = frames.salt_in(head)
        if self._salt is None:
            self._salt = self._mended_salt(head)
            self._count_damage(FILE_BYTES)
            self._in_damage = False
        self._at = FILE_BYTES
        if self._offset:
            self.seek(self._offset)
        return True

    def _mended_salt(self, head: bytes) -> int:
        """The salt of a file whose header is damaged, from its first frame. Raises BusError if that is not whole."""
        if not frames.is_later_version(head) and self._have(FILE_BYTES + FRAME_BYTES):
            said = frames.unsalted_length_and_crc(self._peek(FILE_BYTES, FILE_BYTES + FRAME_BYTES))
            if said and self._have(FILE_BYTES + FRAME_BYTES + said[0]):
                message = self._peek(FILE_BYTES + FRAME_BYTES, FILE_BYTES + FRAME_BYTES + said[0])
                salt = frames.salt_of(message)
                if frames.frame_header(message, salt) == self._peek(FILE_BYTES, FILE_BYTES + FRAME_BYTES):
                    return salt
        kind = BusError if frames.is_later_version(head) else BusDamaged
        raise kind(f"{self.path}: {frames.problem_of(head)}")

    def _next(self, wait: bool = True) -> Message | None:
        cursor, buffer = self._at - self._base, self._buffer
        room = len(buffer) - cursor - FRAME_BYTES
        if room < 0 or self._salt is None:
            return self._next_slowly(wait)
        sync, length, crc, header_crc = frames.FRAME.unpack_from(buffer, cursor)
        body = cursor + FRAME_BYTES
        if length > room or sync != SYNC or crc32(buffer[cursor : cursor + 12], self._salt) != header_crc:
            return self._next_slowly(wait)
        data = bytes(buffer[body : body + length])
        return self._found(data) if crc32(data) == crc else self._next_slowly(wait)

    def _found(self, data: bytes) -> Message:
        offset = self._at
        self._at += FRAME_BYTES + len(data)
        self._in_damage = False
        self._waiting = 0
        if len(data) > 3 and data[3] in _MARKS:
            self._note(data)
        return Message(self.topic, self.partition, offset, self._at, data)

    def _next_slowly(self, wait: bool) -> Message | None:
        """The same where more must be read first, or something is wrong."""
        if not self._begin():
            return None
        while self._have(FRAME_BYTES, wait):
            assert self._salt is not None
            head = self._peek(0, FRAME_BYTES)
            said = frames.length_and_crc(head, self._salt)
            if said is None:
                if not self._stale():
                    self._skip_to_frame()
                continue
            length, crc = said
            whole = self._have(FRAME_BYTES + length, wait)
            if self._peek(0, FRAME_BYTES) != head:
                continue  # a writer has cut a torn frame here, and gone on
            if not whole:
                if self._holds_whole_frame():
                    self._skip_to_frame()
                    continue
                break
            data = self._peek(FRAME_BYTES, FRAME_BYTES + length)
            if crc32(data) != crc:
                if not self._stale():
                    self._skip_frame(length, wait)
                continue
            return self._found(data)
        self._waiting = self._base + len(self._buffer) - self._at
        return None

    # -- damage

    def _stale(self) -> bool:
        """True once a position: what looks damaged is read afresh, for a writer may have just cut and gone on."""
        if isinstance(self._buffer, bytearray) or self._suspect == self._at:
            return False
        self._suspect = self._at
        self._buffer = b""
        self._base = self._at
        if self._at == FILE_BYTES:  # a first frame that was torn is written anew together with the file header
            self._salt = frames.salt_in(os.pread(self._fd, FILE_BYTES, 0)) or self._salt
        return True

    def _skip_frame(self, length: int, wait: bool) -> None:
        """Pass over a frame whose message is damaged. Where bytes of it are lost its length misleads: then another
        frame begins inside it, or none where it ends."""
        end = FRAME_BYTES + length
        self._have(end + FRAME_BYTES, wait)
        here = self._at - self._base
        follows = self._buffer[here + end : here + end + FRAME_BYTES]
        misled = len(follows) == FRAME_BYTES and not self._is_frame(here + end)
        if misled or self._frame_inside(here + FRAME_BYTES, here + end):
            self._skip_to_frame()
            return
        self._in_damage = False
        self._count_damage(end)
        self._in_damage = False
        self._at += end

    def _is_frame(self, cursor: int) -> bool:
        assert self._salt is not None
        head = bytes(self._buffer[cursor : cursor + FRAME_BYTES])
        return len(head) == FRAME_BYTES and frames.length_and_crc(head, self._salt) is not None

    def _frame_inside(self, start: int, end: int) -> bool:
        found = self._buffer.find(SYNC, start, end)
        while found >= 0 and not self._is_frame(found):
            found = self._buffer.find(SYNC, found + 1, end)
        return found >= 0

    def _skip_to_frame(self) -> None:
        """Pass over bytes up to what is the next frame's header, or may be the beginning of it."""
        here = self._at - self._base
        found = self._buffer.find(SYNC, here + 1)
        while 0 <= found <= len(self._buffer) - FRAME_BYTES and not self._is_frame(found):
            found = self._buffer.find(SYNC, found + 1)
        if found < 0:
            found = max(len(self._buffer) - (FRAME_BYTES - 1), here + 1)
        self._count_damage(found - here)
        self._at = self._base + found

    def _holds_whole_frame(self) -> bool:
        """Whether a whole frame stands inside one that is not all there: then bytes of the file have been lost."""
        assert self._salt is not None
        found = self._buffer.find(SYNC, self._at - self._base + FRAME_BYTES)
        while found >= 0:
            head = bytes(self._buffer[found : found + FRAME_BYTES])
            said = frames.length_and_crc(head, self._salt) if len(head) == FRAME_BYTES else None
            if said and found + FRAME_BYTES + said[0] <= len(self._buffer):
                return True
            found = self._buffer.find(SYNC, found + 1)
        return False

    def _count_damage(self, count: int) -> None:
        if not self._in_damage:
            self.corrupt_frames += 1
            self._in_damage = True
        self.corrupt_bytes += count

    # -- where it stands

    def _note(self, data: bytes) -> None:
        glance = codec.glance(data)
        if glance is None:
            return
        if glance.type == RecordType.END:
            self._end_at = self._at
        elif glance.type == RecordType.MANIFEST and self._manifest is None:
            try:
                self._manifest = codec.decode(data).records[0]
            except (codec.CodecError, IndexError) as error:
                raise BusError(f"{self.path}: its manifest cannot be read: {error}") from None

    @property
    def salt(self) -> int | None:
        """What the checksums of this file's frame headers start from; None while there is no file header."""
        return self._salt

    @property
    def ended(self) -> bool:
        """True when it stands behind the end mark."""
        return self._end_at is not None and self._at >= self._end_at

    @property
    def next_offset(self) -> int:
        return self._at

    @property
    def waiting_bytes(self) -> int:
        """Bytes at the end that are no whole frame: being written, or torn. Known when `read` has given []."""
        return self._waiting

    @property
    def manifest(self) -> Manifest | None:
        """The first batch, wherever the reader stands; None until it can be read, or when it is damaged."""
        if self._manifest is None and self._stream is None and not self._no_manifest:
            with LogReader(self.path) as other:
                first = other.read(1)
                self._manifest = other._manifest
                self._no_manifest = bool(first) and self._manifest is None
        return self._manifest

    def seek(self, offset: int) -> None:
        """Go on from this offset, which a message gave (0 = the beginning). Raises BusError when it cannot be one."""
        if self._stream is not None:
            raise BusError(f"{self.path}: a stream cannot be read from the middle")
        if self._salt is None:
            self._offset = offset
            return
        size = os.fstat(self._fd).st_size
        if offset < 0 or offset > size:
            raise BusError(f"{self.path}: there is no offset {offset}, the file has {size} bytes: is it another file?")
        self._at = max(offset, FILE_BYTES)
        self._buffer = b""
        self._base = self._at
        self._waiting, self._suspect, self._in_damage = 0, -1, False
        if self._end_at is None and self._at == size:
            self._look_back(size)

    def _look_back(self, size: int) -> None:
        """Who resumes behind the end mark must learn that there is one: it will not come again."""
        assert self._salt is not None
        tail = os.pread(self._fd, min(size, _END_FRAME_BYTES), max(size - _END_FRAME_BYTES, 0))
        found = tail.rfind(SYNC)
        while found >= 0:
            head, data = tail[found : found + FRAME_BYTES], tail[found + FRAME_BYTES :]
            if len(head) == FRAME_BYTES and head == frames.frame_header(data, self._salt):
                glance = codec.glance(data)
                if glance is not None and glance.type == RecordType.END:
                    self._end_at = size
                return
            found = tail.rfind(SYNC, 0, found)

    def close(self) -> None:
        if not self._own:
            return
        if self._stream is not None:
            self._stream.close()
        elif self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def __del__(self) -> None:
        """As open files do: who is forgotten keeps no descriptor."""
        if getattr(self, "_own", False):
            self.close()

    def __enter__(self) -> LogReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
