"""Requests of two sides that are the same: as multisets of a key, in the order of time, within a tolerance."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec

#: How far apart two times of one request are, tried one after the other: the nearest are the likeliest.
_STEPS: Final = (10_000_000, 100_000_000)

Key = tuple[bytes, bytes, int]  # method, target, status (0: none was seen)


class Served(msgspec.Struct, frozen=True):
    """A request of the log, or of the recording."""

    key: Key
    first_ns: int  # when it may have ended, from .. to; a recording's own times are exact
    last_ns: int
    start_ns: int
    name: str  # where it is: "access.log:17", or the exchange's id
    peer: str = ""  # the client of the log's line, the server of the recording's exchange
    server: str = ""  # the server's address and port, where the log tells
    port: str = ""
    protocol: str = "http/1"  # as the log has it


def end_of(served: Served) -> tuple[int, int]:
    return served.first_ns, served.last_ns


def start_of(served: Served) -> tuple[int, int]:
    return served.start_ns, served.start_ns


def match(
    log: Iterable[Served],
    rec: Iterable[Served],
    tolerance_ns: int,
    at: Callable[[Served], tuple[int, int]],
    key: Callable[[Served], Any],
) -> tuple[list[Served], list[Served], int]:
    left_log, left_rec, both = _matched(log, rec, tolerance_ns, at, key)
    return left_log, left_rec, len(both)


def pairs(
    log: Iterable[Served], rec: Iterable[Served], tolerance_ns: int, key: Callable[[Served], Any]
) -> tuple[list[Served], list[Served], list[tuple[Served, Served]]]:
    return _matched(log, rec, tolerance_ns, end_of, key)


def _matched(
    log: Iterable[Served],
    rec: Iterable[Served],
    tolerance_ns: int,
    at: Callable[[Served], tuple[int, int]],
    key: Callable[[Served], Any],
) -> tuple[list[Served], list[Served], list[tuple[Served, Served]]]:
    """What is left of both, and the pairs: of each key in the order of time, which pairs as many as can be."""
    groups: dict[Any, tuple[list[Served], list[Served]]] = defaultdict(lambda: ([], []))
    for side, many in enumerate((log, rec)):
        for served in many:
            groups[key(served)][side].append(served)
    left_log: list[Served] = []
    left_rec: list[Served] = []
    found_pairs: list[tuple[Served, Served]] = []
    for ones, others in groups.values():
        ones.sort(key=end_of)
        others.sort(key=lambda served: at(served)[0])
        found = _in_order(ones, others, tolerance_ns, at)
        if found[0] or found[1]:
            # Many of a key match a little off, too: what is left would be the last, wherever one is lacking. nginx's
            # times are off by some milliseconds on a busy machine.
            log_, rec_, close = _in_order(ones, others, 0, at)
            for apart in (*(ns for ns in _STEPS if ns < tolerance_ns), tolerance_ns):
                log_, rec_, more = _in_order(log_, rec_, apart, at)
                close += more
            if len(close) == len(found[2]):
                found = log_, rec_, close
        left_log += found[0]
        left_rec += found[1]
        found_pairs += found[2]
    return left_log, left_rec, found_pairs


def _in_order(
    ones: Sequence[Served], others: Sequence[Served], tolerance_ns: int, at: Callable[[Served], tuple[int, int]]
) -> tuple[list[Served], list[Served], list[tuple[Served, Served]]]:
    left_log: list[Served] = []
    left_rec: list[Served] = []
    found_pairs: list[tuple[Served, Served]] = []
    i = j = 0
    while i < len(ones) and j < len(others):
        moment = at(others[j])[0]
        if ones[i].last_ns + tolerance_ns < moment:
            left_log.append(ones[i])
            i += 1
        elif moment < ones[i].first_ns - tolerance_ns:
            left_rec.append(others[j])
            j += 1
        else:
            found_pairs.append((ones[i], others[j]))
            i, j = i + 1, j + 1
    return [*left_log, *ones[i:]], [*left_rec, *others[j:]], found_pairs
