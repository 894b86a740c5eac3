"""Writing off the packet path: a bounded queue, and a thread that compresses and writes what is in it.

Why a thread and not a process: what takes time here, zstd and the disk, runs without the interpreter's lock, so
the loop that reads packets loses some 20 us a batch, four batches a second, which the ring is there to
bridge. A process would cost a second copy of every recorded byte, a second interpreter, and after a kill a
writer that is still holding the file. Records are encoded on the caller's side (0.3 us an exchange).

A disk that is full or stalls fills the queue; then `write` raises BusFull and the caller sheds, counted. A batch is
in the file whole with the counts of what is in it, or not at all: a kill at any moment leaves a file that balances.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from bus.batchwriter import BatchWriter
from bus.ports import BusError, BusFull
from wire import codec
from wire.account import Increment
from wire.codec import RecordType
from wire.records import End

LAST_IS_LOST: Final = ": what came last is not in the file"
_RETRY_S = 0.1  # a full disk is tried again so often
_STOP_S = 10.0  # for the thread, which may be waiting for the disk


class Target(Protocol):
    """Where the thread writes: a log file, or the streams of a bus."""

    @property
    def path(self) -> Path | str:
        """Its name, for the user."""

    @property
    def next_offset(self) -> int: ...

    def write(self, data: bytes) -> int:
        """Raises BusFull: the same message comes again."""

    def end(
        self, end: End | None = None, *, reason: str = "done", sorted: bool = False, stopped_ns: int = 0
    ) -> None: ...

    def close(self) -> None: ...


class QueuedWriter(BatchWriter):
    """The caller's side is one thread. Holds at most `max_bytes`, and nothing that is older than `buffer_ns`
    when more comes."""

    _compress = False  # the thread does

    def __init__(
        self,
        log: Target,
        *,
        buffer_ns: int,
        max_bytes: int = 128 << 20,
        monotonic_ns: Callable[[], int],
        tick: Callable[[], None] | None = None,
    ) -> None:
        """`tick` is called by the thread, between messages and at least every 100 ms."""
        self._log = log
        self._tick = tick
        self._buffer_ns = buffer_ns
        self._max_bytes = max_bytes
        self._monotonic_ns = monotonic_ns
        self._queue: queue.SimpleQueue[tuple[int, bytes] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting_bytes = 0
        self._oldest_ns = 0  # when the batch being written came; 0 = none
        self._failure: BusError | None = None
        self._full = False  # the last attempt found no room on the disk
        self._give_up = threading.Event()
        self.lost_batches = 0  # queued, and given up at the end for want of room
        self.lost_exchanges = 0  # in them
        self.lost: list[Increment] = []  # what they would have added to the account
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    @property
    def next_offset(self) -> int:
        """Where the file ends now; what is queued comes behind it."""
        return self._log.next_offset

    @property
    def waiting_bytes(self) -> int:
        return self._waiting_bytes

    def write(self, data: bytes) -> int:
        """Queue one message. Raises BusFull (nothing was kept) when the disk is behind, BusError when it failed."""
        self.check()
        now_ns = self._monotonic_ns()
        oldest_ns = self._oldest_ns
        late = bool(oldest_ns) and now_ns - oldest_ns > self._buffer_ns
        if late or self._waiting_bytes + len(data) > self._max_bytes:
            why = "no room on the disk" if self._full else "the disk is slower than the traffic"
            raise BusFull(f"{self._log.path}: {why}")
        with self._lock:
            self._waiting_bytes += len(data)
        self._queue.put((now_ns, data))
        return self._log.next_offset

    @property
    def _name(self) -> str:
        return str(self._log.path)

    @property
    def full(self) -> bool:
        """Whether the disk has no room now."""
        return self._full

    def check(self) -> None:
        """Raises BusError when nothing can be written any more."""
        if self._failure is not None:
            raise self._failure

    def settle(self, timeout_s: float) -> bool:
        """Wait until what is queued is written; False when that takes longer, or failed."""
        until = self._monotonic_ns() + round(timeout_s * 1e9)
        while self._waiting_bytes and self._failure is None and self._monotonic_ns() < until:
            time.sleep(0.005)
        return not self._waiting_bytes

    def flush(self, timeout_s: float) -> None:
        """Wait until what is queued is written, and stop. Raises BusError for what could not be."""
        self._queue.put(None)
        self._thread.join(timeout_s)
        self._give_up.set()
        self._thread.join(timeout_s)
        if self._failure is not None:
            raise self._failure
        if self._thread.is_alive() or self.lost_batches:
            raise BusFull(f"{self._log.path}: no room on the disk{LAST_IS_LOST}")

    def give_up(self) -> bool:
        """What is queued and finds no room is lost, and counted; nothing more is taken. Whether the thread has ended:
        else it stands still in the disk."""
        self._give_up.set()
        self._queue.put(None)
        self._thread.join(_STOP_S)
        return not self._thread.is_alive()

    def end(self, end: End | None = None, *, reason: str = "done", sorted: bool = False, stopped_ns: int = 0) -> None:
        """Write what is queued, and the end mark. Raises BusError; the file then has no end mark, and is open still."""
        self.flush(max(1.0, self._buffer_ns / 1e9))
        try:
            self._log.end(end, reason=reason, sorted=sorted, stopped_ns=stopped_ns)
        finally:
            self.close()

    def close(self) -> None:
        self.give_up()
        self._log.close()

    # -- the thread

    def _run(self) -> None:
        while True:
            try:
                if self._tick is not None:
                    self._tick()
                item = self._queue.get(timeout=_RETRY_S if self._tick is not None else None)
                if item is None:
                    return
                self._take(*item)
            except queue.Empty:
                pass
            except (BusError, OSError, codec.CodecError) as error:
                self._failure = error if isinstance(error, BusError) else BusError(f"{self._log.path}: {error}")
                return

    def _take(self, came_ns: int, data: bytes) -> None:
        self._oldest_ns = came_ns
        try:
            # Behind one that is lost nothing is written, though it may be small enough: what it ends began in that one.
            if self.lost_batches or not self._write(codec.compressed(data)):
                self._count_lost(data)
        finally:
            self._oldest_ns = 0
            with self._lock:
                self._waiting_bytes -= len(data)

    def _count_lost(self, data: bytes) -> None:
        header = codec.decode_header(data)
        self.lost_batches += 1
        if header.type is RecordType.EXCHANGE:
            self.lost_exchanges += header.count
        self.lost.append(header.increment)

    def _write(self, data: bytes) -> bool:
        """False when there is no room and nobody waits for it any more."""
        while True:
            try:
                self._log.write(data)
                self._full = False
                return True
            except BusFull:
                self._full = True
                if self._give_up.wait(_RETRY_S):
                    return False
                if self._tick is not None:
                    self._tick()
