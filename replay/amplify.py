"""Which copies of a session are fired, by whom, and shifted by how much. Pure; the same on every worker.

A (session, copy) has a rank, copy + u with u in [0, 1) from a hash. It is admitted by every load above
its rank: load 2.5 admits copies 0 and 1 of every session, and copy 2 of the half with u < 0.5. A higher load
admits all that a lower one does, so "cut since" is "some load since the start was not above the rank".
"""

from __future__ import annotations

from typing import Final, NamedTuple

from wire import ids

_MAX_KNOWN: Final = 200_000  # (session, copy) pairs that are remembered; hashes are made again beyond


class Draw(NamedTuple):
    """What the hashes say of one (session, copy)."""

    mine: bool  # this worker fires it
    rank: float
    shift_ns: int


class Draws:
    def __init__(self, index: int, workers: int, spread_ns: int) -> None:
        self._index, self._workers, self._spread_ns = index, workers, spread_ns
        self._known: dict[tuple[bytes, int], Draw] = {}

    def of(self, session: bytes, copy: int) -> Draw:
        key = (session, copy)
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            mine = self._workers == 1 or ids.shard_of(session, copy, self._workers) == self._index
            rank = copy + ids.unit_hash(session, copy, b"lf-amplify")
            found = self._known[key] = Draw(mine, rank, shift_ns(session, copy, self._spread_ns))
        return found


def shift_ns(session: bytes, copy: int, spread_ns: int) -> int:
    """ns by which a (session, copy) is later than recorded, in [0, spread_ns). Copy 0 is not shifted."""
    return int(ids.unit_hash(session, copy, b"lf-spread") * spread_ns) if copy else 0


def admits(load: float, rank: float) -> bool:
    return load > rank
