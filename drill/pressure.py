"""Pressure: which load holds when, and what it comes to in requests a second. Pure.

    load
     8x |                     ________
     4x |              ______|
     2x |       ______|
     1x |______|
        +------------------------------> t

A load is a multiple of *production's* rate. The recording holds `scale` of production (0 < scale <= 1), and is
fired `speed` times as fast as it was recorded, so

    requests/s = recorded rate * (1 / scale) * speed * load
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from analytics.windows import ALL_ROUTES
from drill.plan import Plan
from drill.thresholds import Source
from replay.recording import Survey
from wire.config import ConfigError, suggestion
from wire.records import RouteTable


class _Step(Protocol):
    @property
    def load(self) -> float: ...

    @property
    def for_ns(self) -> int: ...


class Level(msgspec.Struct, frozen=True):
    """A step in time: [start_ns, end_ns) since the beginning of the first. From `held_ns` on all of its load is on."""

    index: int
    load: float
    start_ns: int
    held_ns: int
    end_ns: int


class Pressure:
    """Steps one after another. Each begins with a ramp: a new copy of a session begins with its first request, so
    it takes about a session's length until all of a step's load is on. The step's own time counts from then.
    """

    def __init__(self, steps: Sequence[_Step], ramp_ns: int = 0) -> None:
        levels = []
        at = 0
        for index, step in enumerate(steps):
            held = at + ramp_ns
            levels.append(Level(index, step.load, at, held, held + step.for_ns))
            at = held + step.for_ns
        self.levels = tuple(levels)
        self.total_ns = at

    def at(self, elapsed_ns: int) -> Level | None:
        """The level that holds; None before the first and after the last."""
        for level in self.levels:
            if level.start_ns <= elapsed_ns < level.end_ns:
                return level
        return None


class Arithmetic(msgspec.Struct, frozen=True):
    """How much one load is. `factor` multiplies the recording; `rate` is in requests a second."""

    scale: float
    speed: float
    load: float
    recorded_rate: float

    @property
    def factor(self) -> float:
        return self.speed * self.load / self.scale

    @property
    def rate(self) -> float:
        return self.recorded_rate * self.factor

    @property
    def recording_load(self) -> float:
        """What workers are told: the multiple of the recording at its speed."""
        return self.load / self.scale

    def line(self) -> str:
        """`2.5 x 2 x 3 = 15x = 4,500 requests/s`: production over recording, speed, load."""
        product = " x ".join(_number(n) for n in (1 / self.scale, self.speed, self.load))
        rate = f"{self.rate:,.0f}" if self.rate >= 10 else f"{self.rate:,.1f}"
        return f"{product} = {_number(self.factor)}x = {rate} requests/s"


def arithmetic(*, scale: float, speed: float, load: float, recorded_rate: float) -> Arithmetic:
    """Raises ValueError unless 0 < scale <= 1, and speed, load, rate are positive."""
    if not 0 < scale <= 1:
        raise ValueError(f"a recording holds a share of production above 0 and at most 1, not {scale}")
    if min(speed, load, recorded_rate) <= 0:
        raise ValueError(f"speed {speed}, load {load} and rate {recorded_rate} must be positive")
    return Arithmetic(scale, speed, load, recorded_rate)


def _number(value: float) -> str:
    return f"{value:,.2f}".rstrip("0").rstrip(".")


def arithmetics(plan: Plan, survey: Survey) -> tuple[Arithmetic, ...]:
    """What each step comes to. Raises ConfigError where one is above the plan's cap."""
    recorded = survey.exchanges / (survey.lap_ns / 1e9)
    made = tuple(
        arithmetic(scale=survey.scale, speed=plan.speed, load=step.load, recorded_rate=recorded) for step in plan.steps
    )
    for index, step in enumerate(made):
        if step.rate > plan.caps.rate:
            raise ConfigError(
                f"{plan.source}: step {index + 1} comes to {step.line()}, above caps.rate {plan.caps.rate:,.0f}/s"
            )
    return made


def refuse_unknown_routes(plan: Plan, survey: Survey, table: RouteTable) -> None:
    """Raises ConfigError for a threshold of a route that nothing is fired at: it would never be judged. Of production
    the routes of the recording's table are known, too."""
    fired = list(survey.routes)
    seen = [*fired, *(route.name for route in table.routes)]
    for threshold in plan.thresholds:
        known = fired if threshold.source is Source.STRESS else seen
        if threshold.route != ALL_ROUTES and threshold.route not in known:
            raise ConfigError(
                f"{plan.source}: threshold {threshold.text!r}: the recording has no route {threshold.route!r}"
                f"{suggestion(threshold.route, known)}"
            )


def thin_thresholds(plan: Plan, survey: Survey, steps: tuple[Arithmetic, ...]) -> list[str]:
    """A line for each threshold of which a window cannot hold enough samples at the lowest load."""
    lines = []
    lowest = min(steps, key=lambda step: step.rate)
    for threshold in plan.thresholds:
        rate = lowest.rate if threshold.source is Source.STRESS else lowest.recorded_rate
        share = 1.0 if threshold.route == ALL_ROUTES else survey.routes.get(threshold.route, 0) / survey.exchanges
        expected = threshold.over_s * rate * share
        if threshold.over_s and expected < threshold.samples_needed:
            lines.append(
                f"{threshold.text}: needs {threshold.samples_needed} samples, about {expected:.0f} come at "
                f"{lowest.load:g}x: there it is judged on the whole step"
            )
    return lines


def share_of_open(most: int, workers: int) -> int:
    """How many shots each of so many workers may have open, that they do not exceed the plan's cap together."""
    return max(most // workers, 1)
