"""A bus that can be away: what goes on without it, and what waits for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

from bus.ports import BusAway
from replay.clock import NowNs
from replay.settings import AWAY_NS, MS_NS

T = TypeVar("T")

_AGAIN_NS: Final = 200 * MS_NS  # a bus that is away is asked this often


class Away:
    """Uses the bus where that is possible now, and knows since when it has not been."""

    def __init__(self, now: NowNs) -> None:
        self._now = now
        self._again_ns = 0
        self.since_ns = 0  # 0 = it is there
        self.why = ""

    def attempt(self, call: Callable[[], object]) -> bool:
        """Whether the call succeeded. While the bus is away most calls are not even made."""
        if self.since_ns and self._now() < self._again_ns:
            return False
        try:
            call()
        except BusAway as error:
            now = self._now()
            self.since_ns, self.why = self.since_ns or now, str(error)
            self._again_ns = now + _AGAIN_NS
            return False
        self.since_ns = 0
        return True

    @property
    def said(self) -> str:
        """What to add to a reason; "" while the bus is there."""
        return f": the bus is away ({self.why})" if self.since_ns else ""


def patiently(call: Callable[[], T], now: NowNs, *, for_ns: int = AWAY_NS) -> T:
    """Call until the bus is back. Raises BusAway when it was away for so long."""
    deadline = now() + for_ns
    while True:
        try:
            return call()
        except BusAway:
            if now() >= deadline:
                raise
            time.sleep(_AGAIN_NS / 1e9)
