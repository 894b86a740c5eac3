"""The panels, each once: what it shows, of which documents.

Titles are what on-call reads under stress, so they say what is counted; descriptions say how, and which window. "Meant"
is what was due by the plan, shed shots too; what was not sent stands beside it, never hidden in it.
"""

from __future__ import annotations

from collections.abc import Iterator

from analytics.fields import NAME
from analytics.kibana import lens, vega
from analytics.kibana.beside import beside_panels
from analytics.kibana.latency import latency_panels
from analytics.kibana.lens import Layer
from analytics.kibana.objects import SavedObject
from analytics.kibana.reading import ANSWERED, BAD, GONE, LOAD, LOST, MEANT, STEP, STRESS, WORSE, Views, key, views


def panels(name: str = NAME) -> dict[str, SavedObject]:
    """All panels by their short names; the ids begin with the name of the indices."""
    v = views(name)
    made = [*_numbers(v, name), *_load(v, name), *latency_panels(v, name), *_failures(v, name), *_tables(v, name)]
    made += beside_panels(v, name)
    return {panel.id.removeprefix(f"{name}-panel-"): panel for panel in made}


def _numbers(v: Views, name: str) -> Iterator[SavedObject]:
    def one(short: str, title: str, description: str, *columns: lens.Column, color: str = "") -> SavedObject:
        layer = Layer(v.totals if short == "highest-p95" else v.routes, columns)
        return lens.metric(key(name, short), title, description, layer, STRESS, color=color)

    r = v.routes
    yield one("meant", "Meant", "Shots that were due, shed ones too.", lens.total(r, "livefire.offered", "meant"))
    yield one("answered", "Answered", "Whatever the status.", lens.total(r, "livefire.completed", "answered"))
    yield one(
        "errors",
        "Errors",
        "Failed, or a status of 500 or more.",
        lens.total(r, "livefire.errors", "errors"),
        lens.total(r, "livefire.failed", "of them without an answer"),
        color=BAD,
    )
    yield vega.number(
        key(name, "error-share"),
        "Error share",
        "All errors over all that finished: a sum over a sum.",
        r,
        {"stress": vega.all_of_kind(r, "stress", vega.sums(r, "errors", "completed", "failed"))},
        "stress.buckets",
        name="error share",
        value=vega.share("errors", "completed", "failed"),
    )
    yield one(
        "not-sent",
        "Shed",
        "Due and not sent; small: claimed before a worker died, may or may not have been sent.",
        lens.total(r, "livefire.shed", "shed"),
        lens.total(r, "livefire.unknown", "unknown"),
        color=LOST,
    )
    yield one(
        "highest-p95",
        "Highest p95 (ms)",
        "The p95 of the slowest 10 s window, all routes together, from when shots were due.",
        lens.highest(v.totals, "livefire.p95_ms", "highest p95 of a window"),
        lens.highest(v.totals, "livefire.max_ms", "longest"),
    )


def _load(v: Views, name: str) -> Iterator[SavedObject]:
    r = v.routes
    yield lens.xy(
        key(name, "load"),
        "Load: meant and answered per second, and the step",
        "Sums of the windows over their length. A gap between the lines is traffic that was not sent, or not answered.",
        [
            Layer(
                r,
                (
                    lens.over_time(r),
                    lens.total(r, "livefire.offered", "meant /s", per_second=True),
                    lens.total(r, "livefire.completed", "answered /s", per_second=True),
                ),
                colors=(MEANT, ANSWERED),
            ),
            Layer(
                r,
                (
                    lens.over_time(r),
                    lens.highest(r, "livefire.step", "step (the first is 0)"),
                    lens.highest(r, "livefire.copies", "load (copies of the recording)"),
                ),
                right=True,
                colors=(STEP, LOAD),
            ),
        ],
        STRESS,
        axes=("per second", "step, load"),
    )
    yield lens.xy(
        key(name, "lost"),
        "Traffic lost: shed, unknown, failed per second",
        "Shed: not sent. Unknown: a worker died between claim and outcome. Failed: sent, and no answer came.",
        [
            Layer(
                r,
                (
                    lens.over_time(r),
                    lens.total(r, "livefire.shed", "shed /s", per_second=True),
                    lens.total(r, "livefire.unknown", "unknown /s", per_second=True),
                    lens.total(r, "livefire.failed", "failed /s", per_second=True),
                ),
                series="bar_stacked",
                colors=(LOST, GONE, WORSE),
            )
        ],
        STRESS,
        axes=("per second", ""),
    )
    yield lens.xy(
        key(name, "bytes"),
        "Bytes per second",
        "Bodies that came, and what was sent.",
        [
            Layer(
                r,
                (
                    lens.over_time(r),
                    lens.total(r, "livefire.bytes_in", "in /s", per_second=True),
                    lens.total(r, "livefire.bytes_out", "out /s", per_second=True),
                ),
            )
        ],
        STRESS,
        axes=("bytes per second", ""),
    )


def _failures(v: Views, name: str) -> Iterator[SavedObject]:
    r = v.routes
    errors = lens.total(r, "livefire.errors", "errors")
    yield lens.xy(
        key(name, "errors-by-route"),
        "Errors by route",
        "Failed, or a status of 500 or more, in each 10 s window; the ten routes with the most.",
        [
            Layer(
                r,
                (lens.by(r, "livefire.route", "route", errors, size=10), lens.over_time(r), errors),
                series="bar_stacked",
            )
        ],
        STRESS,
        axes=("errors", ""),
    )
    yield lens.xy(
        key(name, "wrong"),
        "Failed, errors, differing answers per second",
        "Errors hold the failed ones. Differing: the answer is not like the recorded one.",
        [
            Layer(
                r,
                (
                    lens.over_time(r),
                    lens.total(r, "livefire.failed", "failed /s", per_second=True),
                    lens.total(r, "livefire.errors", "errors /s", per_second=True),
                    lens.total(r, "livefire.differing", "differing /s", per_second=True),
                ),
                colors=(WORSE, BAD, GONE),
            )
        ],
        STRESS,
        axes=("per second", ""),
    )
    yield vega.lines(
        key(name, "error-share-over-time"),
        "Error share of each 10 s window",
        "Errors over all that finished, a sum over a sum.",
        r,
        {
            "stress": vega.of_kind(
                r, "stress", {"windows": vega.each_window(r, vega.sums(r, "errors", "completed", "failed"))}
            )
        },
        "stress.windows.buckets",
        values={"error share": vega.share("errors", "completed", "failed")},
        axis="share",
        colors=(BAD,),
        shown=".1%",
    )


def _tables(v: Views, name: str) -> Iterator[SavedObject]:
    r, e = v.routes, v.exemplars
    meant = lens.total(r, "livefire.offered", "meant")
    measures = (
        meant,
        lens.total(r, "livefire.completed", "answered"),
        lens.total(r, "livefire.failed", "failed"),
        lens.total(r, "livefire.errors", "errors"),
        lens.total(r, "livefire.shed", "shed"),
        lens.total(r, "livefire.unknown", "unknown"),
        lens.total(r, "livefire.differing", "differing"),
        lens.highest(r, "livefire.p50_ms", "highest p50 ms"),
        lens.highest(r, "livefire.p95_ms", "highest p95 ms"),
        lens.highest(r, "livefire.p99_ms", "highest p99 ms"),
        lens.highest(r, "livefire.max_ms", "longest ms"),
    )
    yield lens.rows(
        key(name, "routes"),
        "Routes",
        "Counts of all windows; latencies of the route's slowest 10 s window.",
        Layer(r, (lens.by(r, "livefire.route", "route", meant, size=100), *measures)),
        STRESS,
    )
    yield lens.rows(
        key(name, "steps"),
        "Steps",
        "Windows by the highest step with a part in them (the first is 0, -1 is outside of any).",
        Layer(
            r,
            (
                lens.by(r, "livefire.step", "step", meant, size=50),
                lens.highest(r, "livefire.copies", "load (copies)"),
                *measures,
            ),
        ),
        STRESS,
    )
    count = lens.records("exemplars")
    yield lens.rows(
        key(name, "exemplars"),
        "Exemplars: single shots that failed or were slow",
        "By route and by what went wrong; without an error type it was answered, slowly. Open them in Discover.",
        Layer(
            e,
            (
                lens.by(e, "livefire.route", "route", count, size=20),
                lens.by(e, "error.type", "error", count, size=10, absent=True),
                count,
                lens.highest(e, "livefire.latency_ms", "longest ms"),
            ),
        ),
        STRESS,
    )
