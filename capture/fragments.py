"""IP fragments to whole packets. Bounded: the oldest unfinished packet makes room."""

from __future__ import annotations

import struct
from typing import Final

from capture.segment import Fragment

MAX_PACKETS: Final = 256
MAX_PIECES: Final = 512
MAX_BYTES: Final = 8 << 20  # of all that wait
HOLD_NS: Final = 30_000_000_000  # RFC 791 asks for 15 s or more


class _Packet:
    __slots__ = ("bytes", "count", "header", "pieces", "size", "ts_ns")

    def __init__(self, ts_ns: int) -> None:
        self.ts_ns = ts_ns
        self.count = 0  # frames
        self.bytes = 0
        self.header = b""
        self.pieces: dict[int, bytes] = {}
        self.size = -1  # known with the last piece


class Fragments:
    """Frames that hold fragments are held here: `held` of them now; `dropped` is their growth since it was read."""

    def __init__(self) -> None:
        self._packets: dict[bytes, _Packet] = {}
        self.held = 0
        self._bytes = 0
        self._dropped = 0

    def add(self, piece: Fragment, ts_ns: int, frames: int = 1) -> tuple[bytes, int] | None:
        """The whole packet and the number of frames that it came in, when this piece completes it.

        The packet is an IP packet without options changed but for length and fragment fields. `frames`: how many the
        piece itself came in. Pieces that overlap with different bytes end the packet: what the receiver took cannot be
        known (RFC 5722).
        """
        packet = self._packets.get(piece.key)
        if packet is None:
            if len(self._packets) >= MAX_PACKETS:
                self._drop(next(iter(self._packets)))
            packet = self._packets[piece.key] = _Packet(ts_ns)
        packet.count += frames
        self.held += frames
        end = piece.offset + len(piece.data)
        if not piece.whole or packet.count > MAX_PIECES or end > 0xFFFF or self._differs(packet, piece):
            self._drop(piece.key)
            return None
        if piece.offset == 0:
            packet.header = piece.header
        if len(piece.data) > len(packet.pieces.get(piece.offset, b"")):
            grown = len(piece.data) - len(packet.pieces.get(piece.offset, b""))
            packet.pieces[piece.offset] = piece.data
            packet.bytes += grown
            self._bytes += grown
        if not piece.more:
            packet.size = end
        body = self._joined(packet)
        if body is None:
            while self._bytes > MAX_BYTES:
                self._drop(next(iter(self._packets)))
            return None
        del self._packets[piece.key]
        self.held -= packet.count
        self._bytes -= packet.bytes
        header = packet.header
        if piece.version == 4:
            header = header[:2] + struct.pack(">H", min(len(header) + len(body), 0xFFFF)) + header[4:]
        else:
            header = header[:4] + struct.pack(">H", min(len(body), 0xFFFF)) + header[6:]
        return header + body, packet.count

    @staticmethod
    def _differs(packet: _Packet, piece: Fragment) -> bool:
        start, data = piece.offset, piece.data
        end = start + len(data)
        if packet.size >= 0 and (end > packet.size or (not piece.more and end != packet.size)):
            return True
        for other, seen in packet.pieces.items():
            low, high = max(start, other), min(end, other + len(seen))
            if low < high and data[low - start : high - start] != seen[low - other : high - other]:
                return True
        return False

    @staticmethod
    def _joined(packet: _Packet) -> bytes | None:
        if packet.size < 0 or not packet.header or packet.bytes < packet.size:
            return None
        body = bytearray()
        for offset in sorted(packet.pieces):
            if offset > len(body):
                return None
            body += packet.pieces[offset][len(body) - offset :]
        return bytes(body[: packet.size]) if len(body) >= packet.size else None

    def expire(self, now_ns: int) -> None:
        for key in [key for key, packet in self._packets.items() if now_ns - packet.ts_ns > HOLD_NS]:
            self._drop(key)

    def finish(self) -> None:
        for key in list(self._packets):
            self._drop(key)

    def _drop(self, key: bytes) -> None:
        packet = self._packets.pop(key)
        self.held -= packet.count
        self._bytes -= packet.bytes
        self._dropped += packet.count

    def take_dropped(self) -> int:
        """How many frames were given up since the last call."""
        dropped, self._dropped = self._dropped, 0
        return dropped
