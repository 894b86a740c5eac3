"""Who was killed between writing and saying so writes again: what was made from the same source twice counts once."""

from __future__ import annotations

from collections.abc import Sequence

from wire.records import SourceRange


class HighWater:
    """Of each partition, how far along each of its sources has been seen.

    A partition's messages follow their sources in order, also when several stages write it one after another, each
    beginning at or before the place where the last one stopped. So one number a source is enough: what lies wholly
    below it is a repetition.
    """

    def __init__(self) -> None:
        self._ends: dict[tuple[str, str, str], int] = {}
        self.repeats = 0  # messages that were no news

    def is_new(self, partition: str, sources: Sequence[SourceRange]) -> bool:
        """Whether a message that was made from these was not seen before; it has been now. Without sources: True."""
        if sources and all(s.end <= self._ends.get((partition, s.topic, s.partition), 0) for s in sources):
            self.repeats += 1
            return False
        for s in sources:
            key = (partition, s.topic, s.partition)
            self._ends[key] = max(self._ends.get(key, 0), s.end)
        return True

    def last(self, partition: str, topic: str, source: str) -> int:
        """Behind the last place of that source from which the partition has a message; 0 when it has none."""
        return self._ends.get((partition, topic, source), 0)
