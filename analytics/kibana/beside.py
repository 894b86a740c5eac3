"""Production beside stress: the same windows of both kinds of traffic."""

from __future__ import annotations

from collections.abc import Iterator

from analytics.kibana import lens, vega
from analytics.kibana.lens import Layer
from analytics.kibana.objects import SavedObject
from analytics.kibana.reading import BESIDE, PLAIN, PRODUCTION, STRESS, STRESSED, Views, key


def beside_panels(v: Views, name: str) -> Iterator[SavedObject]:
    r, t = v.routes, v.totals
    answered = lens.total(r, "livefire.completed", "answered /s", per_second=True)
    yield lens.xy(
        key(name, "load-by-kind"),
        "Answered per second: production and stress",
        "Sums of the windows over their length.",
        [Layer(r, (lens.by(r, "livefire.kind", "kind", answered, size=3), lens.over_time(r), answered))],
        BESIDE,
        axes=("per second", ""),
    )
    both = ("production", "stress")
    for q in ("p50", "p95", "p99"):
        yield vega.lines(
            key(name, f"{q}-by-kind"),
            f"{q} of each 10 s window: production and stress",
            "All routes together. A point is one window's own percentile; nothing is averaged.",
            t,
            {"windows": vega.each_window(t, {k: vega.of_kind(t, k, vega.highest(t, f"{q}_ms")) for k in both})},
            "windows.buckets",
            values={kind: f"datum.{kind}.{q}_ms.value" for kind in both},
            axis="ms",
            colors=(PLAIN, STRESSED),
        )
    finished = vega.sums(r, "errors", "completed", "failed")
    yield vega.lines(
        key(name, "error-share-by-kind"),
        "Error share of each 10 s window: production and stress",
        "Errors over all that finished, a sum over a sum.",
        r,
        {"windows": vega.each_window(r, {kind: vega.of_kind(r, kind, finished) for kind in both})},
        "windows.buckets",
        values={kind: vega.share(f"{kind}.errors", f"{kind}.completed", f"{kind}.failed") for kind in both},
        axis="share",
        colors=(PLAIN, STRESSED),
        shown=".1%",
    )
    stress = lens.only(lens.total(r, "livefire.completed", "stress answered /s", per_second=True), STRESS)
    yield lens.xy(
        key(name, "hurt"),
        "Does stress hurt production?",
        "Stress answered per second, and beside it production's own p95 of each window, all routes together.",
        [
            Layer(r, (lens.over_time(r), stress), series="area", colors=("#F3B8B0",)),
            Layer(
                t,
                (lens.over_time(t), lens.only(lens.highest(t, "livefire.p95_ms", "production p95 ms"), PRODUCTION)),
                right=True,
                colors=(PLAIN,),
            ),
        ],
        BESIDE,
        axes=("per second", "ms"),
    )
    done = lens.total(r, "livefire.completed", "answered")
    yield lens.rows(
        key(name, "routes-by-kind"),
        "Routes, production and stress",
        "Counts of all windows; latencies of the route's slowest 10 s window of that kind.",
        Layer(
            r,
            (
                lens.by(r, "livefire.route", "route", done, size=100),
                lens.by(r, "livefire.kind", "kind", done, size=3),
                done,
                lens.total(r, "livefire.errors", "errors"),
                lens.highest(r, "livefire.p50_ms", "highest p50 ms"),
                lens.highest(r, "livefire.p95_ms", "highest p95 ms"),
                lens.highest(r, "livefire.p99_ms", "highest p99 ms"),
            ),
        ),
        BESIDE,
    )
