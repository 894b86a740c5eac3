"""Several capture files as one, in the order of their packets' times: files that follow each other, or side by side."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from capture.frames import Frame, Sink
from capture.source_pcap import CHUNK, PORTION, PcapSource

_READ_AHEAD: Final = 32 << 20  # of all files that are merged


def in_time_order(sources: Sequence[PcapSource]) -> Iterator[Frame | None]:
    """Their frames. None: nothing is there now, and there may be later."""
    return sources[0].frames() if len(sources) == 1 else _merged(sources, _nothing)


def read_into(sources: Sequence[PcapSource], sink: Sink, most: int, over: Callable[[], None]) -> Iterator[int]:
    """The same into `sink`; says how many, after about `most` of them or a MiB, 0 where nothing is there now. `over` is
    called when one of several has ended."""
    if len(sources) == 1:
        yield from sources[0].read_into(sink, most)
        return
    count = size = 0
    for frame in _merged(sources, over):
        sink.packet(*frame)
        count += 1
        size += len(frame[1])
        if count >= most or size >= PORTION:
            yield count
            count = size = 0
    yield count


def _nothing() -> None:
    """Nobody asks when a file ends."""


def _merged(sources: Sequence[PcapSource], over: Callable[[], None]) -> Iterator[Frame]:
    """A file is open from the time of its first packet on; so of a thousand that follow each other, one or two are."""
    later = deque(sorted((source.begins_ns(), number) for number, source in enumerate(sources)))
    open_now: list[tuple[int, int, Frame, Iterator[Frame]]] = []
    while later or open_now:
        while later and (not open_now or later[0][0] <= open_now[0][0]):
            _, number = later.popleft()
            source = sources[number]
            source.chunk = max(64 << 10, min(CHUNK, _READ_AHEAD // (len(open_now) + 1)))
            frames: Iterator[Frame] = (frame for frame in source.frames() if frame is not None)
            first = next(frames, None)
            if first is not None:
                heapq.heappush(open_now, (first[0], number, first, frames))
        if not open_now:
            continue
        _, number, frame, frames = open_now[0]
        yield frame
        following = next(frames, None)
        if following is None:
            heapq.heappop(open_now)
            over()
        else:
            heapq.heapreplace(open_now, (following[0], number, following, frames))
