"""Unix time that never steps: the wall clock is read once, afterwards the monotonic clock counts."""

from __future__ import annotations

import time
from collections.abc import Callable

NowNs = Callable[[], int]


def clock_of(anchor: int) -> NowNs:
    """`anchor` is what to add to the monotonic clock (see `replay.app.anchor_ns`); one worker's processes share it."""
    monotonic = time.monotonic_ns
    return lambda: anchor + monotonic()


def realtime_ns() -> int:
    """The kernel's wall clock, which receive timestamps are of. Only for converting those: it may step."""
    return time.clock_gettime_ns(time.CLOCK_REALTIME)
