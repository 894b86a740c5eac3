"""What documents of windows and exemplars hold: the one list, of which templates, Kibana objects and docs are made.

Names are ECS where ECS has one, else `livefire.*`. `additive` fields may be summed over routes, steps, runs and kinds,
and over time inside one tumbling series; all others may not be summed at all.
"""

from __future__ import annotations

from typing import Final

import msgspec

NAME: Final = "livefire"  # what names of indices begin with, unless another is asked for


class Field(msgspec.Struct, frozen=True):
    name: str
    type: str  # as Elasticsearch calls it
    meaning: str
    unit: str = ""  # "" = none, or a count; ms, ns, bytes, 1/s, s, share (0..1)
    additive: bool = False
    optional: bool = False  # only where the server takes the type


class Series(msgspec.Struct, frozen=True):
    """Windows of one length and distance; each series has its own indices."""

    name: str  # value of livefire.window
    every_s: int
    over_s: int
    default: bool = False  # the one that a sum may go over without any filter

    @property
    def tumbling(self) -> bool:
        return self.every_s == self.over_s


#: The windows that are kept. The first is what Kibana opens with.
SERIES: Final = (
    Series("tumbling_10s", 10, 10, default=True),
    Series("tumbling_1m", 60, 60),
    Series("tumbling_10m", 600, 600),
    Series("sliding_60s_5s", 5, 60),
)


def base_of(series: Series, *, all_routes: bool = False, name: str = NAME) -> str:
    """What names of a series' indices begin with, before the day: `livefire-windows-tumbling-10s`.

    Rows of all routes together stand in `...-totals-...`: no pattern of rows per route matches them.
    """
    return f"{name}-{'totals' if all_routes else 'windows'}-{series.name.replace('_', '-')}"


def pattern_of(series: Series, *, all_routes: bool = False, name: str = NAME) -> str:
    """The pattern of a series' indices: what a data view, a query or a template names."""
    return base_of(series, all_routes=all_routes, name=name) + "-*"


def exemplars_of(name: str = NAME) -> str:
    """The data stream of exemplars."""
    return f"{name}-exemplars"


_PERCENTILES: Final = ("p50", "p90", "p95", "p99")

#: Of a window's document.
WINDOW_FIELDS: Final = (
    Field("@timestamp", "date", "where the window begins"),
    Field("event.kind", "keyword", "always `metric`"),
    Field("event.start", "date", "where the window begins; the same as @timestamp"),
    Field("event.end", "date", "where it ends, exclusive"),
    Field("event.duration", "long", "its length", "ns"),
    Field("service.name", "keyword", "what is drilled, as the aggregator was told"),
    Field("http.request.method", "keyword", "the route's method; null for all routes together"),
    Field("livefire.run_id", "keyword", "the run; of a recording that is followed for itself, its name"),
    Field("livefire.kind", "keyword", "stress, production or canary"),
    Field("livefire.route", "keyword", "`GET /orders/{id}`; `*` = all routes together, only in the totals' indices"),
    Field("livefire.step", "integer", "index of the highest step with a part in the window, from 0; -1 = none"),
    Field("livefire.window", "keyword", "the series: " + ", ".join(series.name for series in SERIES)),
    Field("livefire.over_s", "integer", "length of the window", "s"),
    Field("livefire.elapsed_s", "long", "from the run's start to where the window begins", "s"),
    Field("livefire.speed", "double", "how often faster than recorded the run fired; null for production"),
    Field("livefire.copies", "double", "how many copies of the recording the run fired; null for production"),
    Field("livefire.final", "boolean", "nothing can be added to this window any more"),
    Field("livefire.revision", "long", "grows each time the document is written again"),
    Field("livefire.count", "long", "requests that were answered in the window; the same as completed", "", True),
    Field("livefire.offered", "long", "shots that were due in the window, shed ones too", "", True),
    Field("livefire.completed", "long", "answered in the window, whatever the status", "", True),
    Field("livefire.failed", "long", "sent, and ended in the window without an answer", "", True),
    Field("livefire.errors", "long", "failed, or answered with a status of 500 or more", "", True),
    Field("livefire.shed", "long", "not sent, of those due in the window", "", True),
    Field("livefire.unknown", "long", "claimed before a worker died, may or may not have been sent", "", True),
    Field("livefire.differing", "long", "answers that differ from the recorded ones", "", True),
    Field("livefire.bytes_out", "long", "sent", "bytes", True),
    Field("livefire.bytes_in", "long", "of the answers' bodies", "bytes", True),
    Field("livefire.offered_rate", "double", "offered, per second of the window", "1/s"),
    Field("livefire.completed_rate", "double", "completed, per second of the window", "1/s"),
    Field("livefire.error_share", "double", "errors among completed and failed; null when there are none", "share"),
    *(
        Field(
            f"livefire.{name}_ms",
            "double",
            f"latency from when it was due, {name}; null where there are too few to tell",
            "ms",
        )
        for name in _PERCENTILES
    ),
    Field("livefire.max_ms", "double", "latency from when it was due, the longest; null when there is none", "ms"),
    *(
        Field(f"livefire.send_{name}_ms", "double", f"latency from when it was sent, {name}; null likewise", "ms")
        for name in _PERCENTILES
    ),
    Field("livefire.latencies_ms", "histogram", "latencies from when it was due, all of them", "ms", True, True),
)

#: Of an exemplar's document: one slow or failed shot, masked.
EXEMPLAR_FIELDS: Final = (
    Field("@timestamp", "date", "when it was due"),
    Field("event.kind", "keyword", "always `event`"),
    Field("event.outcome", "keyword", "success, failure, or unknown (never sent, or nobody knows)"),
    Field("event.start", "date", "when it was due; the same as @timestamp"),
    Field("event.end", "date", "when it was done; null when it never was"),
    Field("event.duration", "long", "from due to done; null when it never was done", "ns"),
    Field("service.name", "keyword", "what is drilled, as the aggregator was told"),
    Field("error.type", "keyword", "connect, timeout, reset and so on; null for an answer"),
    Field("http.request.method", "keyword", "of the request"),
    Field("http.request.bytes", "long", "sent", "bytes"),
    Field("http.response.status_code", "integer", "null when there was no answer"),
    Field("http.response.bytes", "long", "of the answer's body", "bytes"),
    Field("url.original", "keyword", "the request's target, masked"),
    Field("url.path", "keyword", "its path, masked"),
    Field("livefire.run_id", "keyword", "the run"),
    Field("livefire.kind", "keyword", "stress, production or canary"),
    Field("livefire.route", "keyword", "`GET /orders/{id}`"),
    Field("livefire.step", "integer", "index of the step, from 0; -1 = none"),
    Field("livefire.exchange_id", "keyword", "of the recorded exchange, in hex"),
    Field("livefire.copy", "integer", "which copy of it"),
    Field("livefire.lap", "integer", "which lap of the recording"),
    Field("livefire.worker", "keyword", "who fired it"),
    Field("livefire.verdict", "keyword", "how the answer differs from the recorded one; null when not compared"),
    Field("livefire.latency_ms", "double", "from due to done; null when it never was done", "ms"),
    Field("livefire.send_latency_ms", "double", "from sent to done; null likewise", "ms"),
    Field("livefire.request_head", "keyword", "as it was sent, masked; kept, not searched"),
    Field("livefire.response_head", "keyword", "as it came, masked; kept, not searched"),
)
