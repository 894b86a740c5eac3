"""What recording may cost, and what is given up to keep to it.

Every half second the governor looks at what the process has used. Above a bound the share of the sessions that is
kept is halved (`capture.shed`), at once several times when the use is that much too high. It is doubled again when the
use has been below the bound for two seconds, and what was used too much before has been made good: so over any long
time the mean is below the bound, whatever the traffic does. Where keeping more was too much at once, the next try waits
twice as long. When not even reading packets is affordable, they are taken and thrown away unread, and counted.

A bound never makes anything wait: production is not slowed down, and the kernel is not made to lose packets.
"""

from __future__ import annotations

import ctypes
import math
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Final

import msgspec

from capture.settings import CaptureSettings, RecordSettings
from capture.shed import NOTHING, Shedder
from capture.source import Channel, Sink
from wire.account import Account

LOOK_NS: Final = 500_000_000
CALM: Final = 4  # looks below the bound until more is kept
MOST_CALM: Final = 240  # the same when that was too much again and again: two minutes
CPU, MEMORY, RATE = BOUNDS = "max_cpu", "max_memory", "max_rate"  # also the reasons of what is shed
_FIXED_BYTES: Final = 96 << 20
_QUEUE_BYTES: Final = 128 << 20
_CONNECTION_BYTES: Final = 2 << 10


class Use(msgspec.Struct, frozen=True):
    """What this process has used so far, and holds now."""

    cpu_ns: int = 0  # user and system, all threads
    memory_bytes: int = 0  # resident, the ring with it
    written_bytes: int = 0


def use_now(written_bytes: int) -> Use:
    """As the system tells it. Memory is the peak where the present is not told (macOS)."""
    try:
        with open("/proc/self/statm", "rb") as file:
            memory = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Use(time.process_time_ns(), memory, written_bytes)


class _Stage:
    """How much is shed for one bound."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.stage = 0
        self._calm = 0  # looks below the bound
        self._patience = CALM
        self._tried = False  # more is kept since the last calm spell, and it is not known yet whether that is too much

    def _more(self, stages: int) -> None:
        if self._tried:
            self._patience = min(2 * self._patience, MOST_CALM)
        self._calm, self._tried = 0, False
        self.stage = min(NOTHING, self.stage + stages)

    def _look(self, calm: bool) -> None:
        self._calm = self._calm + 1 if calm else 0
        if self._calm < self._patience:
            return
        if self._tried:
            self._patience = max(self._patience // 2, CALM)
        self._calm, self._tried = 0, bool(self.stage)
        self.stage = max(0, self.stage - 1)


class _Bound(_Stage):
    """Of something used by the second."""

    def __init__(self, name: str, per_s: float) -> None:
        super().__init__(name)
        self._per_s = per_s
        self._debt = 0.0  # used beyond the bound and not made good yet

    def look(self, used: float, seconds: float) -> bool:
        """`used` in the last `seconds`. Whether it was too much."""
        allowed = self._per_s * seconds
        self._debt = max(0.0, self._debt + used - allowed)
        if used > allowed:
            # What reading alone costs is not halved by keeping half: it may take more looks than one.
            self._more(max(1, math.ceil(math.log2(used / allowed))))
            return True
        self._look(used < 0.9 * allowed and not self._debt)
        return False


class _Level(_Stage):
    """Of something held."""

    def __init__(self, name: str, most: int) -> None:
        super().__init__(name)
        self._most = most

    def look(self, held: int) -> bool:
        if held > self._most:
            self._more(1)
            return True
        self._look(held < 0.9 * self._most)
        return False


class Governor:
    """Asked often by the record loop; one thread."""

    def __init__(
        self,
        settings: RecordSettings,
        shedder: Shedder,
        meter: Callable[[], Use],
        give_back: Callable[[], None] | None = None,
    ) -> None:
        """`give_back` is called when memory is above its bound: what was freed goes back to the system."""
        self._shedder = shedder
        self._meter = meter
        self._give_back = give_back if give_back is not None else _trim
        self._cpu = _Bound(CPU, settings.max_cpu * 1e9) if settings.max_cpu else None
        self._rate = _Bound(RATE, settings.max_rate) if settings.max_rate else None
        self._memory = _Level(MEMORY, settings.max_memory_bytes) if settings.max_memory_bytes else None
        self._first = self._last = meter()
        self._looked_ns = 0
        self._began_ns = 0
        self.peak_bytes = self._first.memory_bytes
        self.raised: dict[str, int] = {}  # how often each bound was found exceeded

    def look(self, now_ns: int) -> None:
        if not self._looked_ns:
            self._looked_ns = self._began_ns = now_ns
        span_ns = now_ns - self._looked_ns
        if span_ns < LOOK_NS:
            return
        now, last = self._meter(), self._last
        seconds = span_ns / 1e9
        self._looked_ns, self._last = now_ns, now
        self.peak_bytes = max(self.peak_bytes, now.memory_bytes)
        over = []
        if self._cpu is not None and self._cpu.look(now.cpu_ns - last.cpu_ns, seconds):
            over.append(CPU)
        if self._rate is not None and self._rate.look(now.written_bytes - last.written_bytes, seconds):
            over.append(RATE)
        if self._memory is not None and self._memory.look(now.memory_bytes):
            over.append(MEMORY)
            self._give_back()
        for name in over:
            self.raised[name] = self.raised.get(name, 0) + 1
        bounds = [bound for bound in (self._cpu, self._rate, self._memory) if bound is not None]
        if bounds:
            worst = max(bounds, key=lambda bound: bound.stage)
            self._shedder.costs(worst.stage, worst.name)

    @property
    def deaf(self) -> bool:
        """Whether packets are not to be read now, for want of processor time."""
        return self._cpu is not None and self._cpu.stage == NOTHING

    def account(self, account: Account) -> None:
        """What it cost, as notes; once, at the end. Memory is the highest that was seen, summed over recorders."""
        now = self._meter()
        self.peak_bytes = max(self.peak_bytes, now.memory_bytes)
        account.note("cost.recorders")
        account.note("cost.cpu_ns", now.cpu_ns - self._first.cpu_ns)
        account.note("cost.memory_bytes", self.peak_bytes)
        if written := now.written_bytes - self._first.written_bytes:
            account.note("cost.written_bytes", written)  # but for the batch that this goes with
        for name, times in self.raised.items():
            account.note(f"exceeded.{name}", times)


class Deaf:
    """Takes packets and throws them away, counted."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._packets = sink.account.ledger("packets")
        self.lane = None

    @property
    def account(self) -> Account:
        return self._sink.account

    def packet(self, ts_ns: int, data: bytes, wire_len: int, linktype: int = 1, interface: str = "") -> None:
        self._packets.seen += 1
        self._packets.drop(CPU)

    def kernel_dropped(self, count: int) -> None:
        self._sink.kernel_dropped(count)

    def connection_opened(self, client: str, server: str, ts_ns: int, interface: str = "") -> Channel:
        return self._sink.connection_opened(client, server, ts_ns, interface)


def within(capture: CaptureSettings, max_memory_bytes: int) -> CaptureSettings:
    """The bounds of what is held, as `max_memory_bytes` in all allow: a quarter each for bodies, for connections, and
    for what waits to be written (`queue_bytes`)."""
    if not max_memory_bytes:
        return capture
    share = (max_memory_bytes - _FIXED_BYTES) // 4
    return msgspec.structs.replace(
        capture,
        max_total_bytes=min(capture.max_total_bytes, share),
        max_connection_bytes=min(capture.max_connection_bytes, share // 4),
        max_connections=min(capture.max_connections, share // _CONNECTION_BYTES),
    )


def queue_bytes(max_memory_bytes: int) -> int:
    """What may wait to be written."""
    return min(_QUEUE_BYTES, (max_memory_bytes - _FIXED_BYTES) // 4) if max_memory_bytes else _QUEUE_BYTES


def _trim() -> None:
    """What was freed and is still held by the allocator goes back (glibc; elsewhere nothing happens)."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return
    trim(0)
