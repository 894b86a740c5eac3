"""`python tests/stepped_clock.py STEPS COMMAND...`: a `livefire` command on a machine whose wall clock is set meanwhile.

Nobody's clock is touched: what this process is told of the wall clock, by Python and by the stamps of packets in a ring,
is ahead by the steps that came before that instant. STEPS is a file that grows, a line a step: when (unix ns by the true
clock), and by how much (ns; below 0: back).
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this tree, whatever is installed

from capture import source_ring
from livefire.__main__ import main

_LOOK_S = 0.01

_true_ns: Callable[[], int] = time.time_ns
_steps: list[tuple[int, int]] = []


def _ahead_ns(at_ns: int) -> int:
    """How far the clock that was set is ahead at this instant of the true one."""
    return sum(step_ns for begin_ns, step_ns in _steps if begin_ns <= at_ns)


def _now_ns() -> int:
    now_ns = _true_ns()
    return now_ns + _ahead_ns(now_ns)


def _clock_ns(clock: int, _get: Callable[[int], int] = time.clock_gettime_ns) -> int:
    return _now_ns() if clock == time.CLOCK_REALTIME else _get(clock)


class _Header:
    """Of a frame in the ring: its stamp by the clock that was set."""

    def __init__(self) -> None:
        self._get = source_ring._PACKET.unpack_from

    def unpack_from(self, ring: bytes, at: int) -> tuple[int, ...]:
        step, s, ns, *others = self._get(ring, at)
        at_ns = s * 1_000_000_000 + ns
        return step, *divmod(at_ns + _ahead_ns(at_ns), 1_000_000_000), *others


def _follow(path: Path) -> None:
    while True:
        lines = path.read_text().splitlines(keepends=True)
        told = [line.split() for line in lines if line.endswith("\n")]
        for at_ns, step_ns in told[len(_steps) :]:
            _steps.append((int(at_ns), int(step_ns)))
        time.sleep(_LOOK_S)


def _set_the_clock(path: Path) -> None:
    time.time_ns = _now_ns
    time.time = lambda: _now_ns() / 1e9
    time.clock_gettime_ns = _clock_ns
    source_ring._PACKET = _Header()  # type: ignore[assignment]
    threading.Thread(target=_follow, args=(path,), daemon=True).start()


if __name__ == "__main__":
    _set_the_clock(Path(sys.argv.pop(1)))
    main()
