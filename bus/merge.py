"""Several streams of a topic as one, in the order of time.

A stream is nearly in order: an exchange is written when it is complete, so it may stand behind others that began
after it, by as long as the longest exchange takes. A record is handed out when no stream can bring an earlier one
any more: when every stream has come further than its time by the look-ahead. What comes later than that is dropped
and counted as late.

Memory is bounded: a stream that is ahead of the others is not read, and when the look-ahead itself is more than may
be held, it is cut short.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable
from typing import Any, Final

from bus.highwater import HighWater
from bus.ports import Bus, Reader
from wire import codec
from wire.codec import RecordType
from wire.records import Manifest
from wire.streams import agent_of

LOOK_AHEAD_NS: Final = 60_000_000_000
_OVERHEAD: Final = 1500  # bytes of Python objects a record
_INFLATED: Final = 4  # bytes in memory a byte of a message, which is compressed
_EVER: Final = 1 << 63


class _Stream:
    def __init__(self, reader: Reader, now_ns: int) -> None:
        self.reader = reader
        self.newest_ns = -_EVER
        self.heard_ns = now_ns


class Merge:
    """Call `poll` again and again; it never waits. Not for threads."""

    def __init__(
        self,
        bus: Bus,
        topic: str,
        type: RecordType,
        time_of: Callable[[Any], int],
        *,
        look_ahead_ns: int = LOOK_AHEAD_NS,
        hold_bytes: int = 256 << 20,
        agents: Iterable[str] = (),
        idle_ns: int = 0,
    ) -> None:
        """Records of one type. `time_of` gives a record's time in ns.

        `agents` (and the hosts that manifests name) must all be there before anything is handed out. A stream that
        brings nothing for `idle_ns` holds the others back no longer, until it brings something (0: it always does).
        """
        self.late = 0  # records that came after their time was over; they are dropped
        self.unreadable = 0  # messages that were no batch
        self.hurried = 0  # records that were handed out before the look-ahead was over, for want of memory
        self.manifests: dict[str, Manifest] = {}
        self._bus, self._topic, self._type, self._time_of = bus, topic, type, time_of
        self._look_ahead_ns, self._hold_bytes, self._idle_ns = look_ahead_ns, hold_bytes, idle_ns
        self._agents = set(agents)
        self._streams: dict[str, _Stream] = {}
        self._seen = HighWater()
        self._heap: list[tuple[int, int, int, Any]] = []  # time, number, bytes, record
        self._number = itertools.count()
        self._held = 0
        self._floor_ns = -_EVER  # all that is earlier has been handed out

    def poll(self, now_ns: int = 0) -> list[Any]:
        """What can be handed out now, in order. `now_ns`: any clock, for `idle_ns`. Raises BusAway, BusError."""
        for name in self._bus.partitions(self._topic):
            if name not in self._streams:
                self._streams[name] = _Stream(self._bus.reader(self._topic, name), now_ns)
        slowest = min((s.newest_ns for s in self._open(now_ns)), default=_EVER)
        pressed = self._held >= self._hold_bytes
        with self._bus.glance():
            starved = self._read_some(slowest, pressed, now_ns)
        released = self._release(self._watermark_ns(now_ns))
        if pressed and not released and not starved:
            released = self._hurry()
        return released

    def _read_some(self, slowest: int, pressed: bool, now_ns: int) -> bool:
        """Read what may be held; True when nothing came from the streams that all wait for."""
        starved = True
        for name, stream in self._streams.items():
            behind = stream.newest_ns <= slowest
            if not behind and (pressed or stream.newest_ns - slowest > self._look_ahead_ns):
                continue
            if pressed and self.missing:
                continue
            if self._read(name, stream, now_ns) and behind:
                starved = False
        return starved

    def _read(self, name: str, stream: _Stream, now_ns: int) -> bool:
        messages = stream.reader.read()
        if messages:
            stream.heard_ns = now_ns
        for message in messages:
            try:
                header = codec.decode_header(message.data)
                if header.type is RecordType.MANIFEST and name not in self.manifests:
                    (manifest,) = codec.decode(message.data, header).records
                    self.manifests[name] = manifest
                    self._agents.update(manifest.hosts)
                if header.type is not self._type or not self._seen.is_new(name, header.sources):
                    continue
                records = codec.decode(message.data, header).records
            except (codec.CodecError, ValueError):
                self.unreadable += 1
                continue
            size = _OVERHEAD + _INFLATED * len(message.data) // max(len(records), 1)
            for record in records:
                at_ns = self._time_of(record)
                stream.newest_ns = max(stream.newest_ns, at_ns)
                if at_ns < self._floor_ns:
                    self.late += 1
                    continue
                heapq.heappush(self._heap, (at_ns, next(self._number), size, record))
                self._held += size
        return bool(messages)

    def _open(self, now_ns: int) -> list[_Stream]:
        """Streams that may still bring something, and are waited for."""
        return [
            s
            for s in self._streams.values()
            if not s.reader.ended and not (self._idle_ns and now_ns - s.heard_ns >= self._idle_ns)
        ]

    def _watermark_ns(self, now_ns: int) -> int:
        """No record that is earlier than this comes any more, but for late ones."""
        if self.missing or not self._streams:
            return -_EVER
        return min((s.newest_ns - self._look_ahead_ns for s in self._open(now_ns)), default=_EVER)

    def _release(self, until_ns: int) -> list[Any]:
        released = []
        while self._heap and self._heap[0][0] < until_ns:
            at_ns, _, size, record = heapq.heappop(self._heap)
            self._held -= size
            self._floor_ns = at_ns
            released.append(record)
        return released

    def _hurry(self) -> list[Any]:
        """The oldest half of what is held."""
        released: list[Any] = []
        while self._heap and self._held > self._hold_bytes // 2:
            released += self._release(self._heap[0][0] + 1)
        self.hurried += len(released)
        return released

    @property
    def missing(self) -> set[str]:
        """Agents that were named and have no stream yet."""
        return self._agents - {agent_of(name) for name in self._streams}

    @property
    def held(self) -> int:
        """Records that were read and not yet handed out."""
        return len(self._heap)

    @property
    def repeats(self) -> int:
        """Messages that were written twice, and dropped."""
        return self._seen.repeats

    @property
    def whole(self) -> bool:
        """Every named agent is there, every stream is at its end, and all was handed out."""
        streams = self._streams.values()
        return bool(streams) and not self._heap and not self.missing and all(s.reader.ended for s in streams)

    def close(self) -> None:
        for stream in self._streams.values():
            stream.reader.close()
