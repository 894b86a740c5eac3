"""When each shot is due. Pure: a recording's exchanges and a timeline in, due shots out, in order.

    due_ns = base_ns + (lap * lap_ns + offset_ns) / speed + shift_ns(session, copy)

    base_ns    effective time of the first step (unix ns)
    lap_ns     length of one lap, offset_ns of the exchange in the recording (ns of recording time)
    speed      recording seconds per second: 2.0 halves all distances
    shift_ns   in [0, spread_ns), by hash; 0 for copy 0 (ns of real time, not compressed by speed)

        offset ->   |a  b   c    |a  b   c    |          copy 0, two laps
                    |  a  b   c    |a' ...               copy 1, shifted

A (session, copy, lap) is admitted by the step in force at its own shifted start, and cut at a request boundary
by a later step that no longer admits it.

Memory: exchanges are read in order and kept while a copy of them may still be due, so it grows with
spread x rate x copies, not with the recording.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import msgspec

from replay.amplify import Draws, admits
from replay.steps import Timeline
from wire import head
from wire.records import Stamped

_SAFE: Final = tuple(method + b" " for method in sorted(head.SAFE_METHODS))


class Item:
    """A recorded exchange with what is derived from it once, for all its copies."""

    __slots__ = ("binding", "head_only", "stamped", "template", "unsafe")

    def __init__(self, stamped: Stamped) -> None:
        self.stamped = stamped
        request = stamped.request.head
        self.head_only: bool = request.startswith(b"HEAD ")
        self.unsafe = stamped.unsafe or not (request.startswith(_SAFE) or head.method_of(request) in head.SAFE_METHODS)
        self.template: Any = None  # replay.render.Template
        self.binding: Any = None  # replay.identity.Binding


class Planned(NamedTuple):
    """One shot that the schedule made. Sorts by (due_ns, order)."""

    due_ns: int
    order: int
    copy: int
    lap: int
    start_ns: int  # due time of the first exchange of its (session, copy, lap)
    rank: float
    item: Item


_new = tuple.__new__  # a third of what calling a NamedTuple costs


class _Read(msgspec.Struct, frozen=True):
    due_ns: int  # of copy 0
    start_ns: int  # of copy 0
    lap: int
    item: Item


def due_ns(base_ns: int, lap: int, lap_ns: int, offset_ns: int, speed: float, shift: int = 0) -> int:
    """See the formula above. Exact integers at speed 1."""
    elapsed = lap * lap_ns + offset_ns
    return base_ns + (elapsed if speed == 1.0 else round(elapsed / speed)) + shift


class Schedule:
    """All shots of one worker. `take` is called with growing times."""

    def __init__(
        self,
        recording: Callable[[], Iterator[Stamped]],
        timeline: Timeline,
        draws: Draws,
        *,
        speed: float,
        spread_ns: int,
        laps: int,
        lap_ns: int,
        skip_unsafe: bool = False,
    ) -> None:
        """`recording` begins a lap: the exchanges in order of offset. `laps` 0 = no end."""
        self._recording, self._timeline, self._draws = recording, timeline, draws
        self._speed, self._spread_ns = speed, spread_ns
        self._laps, self._lap_ns, self._skip_unsafe = laps, lap_ns, skip_unsafe
        self._reads: Iterator[_Read] = iter(())
        self._next: _Read | None = None
        self._started = False
        self._recent: deque[_Read] = deque()
        self._heap: list[Planned] = []
        self._fresh: list[Planned] = []  # read in this take and due in it: never on the heap
        self._until_ns = 0
        self._order = 0
        self._copies = 0  # copies that what has been read was pushed for
        self._taken_ns = 0

    @property
    def finished(self) -> bool:
        """No shot will ever be due again."""
        return self._started and self._next is None and not self._heap

    def next_due_ns(self) -> int | None:
        """A lower bound of the next due time; None when it is not known, or finished."""
        times = [self._heap[0].due_ns] if self._heap else []
        if self._next is not None:
            times.append(self._next.due_ns)
        return min(times, default=None)

    def take(self, until_ns: int) -> list[Planned]:
        """The shots that are due before `until_ns` and were not taken yet, in order of due time."""
        if self._timeline.base_ns is None:
            return []
        if not self._started:
            self._started = True
            self._reads = self._read_all(self._timeline.base_ns)
            self._next = next(self._reads, None)
        if self._timeline.ceiling > self._copies:
            self._add_copies(self._timeline.ceiling)
        self._until_ns = until_ns
        fresh = self._fresh = []
        read = self._next
        while read is not None and read.due_ns < until_ns:
            self._push(read, 0, self._copies)
            if self._spread_ns:
                self._recent.append(read)
            read = next(self._reads, None)
        self._next = read
        heap = self._heap
        while heap and heap[0].due_ns < until_ns:
            fresh.append(heapq.heappop(heap))
        fresh.sort()
        latest, load_at = self._timeline.latest, self._timeline.load_at
        since, load = latest.effective_ns, latest.load
        due = [shot for shot in fresh if admits(load if shot.start_ns >= since else load_at(shot.start_ns), shot.rank)]
        self._taken_ns = until_ns
        while self._recent and self._recent[0].due_ns < until_ns - self._spread_ns:
            self._recent.popleft()
        return due

    def cut(self, shot: Planned) -> bool:
        """Whether a step since its session's start no longer admits this shot."""
        if shot.start_ns >= self._timeline.latest.effective_ns:
            return False  # nothing changed since it was admitted
        return not admits(self._timeline.lowest(shot.start_ns, shot.due_ns), shot.rank)

    def _read_all(self, base_ns: int) -> Iterator[_Read]:
        """All exchanges of all laps."""
        lap, lap_ns, speed = 0, self._lap_ns, self._speed
        while not self._laps or lap < self._laps:
            began = False
            for stamped in self._recording():
                item = Item(stamped)
                if item.unsafe and self._skip_unsafe:
                    continue
                began = True
                offset, start = stamped.offset_ns, stamped.session_start_ns
                due = due_ns(base_ns, lap, lap_ns, offset, speed)
                yield _Read(due, due if start >= offset else due_ns(base_ns, lap, lap_ns, start, speed), lap, item)
            if not began:
                return  # a lap without an exchange would be read for ever
            lap += 1

    def _push(self, read: _Read, first: int, end: int) -> None:
        session = read.item.stamped.session_id
        for copy in range(first, end):
            mine, rank, shift = self._draws.of(session, copy)
            if not mine or read.due_ns + shift < self._taken_ns:
                continue
            self._order += 1
            due = read.due_ns + shift
            shot = _new(Planned, (due, self._order, copy, read.lap, read.start_ns + shift, rank, read.item))
            if due < self._until_ns:
                self._fresh.append(shot)
            else:
                heapq.heappush(self._heap, shot)

    def _add_copies(self, copies: int) -> None:
        """The load may now need more copies of what was read: of sessions whose shifted start is still to come."""
        for read in self._recent:
            self._push(read, self._copies, copies)
        self._copies = copies


def is_unsafe(stamped: Stamped) -> bool:
    """By the method that stands in the request, whatever the stamp says."""
    return Item(stamped).unsafe
