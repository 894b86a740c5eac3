"""Sessions: whole, in order, counted."""

from __future__ import annotations


class Sessions:
    """Numbers the requests of each session. Give it exchanges in the order of their requests.

    Memory: 16 bytes and two numbers a session of the recording.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[int, int]] = {}

    def next(self, session: bytes, offset_ns: int) -> tuple[int, int]:
        """(offset of the session's first request, index of this one in it: 0, 1, 2 ...)."""
        start, index = self._known.get(session, (offset_ns, 0))
        self._known[session] = (start, index + 1)
        return start, index

    @property
    def count(self) -> int:
        return len(self._known)
