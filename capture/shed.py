"""Which sessions are shed when there is too little room or too much cost: whole ones, the same ones from then on.

As what waits for the bus fills its room, the share that is kept halves each time half of the room that is left is used:
all up to 1/2 of it, half of the sessions up to 3/4, a quarter up to 7/8. So each stage lasts as long as the one before,
at the same traffic, and the room is never quite used up. All are kept again when nothing waits any more. The governor
(`capture.governor`) asks for stages of its own; the higher one holds.

Who is shed goes by the session's id, so a session that is kept in one stage loses nothing, and who was shed in one is
shed in the next.
"""

from __future__ import annotations

from typing import Final

STAGES: Final = 10  # 1/1024 of the sessions; beyond it there is no room, and everything is shed
NOTHING: Final = STAGES + 1  # of the governor: nothing is kept
NO_ROOM: Final = "no_room"


class Shedder:
    """Told how full it is by the record loop, asked for each exchange. One thread."""

    def __init__(self) -> None:
        self.stage = 0  # 1/2**stage of the sessions are kept
        self.reason = NO_ROOM
        self._below = 0
        self._room = 0  # the stages that are asked for
        self._cost = 0
        self._bound = ""

    def filled(self, fill: float) -> None:
        """`fill`: of the room, 0 to 1."""
        stage, left = self._room if fill else 0, 1.0 - fill
        while fill and stage < STAGES and left <= 0.5 ** (stage + 1):
            stage += 1
        self._room = stage
        self._set()

    def costs(self, stage: int, bound: str) -> None:
        """`stage`: that of the governor, 0 to `NOTHING`; `bound`: which one it keeps to, the reason of what is shed."""
        self._cost, self._bound = stage, bound
        self._set()

    def _set(self) -> None:
        self.stage = max(self._room, self._cost)
        self.reason = self._bound if self._cost > self._room else NO_ROOM
        self._below = 1 << 32 if self.stage > STAGES else (1 << 32) - (1 << 32 >> self.stage)

    def sheds(self, session_id: bytes) -> str:
        """The reason for which this session (16 bytes of a keyed hash) is shed now; "": it is kept."""
        return self.reason if int.from_bytes(session_id[:4], "big") < self._below else ""
