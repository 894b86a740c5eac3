"""The hard cap on a worker's rate: exact over any window, whatever the schedule asks for."""

from __future__ import annotations

import math
from typing import Final

_PER_SECOND: Final = 10


class RateCap:
    """At most `n` events in any `window_ns`, with n = ceil(rate / 10) and window = n / rate (about 100 ms).

    So any second holds at most rate + n events, and a stall is caught up by at most n at once. 0 admits nothing.
    """

    def __init__(self, rate_per_s: float) -> None:
        self.events = max(math.ceil(rate_per_s / _PER_SECOND), 1)
        self.window_ns = round(self.events / rate_per_s * 1e9) if rate_per_s > 0 else 0
        self._times = [-(1 << 62)] * self.events  # a ring: when the last n events were
        self._at = 0
        self._closed = rate_per_s <= 0

    def admit(self, now_ns: int) -> bool:
        """Whether one event may happen now; if so it is counted."""
        at = self._at
        if self._closed or now_ns - self._times[at] < self.window_ns:
            return False
        self._times[at] = now_ns
        self._at = at + 1 if at + 1 < self.events else 0
        return True
