"""Which ranges of which partitions are held already: what makes a store count each batch once. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

from analytics.store_port import StoreError
from wire.records import SourceRange


class SourceRanges:
    """Half-open ranges; those that touch are joined, so a partition that is read in order is one."""

    def __init__(self, sources: Iterable[SourceRange] = ()) -> None:
        self._ranges: dict[tuple[str, str], list[tuple[int, int]]] = {}
        self.add(sources)

    def add(self, sources: Iterable[SourceRange]) -> None:
        for source in sources:
            if source.end <= source.first:
                continue
            ranges = self._ranges.setdefault((source.topic, source.partition), [])
            first, end = source.first, source.end
            at = bisect_right(ranges, (first, end))
            if at and ranges[at - 1][1] >= first:
                at -= 1
                first = ranges[at][0]
            until = at
            while until < len(ranges) and ranges[until][0] <= end:
                end = max(end, ranges[until][1])
                until += 1
            ranges[at:until] = [(first, end)]

    def hold(self, sources: Sequence[SourceRange], where: str) -> bool:
        """All of them are held. Raises StoreError, beginning with `where`, when a part is and a part is not."""
        held = [self._held(source, where) for source in sources]
        if any(held) and not all(held):
            raise StoreError(f"{where}: panes of ranges of which only a part is held already")
        return all(held)

    def _held(self, source: SourceRange, where: str) -> bool:
        for first, end in self._ranges.get((source.topic, source.partition), ()):
            if first <= source.first and source.end <= end:
                return True
            if first < source.end and source.first < end:
                raise StoreError(
                    f"{where}: {source.topic}-{source.partition} [{source.first}, {source.end}) overlaps "
                    f"[{first}, {end}), which is held already"
                )
        return False

    def end_of(self, topic: str, partition: str) -> int:
        """Up to where a partition is held from its beginning without a hole; 0 = nothing."""
        ranges = self._ranges.get((topic, partition))
        return ranges[0][1] if ranges else 0

    def ranges(self) -> Iterator[tuple[str, str, int, int]]:
        """(topic, partition, first, end), in order."""
        for (topic, partition), ranges in sorted(self._ranges.items()):
            for first, end in ranges:
                yield topic, partition, first, end

    def as_lists(self) -> list[list[str | int]]:
        return [list(one) for one in self.ranges()]
