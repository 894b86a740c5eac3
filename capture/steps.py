"""The kernel stamps packets with the wall clock, which may be set while we record: times go on as if it had not been.

`CLOCK_MONOTONIC` is slewed as the wall clock is, but never set (clock_gettime(2)): the difference of the two changes by
what the wall clock was set by, and by nothing else. It is looked at before each block of packets.

Packets that were stamped before a step may still be in the ring when the step is seen, in their order. A stamp is
taken for one of after it when that puts it in no time to come (the clock was set back), or when otherwise it would lie
in the time to come (it was set forward). So what is taken wrongly is off by no more than it waited. No time is told
that is to come, or is before the one that was told last.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

LEAST_NS: Final = 5_000_000  # less is no step: two clocks cannot be read at one instant
_TOGETHER_NS: Final = 200_000
_TRIES: Final = 10
_SETTLED_NS: Final = 500_000_000  # longer than the kernel fills a block


def _kernel_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_REALTIME)  # what the kernel stamps with; all else is anchor + monotonic


class Steps:
    """For one thread. `anchor_ns`: unix time at monotonic 0, as it was when recording began (default: now)."""

    __slots__ = (
        "_anchor_ns",
        "_last_ns",
        "_monotonic_ns",
        "_new_ns",
        "_now_ns",
        "_old_ns",
        "_seen_ns",
        "_wall_ns",
        "count",
    )

    def __init__(
        self,
        anchor_ns: int | None = None,
        *,
        wall_ns: Callable[[], int] = _kernel_ns,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._wall_ns, self._monotonic_ns = wall_ns, monotonic_ns
        self._now_ns = self._last_ns = 0
        self._anchor_ns = self._difference() if anchor_ns is None else anchor_ns
        self._old_ns = self._new_ns = 0  # how far the wall clock was ahead before the last step, and is now
        self._seen_ns = 0  # when the last step was seen; 0: what comes is of after it
        self.count = 0  # of steps so far

    @property
    def ns(self) -> int:
        """What the wall clock was set by so far, all in all; below 0: back."""
        return self._new_ns

    def look(self) -> Callable[[int], int] | None:
        """Before a block: what makes times of its stamps; None where they are the times (there was no step)."""
        ahead = self._difference() - self._anchor_ns
        if abs(ahead - self._new_ns) >= LEAST_NS:
            self._old_ns, self._new_ns = self._new_ns, ahead
            self._seen_ns = self._now_ns
            self.count += 1
        return self.time_of if self.count else None

    def drained(self) -> None:
        """Nothing waits now: what comes later was stamped a moment ago."""
        if self._seen_ns and self._monotonic_ns() - self._seen_ns > _SETTLED_NS:
            self._seen_ns = 0

    def time_of(self, stamp_ns: int) -> int:
        at_ns = min(self._unset(stamp_ns), self._anchor_ns + self._now_ns)
        self._last_ns = max(at_ns, self._last_ns)
        return self._last_ns

    def _unset(self, stamp_ns: int) -> int:
        if self._seen_ns:
            now_ns = self._anchor_ns + self._now_ns + LEAST_NS
            if self._new_ns < self._old_ns:
                passed = stamp_ns - self._new_ns <= now_ns
            else:
                passed = stamp_ns - self._old_ns > now_ns
            if not passed:
                return stamp_ns - self._old_ns
            self._seen_ns = 0
        return stamp_ns - self._new_ns

    def _difference(self) -> int:
        """Wall less monotonic; the best of some tries, as we may be held up between the two."""
        best, found = -1, 0
        for _ in range(_TRIES):
            before = self._monotonic_ns()
            wall = self._wall_ns()
            self._now_ns = self._monotonic_ns()
            apart = self._now_ns - before
            if best < 0 or apart < best:
                best, found = apart, wall - before - apart // 2
            if apart <= _TOGETHER_NS:
                break
        return found
