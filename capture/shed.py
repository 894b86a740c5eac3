"""Which sessions are shed when what waits for the bus fills its room: whole ones, the same ones from then on.

The share that is kept halves each time half of the room that is left is used: all up to 1/2 of it, half of the
sessions up to 3/4, a quarter up to 7/8. So each stage lasts as long as the one before, at the same traffic, and the
room is never quite used up. Who is shed goes by the session's id, so a session that is kept in one stage
loses nothing, and who was shed in one is shed in the next. All are kept again when nothing waits any more.
"""

from __future__ import annotations

from typing import Final

_STAGES: Final = 10  # 1/1024 of the sessions; beyond it there is no room, and everything is shed


class Shedder:
    """Told how full it is by the record loop, asked for each exchange. One thread."""

    def __init__(self) -> None:
        self.stage = 0  # 1/2**stage of the sessions are kept
        self._below = 0

    def filled(self, fill: float) -> None:
        """`fill`: of the room, 0 to 1."""
        if not fill:
            self._set(0)
            return
        stage, left = self.stage, 1.0 - fill
        while stage < _STAGES and left <= 0.5 ** (stage + 1):
            stage += 1
        self._set(stage)

    def _set(self, stage: int) -> None:
        self.stage = stage
        self._below = (1 << 32) - (1 << 32 >> stage)

    def sheds(self, session_id: bytes) -> bool:
        """Whether this session (16 bytes of a keyed hash) is shed now."""
        return int.from_bytes(session_id[:4], "big") < self._below
