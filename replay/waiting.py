"""The shots that wait in the firer for their times."""

from __future__ import annotations

import heapq
from collections import deque

from replay import pipes

#: ready_ns, serial, flags, what stands before the marker, what stands after it
Waiting = tuple[int, int, int, bytes, bytes]


class WaitingShots:
    """In order of ready_ns. Slices come in order and are only queued; shots that waited for a value are sorted in."""

    def __init__(self) -> None:
        self._row: deque[Waiting] = deque()
        self._heap: list[Waiting] = []  # those that came out of order

    def __len__(self) -> int:
        return len(self._row) + len(self._heap)

    def add(self, payload: bytes) -> None:
        """The payload of a SHOTS frame."""
        at, end, size, unpack = 0, len(payload), pipes.SHOT.size, pipes.SHOT.unpack_from
        row = self._row
        append = row.append
        last = row[-1][0] if row else 0
        while at < end:
            serial, ready, flags, before, after = unpack(payload, at)
            at += size
            middle = at + before
            shot = (ready, serial, flags, payload[at:middle], payload[middle : middle + after])
            at = middle + after
            if ready >= last:
                append(shot)
                last = ready
            else:
                heapq.heappush(self._heap, shot)

    def next_ns(self, otherwise: int) -> int:
        """The earliest ready_ns, `otherwise` where nothing waits."""
        row, heap = self._row, self._heap
        earliest = row[0][0] if row else otherwise
        return min(earliest, heap[0][0]) if heap else earliest

    def due(self, now_ns: int, most: int) -> list[Waiting]:
        """Take out what is due, at most `most`."""
        row, heap = self._row, self._heap
        due: list[Waiting] = []
        while len(due) < most:
            if heap and (not row or heap[0] < row[0]):
                if heap[0][0] > now_ns:
                    break
                due.append(heapq.heappop(heap))
            elif row and row[0][0] <= now_ns:
                due.append(row.popleft())
            else:
                break
        return due

    def put_back(self, shots: list[Waiting]) -> None:
        for shot in shots:
            heapq.heappush(self._heap, shot)

    def take_all(self) -> list[Waiting]:
        shots = [*self._row, *self._heap]
        self._row.clear()
        self._heap.clear()
        return shots
