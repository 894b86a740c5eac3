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
from typing import Any, NamedTuple

from replay.amplify import Draws, admits
from replay.steps import Timeline
from wire import head
from wire.records import Stamped


class Item:
    """A recorded exchange with what is derived from it once, for all its copies."""

    __slots__ = ("binding", "head_only", "stamped", "template", "unsafe")

    def __init__(self, stamped: Stamped) -> None:
        self.stamped = stamped
        self.head_only = stamped.request.head.startswith(b"HEAD ")
        self.unsafe = is_unsafe(stamped)
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


class _Read(NamedTuple):
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
        self._lap = -1
        self._lap_items: Iterator[Stamped] = iter(())
        self._next: _Read | None = None
        self._started = False
        self._recent: deque[_Read] = deque()
        self._heap: list[Planned] = []
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
            self._advance()
        if self._timeline.ceiling > self._copies:
            self._add_copies(self._timeline.ceiling)
        while self._next is not None and self._next.due_ns < until_ns:
            self._push(self._next, 0, self._copies)
            if self._spread_ns:
                self._recent.append(self._next)
            self._advance()
        due: list[Planned] = []
        heap, load_at = self._heap, self._timeline.load_at
        while heap and heap[0].due_ns < until_ns:
            shot = heapq.heappop(heap)
            if admits(load_at(shot.start_ns), shot.rank):
                due.append(shot)
        self._taken_ns = until_ns
        while self._recent and self._recent[0].due_ns < until_ns - self._spread_ns:
            self._recent.popleft()
        return due

    def cut(self, shot: Planned) -> bool:
        """Whether a step since its session's start no longer admits this shot."""
        return not admits(self._timeline.lowest(shot.start_ns, shot.due_ns), shot.rank)

    def _advance(self) -> None:
        """Read the next exchange, beginning the next lap where one ends."""
        base = self._timeline.base_ns
        assert base is not None
        began = False
        while True:
            for stamped in self._lap_items:
                if self._skip_unsafe and is_unsafe(stamped):
                    continue
                lap, lap_ns, speed = self._lap, self._lap_ns, self._speed
                due = due_ns(base, lap, lap_ns, stamped.offset_ns, speed)
                began_at = stamped.session_start_ns
                start = due if began_at >= stamped.offset_ns else due_ns(base, lap, lap_ns, began_at, speed)
                self._next = _Read(due, start, lap, Item(stamped))
                return
            # A whole lap without an exchange would be read for ever.
            if began or (self._laps and self._lap + 1 >= self._laps):
                self._next = None
                return
            began = True
            self._lap += 1
            self._lap_items = self._recording()

    def _push(self, read: _Read, first: int, end: int) -> None:
        session = read.item.stamped.session_id
        for copy in range(first, end):
            mine, rank, shift = self._draws.of(session, copy)
            if not mine or read.due_ns + shift < self._taken_ns:
                continue
            self._order += 1
            heapq.heappush(
                self._heap,
                Planned(read.due_ns + shift, self._order, copy, read.lap, read.start_ns + shift, rank, read.item),
            )

    def _add_copies(self, copies: int) -> None:
        """The load may now need more copies of what was read: of sessions whose shifted start is still to come."""
        for read in self._recent:
            self._push(read, self._copies, copies)
        self._copies = copies


def is_unsafe(stamped: Stamped) -> bool:
    """By the method that stands in the request, whatever the stamp says."""
    return stamped.unsafe or head.method_of(stamped.request.head) not in head.SAFE_METHODS
