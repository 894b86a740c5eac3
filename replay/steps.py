"""The timeline of steps: which load is in force when. Made of Control STEP records, pure."""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import NamedTuple


class Step(NamedTuple):
    effective_ns: int
    number: int  # in the plan
    load: float  # multiple of the recording's rate, of all workers together


_NO_STEP = Step(0, -1, 0.0)


class Timeline:
    """Steps in the order of their effective times. Before the first one the load is 0.

    A step holds until the next one takes effect. A later record replaces everything that was announced
    from its own effective time on, so "step back now" wins over a step up that was announced for later.
    """

    def __init__(self) -> None:
        self._steps: list[Step] = []
        self._starts: list[int] = []
        self.ceiling = 0  # copies that the highest load ever announced may need

    @property
    def latest(self) -> Step:
        """The step that holds from its effective time on, as far as is known. A Step of load 0 before there is one."""
        return self._steps[-1] if self._steps else _NO_STEP

    @property
    def base_ns(self) -> int | None:
        """When the run's time begins: the first step's effective time; None before it is known."""
        return self._starts[0] if self._starts else None

    def add(self, step: Step) -> None:
        keep = bisect_right(self._starts, step.effective_ns - 1)
        if keep == 0 and self._starts:
            # The base is where due times count from; it cannot move once there is one.
            step = step._replace(effective_ns=self._starts[0])
        del self._steps[keep:], self._starts[keep:]
        self._steps.append(step)
        self._starts.append(step.effective_ns)
        self.ceiling = max(self.ceiling, math.ceil(step.load))

    def hold(self, at_ns: int) -> None:
        """Stay on the step in force at `at_ns`: what was announced for later is forgotten."""
        keep = max(bisect_right(self._starts, at_ns), 1)
        del self._steps[keep:], self._starts[keep:]

    def at(self, ns: int) -> Step | None:
        if self._starts and ns >= self._starts[-1]:
            return self._steps[-1]
        found = bisect_right(self._starts, ns)
        return self._steps[found - 1] if found else None

    def index_at(self, ns: int) -> int:
        """Number of the step in force; -1 = outside of any."""
        step = self.at(ns)
        return step.number if step else -1

    def load_at(self, ns: int) -> float:
        step = self.at(ns)
        return step.load if step else 0.0

    def lowest(self, first_ns: int, last_ns: int) -> float:
        """The lowest load in force at any instant of [first_ns, last_ns]."""
        begin = bisect_right(self._starts, first_ns)
        end = bisect_right(self._starts, last_ns)
        low = self._steps[begin - 1].load if begin else 0.0
        for step in self._steps[begin:end]:
            low = min(low, step.load)
        return low
