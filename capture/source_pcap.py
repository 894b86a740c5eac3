"""Files of packets: pcap and pcapng, gzipped or not, or a stream of one on stdin.

A file that was cut off gives what is whole; what is not is counted and said in one line. Formats: pcap-savefile(5)
of libpcap, draft-ietf-opsawg-pcapng.
"""

from __future__ import annotations

import os
import select
import struct
import sys
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Final, Protocol

import xxhash

from capture.frames import PARTS, Frame, Sink
from capture.lines import Joined, Unpacked
from wire.config import ConfigError

CHUNK: Final = 128 << 10  # what is read is in the cache still when it is looked at
_MAX_PACKET: Final = 16 << 20  # beyond it a length is damage, not a packet
_MAX_BLOCK: Final = 64 << 20
_MAX_INTERFACES: Final = 65_536
_MAX_NS: Final = (1 << 63) - 1
#: Blocks of pcapng that hold no packets: sections, names, statistics, journals, secrets, custom ones.
_NO_PACKETS: Final = frozenset((0x0A0D0D0A, 4, 5, 7, 8, 9, 10, 0x0BAD, 0x40000BAD, 0x80000001))

_PCAP: Final = {
    b"\xa1\xb2\xc3\xd4": (">", 1000, 16), b"\xd4\xc3\xb2\xa1": ("<", 1000, 16),
    b"\xa1\xb2\x3c\x4d": (">", 1, 16), b"\x4d\x3c\xb2\xa1": ("<", 1, 16),
    b"\xa1\xb2\xcd\x34": (">", 1000, 24), b"\x34\xcd\xb2\xa1": ("<", 1000, 24),  # Kuznetsov's patch
}  # fmt: skip
#: What is no capture that is read here, by how it begins.
_HINTS: Final = {
    b"LIVE": "it is a Livefire file already: livefire show, cleanse",
    b"snoo": "Solaris snoop: editcap -F pcap makes a pcap of it",
    b"GMBU": "NetMon: editcap -F pcap makes a pcap of it",
    b"RTSS": "NetMon: editcap -F pcap makes a pcap of it",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: zstdcat FILE | livefire import -",
    b"\x04\x22\x4d\x18": "compressed by lz4: lz4cat FILE | livefire import -",
    b"\xfd7zX": "compressed by xz: xzcat FILE | livefire import -",
    b"BZh9": "compressed by bzip2: bzcat FILE | livefire import -",
    b"PK\x03\x04": "a zip archive: unzip -p FILE | livefire import -",
}
PORTION: Final = 1 << 20  # bytes: what is made of more would not be in the cache any more when it is written
_LARGE: Final = 1000  # bytes of a packet; smaller ones are not the midst of a large body
_PCAPNG: Final = b"\x0a\x0d\x0d\x0a"
_BYTE_ORDER: Final = {b"\x1a\x2b\x3c\x4d": ">", b"\x4d\x3c\x2b\x1a": "<"}


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes | None: ...

    def close(self) -> None: ...


class _Cut(Exception):
    """The input ended inside of something."""


class PcapSource:
    """One file, or stdin ("-"). `frames` may give None: nothing more is there now, and there may be later."""

    def __init__(self, path: Path | str, *, stream: _Readable | None = None, wait_s: float = 0.25) -> None:
        """Raises ConfigError for what is absent or no capture."""
        self.name = "stdin" if str(path) == "-" else str(path)
        self.faults: dict[str, int] = {}
        self.lines: list[str] = []  # what there is to say about the input, one line each
        self.packets = 0
        self.chunk = CHUNK  # bytes that are read at a time
        self._wait_s = wait_s
        self._poll = False
        self._poll_fd = -1
        self._plain = ""  # the byte order, where packets follow each other in the buffer as they are
        self._path = None if stream is not None or self.name == "stdin" else Path(path)
        self._resting = False
        self._begin(stream)

    def _begin(self, stream: _Readable | None = None) -> None:
        self._buffer = b""
        self._at = 0
        self._before = 0  # bytes before the buffer
        if stream is not None:
            self._file: _Readable = stream
        elif self._path is not None:
            self._file = _open(self._path)
        elif self.name == "stdin":
            self._poll_fd = os.dup(sys.stdin.fileno())
            self._file = os.fdopen(self._poll_fd, "rb", buffering=0)
            self._poll = True
        try:
            magic = self._peek(4)
            if magic[:2] == b"\x1f\x8b":
                rest: Any = self._file
                self._file = Unpacked(Joined(self._buffer, rest))
                self._buffer, self._poll = b"", False
                magic = self._peek(4)
        except _Cut:
            raise ConfigError(f"{self.name}: is empty: there is no capture in it") from None
        if magic not in _PCAP and magic != _PCAPNG:
            hint = _HINTS.get(magic, "pcap and pcapng are read, also gzipped")
            raise ConfigError(f"{self.name}: is not a capture ({hint})")
        self._magic = magic
        try:
            self._need(24 if magic in _PCAP else 12)
            order = _BYTE_ORDER.get(self._buffer[8:12]) if magic == _PCAPNG else None
            if order is not None and (size := struct.unpack_from(order + "I", self._buffer, 4)[0]) <= _MAX_BLOCK:
                self._need(size)
        except _Cut:
            raise ConfigError(f"{self.name}: is cut off in its header, after {len(self._buffer)} bytes") from None

    def begins_ns(self) -> int:
        """The time of its first packet, 0 where it has none or cannot be read twice; then it is shut until `frames`."""
        if self._path is None:
            return 0
        self._file.close()
        self._buffer, self._resting = b"", True
        probe = PcapSource(self._path)
        probe.chunk = 64 << 10
        frames = probe.frames()
        first = next(frames, None)
        frames.close()
        return first[0] if first is not None else 0

    # -- bytes

    def _fill(self) -> bool:
        try:
            data = self._file.read(self.chunk)
        except (EOFError, zlib.error, OSError) as error:
            self.lines.append(f"{self.name}: cannot be read on after byte {self._before + len(self._buffer)}: {error}")
            data = b""
        if not data:
            return False
        if self._at:
            self._before += self._at
            self._buffer = self._buffer[self._at :]
            self._at = 0
        self._buffer = self._buffer + data if self._buffer else data
        return True

    def _need(self, count: int) -> None:
        while len(self._buffer) - self._at < count:
            if not self._fill():
                raise _Cut

    def _peek(self, count: int) -> bytes:
        self._need(count)
        return self._buffer[self._at : self._at + count]

    def _take(self, count: int) -> bytes:
        self._need(count)
        data = self._buffer[self._at : self._at + count]
        self._at += count
        return data

    def _ready(self, count: int) -> bool:
        """Whether that much is there; False when stdin is silent for a while. Raises _Cut at the end of the input."""
        while len(self._buffer) - self._at < count:
            if self._poll and not select.select([self._poll_fd], [], [], self._wait_s)[0]:
                return False
            if not self._fill():
                raise _Cut
        return True

    # -- frames

    def frames(self) -> Generator[Frame | None, None, None]:
        if self._resting:
            self._resting = False
            self._begin()
        try:
            yield from self._pcapng() if self._magic == _PCAPNG else self._pcap()
        except _Cut:
            left = len(self._buffer) - self._at
            if left:
                self._fault(
                    "cut", f"was cut off: its last {left} bytes are no whole packet; {self.packets} packets were read"
                )
        finally:
            self._file.close()

    def read_into(self, sink: Sink, most: int) -> Iterator[int]:
        """Give all frames to `sink`, and say how many, after about `most` of them, or a MiB; 0: nothing is there now.

        What `frames` gives, without a step between: of a plain file those that are whole in the buffer."""
        count, begun = 0, 0
        for frame in self.frames():
            if frame is None:
                yield count
                count = 0
                continue
            sink.packet(*frame)
            count += 1
            if self._plain:
                count += self._read_plain(sink, most - count)
            place = self._before + self._at
            if count >= most or place - begun >= PORTION:
                yield count
                count, begun = 0, place
        if count:
            yield count

    def _read_plain(self, sink: Sink, most: int) -> int:
        """What follows in the buffer, up to anything that is not plain: that is read by who looks closely."""
        _, unit, header = _PCAP[self._magic]
        record = struct.Struct(self._plain + "IIII").unpack_from
        follows = struct.Struct(f"{self._plain}IIII{header - 16}x{PARTS}")
        buffer, at, count, before = self._buffer, self._at, 0, 0
        last = len(buffer) - header
        lane, other, run = sink.lane, sink.packet, sink.run
        second = second_ns = 0  # the second before: a product of that size is an object
        while count < most and at <= last:
            seconds: int
            fraction: int
            size: int
            wire_len: int
            seconds, fraction, size, wire_len = record(buffer, at)
            start = at + header
            at = start + size
            if size < 54 or wire_len < size or at > len(buffer):
                at = start - header
                break
            if seconds != second:
                second, second_ns = seconds, seconds * 1_000_000_000
            ts_ns = second_ns + fraction * unit
            if lane is None or not lane.frame(ts_ns, buffer, start, size, wire_len, ""):
                other(ts_ns, buffer[start:at], wire_len)
            elif size >= _LARGE:
                if size == before:  # two alike: there may be more
                    more, at = run(buffer, at, size, follows, unit, most - count - 1)
                    count += more
                before = size
            count += 1
        self._at = at
        self.packets += count
        return count

    def _fault(self, reason: str, text: str) -> None:
        self.faults[reason] = self.faults.get(reason, 0) + 1
        self.lines.append(f"{self.name}: {text}")

    def _damaged(self, what: str) -> None:
        at = self._before + self._at
        self._fault("damaged", f"is damaged at byte {at}: {what}; {self.packets} packets were read")

    def _pcap(self) -> Iterator[Frame | None]:
        order, unit, header = _PCAP[self._magic]
        linktype = struct.unpack(order + "I", self._take(24)[20:])[0] & 0xFFFF
        record = struct.Struct(order + "IIII").unpack_from
        if linktype == 1:
            self._plain = order
        while True:
            if len(self._buffer) - self._at < header:
                while not self._ready(header):
                    yield None
            seconds, fraction, size, wire_len = record(self._buffer, self._at)
            if not (seconds or fraction or size or wire_len):
                self._fault(
                    "cut", f"ends in zeros from byte {self._before + self._at}; {self.packets} packets were read"
                )
                return
            if size > _MAX_PACKET:
                self._damaged(f"a packet of {size} bytes")
                return
            start = self._at + header
            if len(self._buffer) < start + size:
                while not self._ready(header + size):
                    yield None
                start = self._at + header
            self._at = start + size
            self.packets += 1
            data = self._buffer[start : start + size]
            yield seconds * 1_000_000_000 + fraction * unit, data, max(wire_len, size), linktype, ""

    def _pcapng(self) -> Iterator[Frame | None]:
        order = "<"
        interfaces: list[_Interface] = []
        last_ns = 0
        while True:
            while not self._ready(12):
                yield None
            head = self._peek(12)
            if head[:4] == _PCAPNG:
                found = _BYTE_ORDER.get(head[8:12])
                if found is None:
                    self._fault(
                        "damaged", f"is damaged at byte {self._before + self._at}: a section without byte order"
                    )
                    return
                order, interfaces = found, []
            kind, size = struct.unpack_from(order + "II", head)
            if size < 12 or size > _MAX_BLOCK:
                self._damaged(f"a block of {size} bytes")
                return
            while not self._ready((size + 3) & ~3):
                yield None
            body = self._take((size + 3) & ~3)[8 : size - 4]
            frame: Frame | None = None
            try:
                if kind == 1:
                    if len(interfaces) < _MAX_INTERFACES:
                        interfaces.append(_Interface(order, body, len(interfaces)))
                elif kind == 6:
                    number, high, low, caught, wire_len = struct.unpack_from(order + "IIIII", body)
                    last_ns = interfaces[number].time_ns(high << 32 | low)
                    frame = (
                        last_ns,
                        body[20 : 20 + caught],
                        wire_len,
                        interfaces[number].linktype,
                        interfaces[number].name,
                    )
                elif kind == 2:
                    number, _, high, low, caught, wire_len = struct.unpack_from(order + "HHIIII", body)
                    last_ns = interfaces[number].time_ns(high << 32 | low)
                    frame = (
                        last_ns,
                        body[20 : 20 + caught],
                        wire_len,
                        interfaces[number].linktype,
                        interfaces[number].name,
                    )
                elif kind == 3:  # no time of its own
                    wire_len = struct.unpack_from(order + "I", body)[0]
                    caught = min(wire_len, interfaces[0].snaplen or wire_len)
                    frame = (last_ns, body[4 : 4 + caught], wire_len, interfaces[0].linktype, interfaces[0].name)
                elif kind not in _NO_PACKETS:
                    self.faults["unknown_block"] = self.faults.get("unknown_block", 0) + 1
            except (struct.error, IndexError):
                self.faults["bad_block"] = self.faults.get("bad_block", 0) + 1
                if self.faults["bad_block"] == 1:
                    self.lines.append(f"{self.name}: a block at byte {self._before + self._at - size} cannot be read")
                continue
            if frame is not None:
                self.packets += 1
                yield frame if frame[2] >= len(frame[1]) else (frame[0], frame[1], len(frame[1]), frame[3], frame[4])


class _Interface:
    __slots__ = ("divisor", "linktype", "name", "offset_ns", "snaplen")

    def __init__(self, order: str, body: bytes, number: int) -> None:
        self.linktype, _, self.snaplen = struct.unpack_from(order + "HHI", body)
        self.name = str(number)
        self.divisor = 1_000_000
        self.offset_ns = 0
        at = 8
        while at + 4 <= len(body):
            code, size = struct.unpack_from(order + "HH", body, at)
            value = body[at + 4 : at + 4 + size]
            at += 4 + ((size + 3) & ~3)
            if code == 0:
                break
            if code == 2:
                self.name = value.rstrip(b"\0").decode("utf-8", "replace") or self.name
            elif code == 9 and value:
                power = value[0] & 0x7F
                self.divisor = 1 << power if value[0] & 0x80 else 10**power
            elif code == 14 and size == 8:
                self.offset_ns = struct.unpack(order + "q", value)[0] * 1_000_000_000

    def time_ns(self, ticks: int) -> int:
        return max(0, min(self.offset_ns + ticks * 1_000_000_000 // self.divisor, _MAX_NS))


def _open(path: Path) -> _Readable:
    try:
        return open(path, "rb", buffering=0)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder, not a capture") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {os.strerror(error.errno or 0).lower()}") from None


def digest_of(path: Path) -> bytes:
    """XXH3-128 of a file's bytes: it names a file, and guards nothing. Raises ConfigError when it cannot be read."""
    digest = xxhash.xxh3_128()
    file = _open(path)
    try:
        while data := file.read(CHUNK):
            digest.update(data)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {os.strerror(error.errno or 0).lower()}") from None
    finally:
        file.close()
    return digest.digest()
