"""Latency panels. Nothing is averaged: a point is one window's own percentile, or the highest of some, and says so."""

from __future__ import annotations

from collections.abc import Iterator

from analytics.kibana import lens, vega
from analytics.kibana.lens import Layer
from analytics.kibana.objects import SavedObject
from analytics.kibana.reading import ANSWERED, LATENCIES, STRESS, WORSE, Views, key


def latency_panels(v: Views, name: str) -> Iterator[SavedObject]:
    t, s, r = v.totals, v.sliding, v.routes
    measured = vega.highest(t, "p50_ms", "p95_ms", "p99_ms")
    three = {"p50": "datum.p50_ms.value", "p95": "datum.p95_ms.value", "p99": "datum.p99_ms.value"}
    yield vega.lines(
        key(name, "latency"),
        "Latency: p50, p95, p99 of each 10 s window",
        "All routes together, from when shots were due. A point is one window's own percentile; nothing is averaged. "
        "Where there are too few answers for a percentile there is no point.",
        t,
        {"stress": vega.of_kind(t, "stress", {"windows": vega.each_window(t, measured)})},
        "stress.windows.buckets",
        values=three,
        axis="ms",
        colors=LATENCIES,
    )
    ended = vega.each_window(s, measured, every_s=5, at="event.end")
    yield vega.lines(
        key(name, "last-minute"),
        "Latency: p50, p95, p99 of the last 60 s, every 5 s",
        "Sliding windows, each drawn where it ends, once nothing can be added to it: what a guard that looks back one "
        "minute sees.",
        s,
        {"stress": vega.of_kind(s, "stress", {"whole": vega.whole(s, {"windows": ended})})},
        "stress.whole.windows.buckets",
        values=three,
        axis="ms",
        colors=LATENCIES,
    )
    yield vega.points(
        key(name, "knee"),
        "Latency over load: a point a window",
        "Where the cloud bends upward is the knee. Each point is one 10 s window of all routes together.",
        t,
        {
            "stress": vega.of_kind(
                t,
                "stress",
                {"windows": vega.each_window(t, {**vega.sums(t, "completed"), **vega.highest(t, "p95_ms", "step")})},
            )
        },
        "stress.windows.buckets",
        values={
            "answered per second": f"datum.completed.value / {t.over_s}",
            "p95 ms": "datum.p95_ms.value",
            "step": "datum.step.value",
        },
        axes=("answered per second", "p95 of the window, ms"),
    )
    p95 = lens.highest(r, "livefire.p95_ms", "p95 ms")
    yield lens.xy(
        key(name, "latency-by-route"),
        "p95 of each 10 s window, by route (ms)",
        "The eight routes with the slowest window, from when shots were due.",
        [Layer(r, (lens.by(r, "livefire.route", "route", p95, size=8), lens.over_time(r), p95))],
        STRESS,
        axes=("ms", ""),
    )
    yield vega.lines(
        key(name, "latency-of-route"),
        "Latency of the route: p50, p95, p99 of each 10 s window",
        "Choose a route above. Of several routes each point is the slowest one's; nothing is averaged.",
        r,
        {"stress": vega.of_kind(r, "stress", {"windows": vega.each_window(r, vega.highest(r, *measured))})},
        "stress.windows.buckets",
        values=three,
        axis="ms",
        colors=LATENCIES,
    )
    yield lens.xy(
        key(name, "due-and-sent"),
        "p95 from when it was due, and from when it was sent (ms)",
        "The gap is time that shots waited before they left. Of several routes the slowest one's.",
        [
            Layer(
                r,
                (
                    lens.over_time(r),
                    lens.highest(r, "livefire.p95_ms", "from due"),
                    lens.highest(r, "livefire.send_p95_ms", "from sent"),
                ),
                colors=(WORSE, ANSWERED),
            )
        ],
        STRESS,
        axes=("ms", ""),
    )
