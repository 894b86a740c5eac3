"""What a process that serves connections hands to its recorder: frames on a pipe, bounded, never waited for.

What does not fit is refused, and whoever offered it sheds that connection: traffic never waits for its recording.
"""

from __future__ import annotations

import asyncio
import os
import struct
from typing import Final

FRAME: Final = struct.Struct(">BIqI")  # kind, connection, unix ns, length of what follows
READY, FAILED, OPENED, FROM_CLIENT, FROM_SERVER, CLIENT_END, SERVER_END, RESET, SHED, TOTALS = range(10)
_WRITE_BYTES: Final = 1 << 20
_GATHER_S, _GATHER_BYTES = 0.02, 256 << 10


class HandOver:
    """Frames on their way to the recorder. Bounded; never blocks; a frame is taken whole or not at all."""

    def __init__(self, fd: int, max_bytes: int, loop: asyncio.AbstractEventLoop) -> None:
        self._fd = fd
        self._max = max_bytes
        self._loop = loop
        self._parts: list[bytes] = []
        self._rest = memoryview(b"")
        self._waiting = False  # for the pipe to take more
        self._scheduled = self._soon = False  # a flush, by the timer or in the next turn of the loop
        self.bytes = 0
        self.broken = False  # nobody reads any more

    def offer(self, kind: int, connection: int, now_ns: int, data: bytes = b"") -> bool:
        """False when there is no room for data. Frames without data are always taken: there are few a connection."""
        if self.broken or (data and self.bytes + len(data) > self._max):
            return False
        self._parts += (FRAME.pack(kind, connection, now_ns, len(data)), data) if data else (
            FRAME.pack(kind, connection, now_ns, 0),
        )  # fmt: skip
        self.bytes += FRAME.size + len(data)
        if not self._scheduled and not self._waiting:
            # Nobody is in a hurry there: one write, and one wake-up of the recorder, for what 20 ms bring.
            self._scheduled = True
            self._loop.call_later(_GATHER_S, self._flush)
        elif self.bytes >= _GATHER_BYTES and not self._soon and not self._waiting:
            self._soon = True
            self._loop.call_soon(self._flush)
        return True

    @property
    def has_room(self) -> bool:
        """Whether the reader has caught up."""
        return not self.broken and self.bytes < self._max // 2

    async def empty(self) -> None:
        """Until all is read, or nobody reads."""
        while self.bytes and not self.broken:
            await asyncio.sleep(0.005)

    def _flush(self) -> None:
        self._scheduled = self._soon = False
        try:
            while self._rest or self._parts:
                if not self._rest:
                    self._rest = memoryview(b"".join(self._parts))
                    self._parts.clear()
                written = os.write(self._fd, self._rest[:_WRITE_BYTES])
                self._rest = self._rest[written:]
                self.bytes -= written
        except BlockingIOError:
            if not self._waiting:
                self._waiting = True
                self._loop.add_writer(self._fd, self._flush)
            return
        except OSError:
            self.broken = True
            self._parts.clear()
            self._rest = memoryview(b"")
        if self._waiting:
            self._waiting = False
            self._loop.remove_writer(self._fd)
