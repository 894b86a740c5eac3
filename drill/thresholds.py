"""Thresholds: one line each, as people say them.

    p95 < 400ms over 4s                       all routes together, judged all the time: the guard stops the load
    route "GET /orders/{id}" p90 < 1s over 5s
    production p90 < 600ms over 5s            the real users, beside the stress
    errors < 2% over 5s                       failed, or a status of 500 and more, among the finished
    oldest open < 3s                          the age of the oldest shot without an answer: a target that hangs
    p99 < 2s                                  without `over`: judged a step at a time, when the load is over

A percentile is judged on 10 / (1 - p) samples or more (p90 100, p95 200, p99 1000), a share of errors on 20;
otherwise the answer is "not enough samples", which is neither passed nor failed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

import msgspec

from analytics.windows import ALL_ROUTES, Scope, Tally
from wire.config import ConfigError, duration_ns, suggestion
from wire.records import Kind

ENOUGH_FINISHED: Final = 20  # for a share of errors
_WORDS: Final = ["production", "route", "errors", "oldest open", "differing", "max", "p50", "p90", "p95", "p99", "over"]
_LINE: Final = re.compile(
    r"""\s*(?:(?P<source>production|stress)\s+)?
        (?:route\s+(?P<quote>["'])(?P<route>.+?)(?P=quote)\s+)?
        (?P<metric>oldest\s+open|[A-Za-z][\w.]*)\s*
        (?P<op><=?|>=?|=+)\s*
        (?P<limit>\d[\d.]*\s*(?:%|[A-Za-z]*))
        (?:\s+over\s+(?P<over>\S+))?\s*""",
    re.VERBOSE,
)


class Source(StrEnum):
    STRESS = "stress"
    PRODUCTION = "production"


class Threshold(msgspec.Struct, frozen=True):
    """`limit` is in ns for latencies and ages, a share 0..1 for errors and differing."""

    text: str
    source: Source
    route: str  # ALL_ROUTES, or one
    metric: str  # p95, max, errors, differing, "oldest open"
    limit: float
    inclusive: bool  # <= rather than <
    over_s: int  # 0 = judged a step at a time, at the end

    @property
    def quantile(self) -> float | None:
        return float(self.metric[1:]) / 100 if self.metric[0] == "p" else None

    @property
    def is_share(self) -> bool:
        return self.metric in ("errors", "differing")

    @property
    def guards(self) -> bool:
        """The guard stops the load for it."""
        return self.over_s > 0 or self.metric == "oldest open"

    @property
    def scope(self) -> Scope:
        return (Kind(self.source.value), self.route)

    @property
    def samples_needed(self) -> int:
        q = self.quantile
        return round(10 / (1 - q)) if q is not None else ENOUGH_FINISHED if self.is_share else 1

    def shown(self, value: float) -> str:
        return f"{value:.1%}" if self.is_share else shown_ns(value)


class Grade(StrEnum):
    PASS = "pass"
    FAIL = "fail"
    UNKNOWN = "not enough samples"


class Judgement(msgspec.Struct, frozen=True):
    threshold: Threshold
    grade: Grade
    value: float | None  # in the threshold's unit; None when unknown
    route: str = ALL_ROUTES  # when it failed: the worst route, which may be the threshold's own
    route_value: float | None = None

    def said(self) -> str:
        """`p95 < 400ms over 4s: 812 ms; worst: GET /slow 1.9 s`."""
        if self.value is None:
            return f"{self.threshold.text}: not enough samples"
        line = f"{self.threshold.text}: {self.threshold.shown(self.value)}"
        if self.grade is Grade.FAIL and self.route != ALL_ROUTES and self.threshold.route == ALL_ROUTES:
            line += f"; worst route: {self.route}"
            if self.route_value is not None:
                line += f" {self.threshold.shown(self.route_value)}"
        return line


def parse_threshold(text: str) -> Threshold:
    """Raises ConfigError with what was probably meant."""
    match = _LINE.fullmatch(text)
    if match is None:
        raise ConfigError(_what_was_meant(text))
    metric = re.sub(r"\s+", " ", match["metric"]).lower()
    if match["op"] not in ("<", "<="):
        raise ConfigError(
            f"threshold {text!r}: says what is healthy, so it is written with <: {metric} < {match['limit']}"
        )
    percentile = re.fullmatch(r"p(\d\d(?:\.\d+)?)", metric)
    if metric in ("errors", "differing"):
        limit = _share(match["limit"], text, metric)
    elif percentile or metric in ("max", "oldest open"):
        if match["limit"].endswith("%"):
            raise ConfigError(f"threshold {text!r}: {metric} is a time, as in {metric} < 400ms")
        limit = float(_at(text, match["limit"]))
    else:
        raise ConfigError(f"threshold {text!r}: unknown {metric!r}{suggestion(metric, _WORDS[2:-1])}")
    if percentile and not 0 < float(percentile[1]) < 100:
        raise ConfigError(f"threshold {text!r}: a percentile lies between p01 and p99.99")
    if limit <= 0 and match["op"] == "<":
        raise ConfigError(f"threshold {text!r}: nothing is below 0, so it would always fail")
    source = Source(match["source"] or "stress")
    if metric == "oldest open" and (match["route"] or source is Source.PRODUCTION or match["over"]):
        raise ConfigError(f"threshold {text!r}: 'oldest open' is of all stress shots, now: write oldest open < 3s")
    if metric == "differing" and source is Source.PRODUCTION:
        raise ConfigError(f"threshold {text!r}: production is not compared with a recording")
    return Threshold(
        text=" ".join(text.split()),
        source=source,
        route=match["route"] or ALL_ROUTES,
        metric=metric,
        limit=limit,
        inclusive=match["op"] == "<=",
        over_s=_over(match["over"], text) if match["over"] else 0,
    )


def _at(text: str, duration: str) -> int:
    try:
        return duration_ns(duration.replace(" ", ""))
    except ConfigError as error:
        hint = " (did you mean ms?)" if re.fullmatch(r"\d[\d.]*", duration.strip()) else ""
        raise ConfigError(f"threshold {text!r}: {error}{hint}") from None


def _over(duration: str, text: str) -> int:
    span = _at(text, duration)
    if span < 1_000_000_000 or span % 1_000_000_000 or span > 600_000_000_000:
        raise ConfigError(f"threshold {text!r}: 'over' is whole seconds, 1s to 600s")
    return span // 1_000_000_000


def _share(limit: str, text: str, metric: str) -> float:
    if not limit.endswith("%"):
        number = limit.strip()
        raise ConfigError(f"threshold {text!r}: {metric} are a share, as in {metric} < 2%; did you mean {number}%?")
    try:
        return float(limit.rstrip("% ")) / 100
    except ValueError:
        raise ConfigError(f"threshold {text!r}: {limit} is no share, as in {metric} < 2.5%") from None


def _what_was_meant(text: str) -> str:
    words = [word for word in re.findall(r"[A-Za-z][\w.]*", re.sub(r"([\"']).*?\1", "", text))]
    known = {"stress", "oldest", "open", *_WORDS, "ms", "s", "m", "h", "us", "ns"}
    for word in words:
        if word.lower() not in known and not re.fullmatch(r"p\d\d(\.\d+)?|\d.*", word.lower()):
            return f"threshold {text!r}: {word!r} is not understood{suggestion(word.lower(), _WORDS)}"
    if "route" in words and not re.search(r"route\s+[\"']", text):
        return f'threshold {text!r}: a route stands in quotes, as in route "GET /orders/{{id}}" p95 < 400ms over 5s'
    if "<" not in text:
        return f"threshold {text!r}: lacks a limit, as in p95 < 400ms over 5s"
    return f"threshold {text!r} is not understood; as in p95 < 400ms over 5s, errors < 2% over 5s, oldest open < 3s"


def judge(threshold: Threshold, found: Mapping[Scope, Tally]) -> Judgement:
    """Judge one span. `found` holds sums by kind and route, and of all routes, e.g. of `analytics.windows.tallies`."""
    tally = found.get(threshold.scope)
    value = measured(threshold, tally)
    if value is None:
        return Judgement(threshold, Grade.UNKNOWN, None)
    if fits(threshold, value):
        return Judgement(threshold, Grade.PASS, value)
    route, route_value = _worst(threshold, found)
    return Judgement(threshold, Grade.FAIL, value, route, route_value)


def judge_age(threshold: Threshold, oldest_open_ns: int) -> Judgement:
    grade = Grade.PASS if fits(threshold, oldest_open_ns) else Grade.FAIL
    return Judgement(threshold, grade, float(oldest_open_ns))


def fits(threshold: Threshold, value: float) -> bool:
    return value <= threshold.limit if threshold.inclusive else value < threshold.limit


def measured(threshold: Threshold, tally: Tally | None) -> float | None:
    """The value in the threshold's unit; None where there are too few samples."""
    if tally is None:
        return None
    if threshold.is_share:
        of = tally.finished if threshold.metric == "errors" else tally.completed
        count = tally.errors if threshold.metric == "errors" else tally.differing
        return count / of if of >= ENOUGH_FINISHED else None
    q = threshold.quantile
    if q is None:
        return float(tally.from_due.max_value) if tally.samples else None
    value = tally.quantile_ms(q)
    return None if value is None else value * 1e6


def _worst(threshold: Threshold, found: Mapping[Scope, Tally]) -> tuple[str, float | None]:
    """The route that is to blame: with the highest value; where no route has enough samples for it, the highest median
    weighed by how often it was asked for."""
    kind = threshold.scope[0]
    routes = {route: t for (k, route), t in found.items() if k is kind and route != ALL_ROUTES}
    if threshold.route != ALL_ROUTES:
        return threshold.route, measured(threshold, routes.get(threshold.route))
    if threshold.is_share:
        blamed = max(routes.items(), key=lambda item: item[1].errors + item[1].differing, default=None)
        return (blamed[0], measured(threshold, blamed[1])) if blamed else (ALL_ROUTES, None)
    values = {route: value for route, t in routes.items() if (value := measured(threshold, t)) is not None}
    slow = {route: t.from_due.total for route, t in routes.items()}
    if not slow:
        return ALL_ROUTES, None
    # The route that took most of the time is to blame, unless a measured one is slower at this very percentile.
    heaviest = max(slow, key=lambda route: slow[route])
    if values:
        slowest = max(values, key=lambda route: values[route])
        if values[slowest] >= threshold.limit:
            return slowest, values[slowest]
    return heaviest, values.get(heaviest)


def shown_ns(value: float) -> str:
    """`812 ms`, `1.9 s`."""
    if value >= 1e9:
        return f"{value / 1e9:.2f} s"
    return f"{value / 1e6:.0f} ms" if value >= 1e7 else f"{value / 1e6:.1f} ms"
