"""Bytes and lines of files that may be gzipped, with a bound on what one line takes."""

from __future__ import annotations

import contextlib
import os
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final, cast

from wire.config import ConfigError

MAX_LINE: Final = 1 << 18
BOM: Final = b"\xef\xbb\xbf"  # editors put it in front of what they save as UTF-8
_GZIP: Final = b"\x1f\x8b"
_WITH_HEADER: Final = 31  # zlib's word for a stream in gzip's wrapping
_PACKED: Final = 1 << 16


class Joined:
    """Bytes that were read already, before the rest of a file."""

    def __init__(self, first: bytes, rest: IO[bytes]) -> None:
        self._first = first
        self._rest = rest

    def read(self, size: int) -> bytes:
        if self._first:
            data = self._first[:size]
            self._first = self._first[len(data) :]
            return data
        return self._rest.read(size) or b""

    def close(self) -> None:
        self._rest.close()


class Unpacked:
    """A gzip file, of one member or several. Unlike `gzip.GzipFile` it gives all that is whole before it raises."""

    def __init__(self, raw: IO[bytes] | Joined) -> None:
        self._raw = raw
        self._inflate = zlib.decompressobj(_WITH_HEADER)
        self._packed = b""  # read, and not yet unpacked
        self._error = ""
        self._given = 0

    def read(self, size: int) -> bytes:
        """As many bytes as asked for, fewer at the end. Raises EOFError where it is cut off or damaged."""
        if self._error:
            raise EOFError(f"at byte {self._given} of what is packed in it: {self._error}")
        parts: list[bytes] = []
        room = size
        while room and not self._error:
            part = self._some(room)
            if part is None:
                break
            parts.append(part)
            room -= len(part)
        self._given += size - room
        return b"".join(parts) or (self.read(size) if self._error else b"")

    def _some(self, most: int) -> bytes | None:
        """None at the end."""
        if self._inflate.eof:
            rest = (self._inflate.unused_data or self._raw.read(_PACKED)).lstrip(b"\0")  # some tools fill up so
            if not rest:
                return None
            self._inflate, self._packed = zlib.decompressobj(_WITH_HEADER), rest
        packed = self._packed or self._raw.read(_PACKED)
        if not packed:
            self._error = "it is cut off"
            return None
        before = self._inflate.copy()
        try:
            found = self._inflate.decompress(packed, most)
        except zlib.error:
            found, self._error = _up_to_damage(before, packed, most), "it is damaged"
        self._packed = self._inflate.unconsumed_tail
        return found

    def close(self) -> None:
        self._raw.close()


def _up_to_damage(inflate: zlib._Decompress, packed: bytes, most: int) -> bytes:
    """What can be unpacked before the byte that cannot."""
    found = bytearray()
    with contextlib.suppress(zlib.error):
        for at in range(len(packed)):
            found += inflate.decompress(packed[at : at + 1])
            if len(found) >= most:
                break
    return bytes(found[:most])


class Input:
    """One file, or stdin ("-"), opened for reading; unpacked where it is gzipped.

    Raises ConfigError for what cannot be opened. What is damaged further on ends it, with a line in `said`.
    """

    def __init__(self, path: Path | str) -> None:
        self.name = "stdin" if str(path) == "-" else str(path)
        self.said: list[str] = []
        self.cut = False  # it ended inside of its packing
        try:
            raw = cast(IO[bytes], sys.stdin.buffer) if self.name == "stdin" else open(path, "rb")  # noqa: SIM115
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such file{_chunks_of(Path(path))}") from None
        except IsADirectoryError:
            raise ConfigError(f"{path}: is a folder; name the files in it") from None
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {os.strerror(error.errno or 0).lower()}") from None
        try:
            first = raw.peek(2)[:2]  # type: ignore[attr-defined]
        except OSError as error:
            raw.close()
            raise ConfigError(f"{path}: cannot be read: {os.strerror(error.errno or 0).lower()}") from None
        self._file = Unpacked(raw) if first == _GZIP else raw

    def read(self, size: int) -> bytes:
        """At most `size` bytes; b"" at the end, also where it is damaged."""
        if self.cut:
            return b""
        try:
            return self._file.read(size)
        except (EOFError, OSError) as error:
            self.cut = True
            self.said.append(f"{self.name}: cannot be read on: {str(error).lower()}; what was before it was read")
            return b""

    def close(self) -> None:
        self._file.close()

    def lines(self) -> Iterator[tuple[int, bytes, bool]]:
        """(number from 1, line without its end, whether it is whole). Of a longer one than MAX_LINE its begin."""
        buffer, number, over = b"", 0, False
        first = self.read(1 << 18).removeprefix(BOM)
        while chunk := first or self.read(1 << 18):
            first = b""
            parts = (buffer + chunk).split(b"\n") if buffer else chunk.split(b"\n")
            buffer = parts.pop()
            for part in parts:
                number += 1
                if over:
                    over = False  # the rest of one that was told of already
                    number -= 1
                    continue
                yield number, part[:MAX_LINE].removesuffix(b"\r"), len(part) <= MAX_LINE
            if len(buffer) > MAX_LINE:
                if not over:
                    number += 1
                    yield number, buffer[:MAX_LINE], False
                over, buffer = True, b""
        if buffer and not over:
            yield number + 1, buffer.removesuffix(b"\r"), True


def _chunks_of(path: Path) -> str:
    """A hint where `x.gor` is not there, but `x_0.gor` is."""
    found = next(iter(sorted(path.parent.glob(f"{path.name.split('.')[0]}_*"))), None) if path.parent.is_dir() else None
    return f" (there is {found.name}: give all of its kind)" if found is not None else ""
