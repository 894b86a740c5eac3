"""What a cleanser that runs for weeks says of itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

_TELL_S: Final = 10.0


class SignsOfLife:
    """Says now and then how far a cleanser is, and nothing while nothing comes."""

    def __init__(self, told: Callable[[str], None], monotonic: Callable[[], float] = time.monotonic) -> None:
        self._told, self._monotonic = told, monotonic
        self._messages, self._at = 0, monotonic()

    def look(self, messages: int, dead: int) -> None:
        """What was cleansed so far, in batches, and how many of them became dead letters."""
        if messages == self._messages or self._monotonic() - self._at < _TELL_S:
            return
        self._messages, self._at = messages, self._monotonic()
        self._told(f"{messages:,} batches cleansed so far" + (f", {dead:,} dead letters" if dead else ""))
