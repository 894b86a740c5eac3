"""Windows, exemplars and source ranges as documents: what is in them, what they are called, where they stand. Pure.

A window's document is named by what it is about, and its revision is a figure of its content: so writing it again,
by whoever and however often, changes nothing, and the older never overwrites the newer. Keys are `analytics.fields`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, Final

import msgspec

from analytics.fields import NAME, Series, base_of, exemplars_of
from analytics.panes import NS
from analytics.windows import ALL_ROUTES, SHOWN, Tally, Window
from wire.head import method_of, target_of
from wire.records import Exemplar, Failure, Kind, Pane, Sketch, SourceRange, Verdict
from wire.sketch import value_of

_KEPT_HEAD: Final = 16_384  # characters of a head that are kept


class RunFacts(msgspec.Struct, frozen=True):
    """What windows say of the run as a whole. `loads`: the load of each step, in copies of the recording."""

    service: str = "livefire"
    speed: float | None = None
    loads: Mapping[int, float] = {}


class Document(msgspec.Struct, frozen=True):
    """`version` None: it is created, and never changes."""

    index: str
    id: str
    source: dict[str, Any]
    version: int | None = None


def window_document(
    window: Window, series: Series, facts: RunFacts, *, name: str = NAME, histograms: bool = False
) -> Document:
    """A window as it is indexed, in the index of the day (UTC) it begins in."""
    t, stress = window.tally, window.kind is not Kind.PRODUCTION
    all_routes = window.route == ALL_ROUTES
    start, end = iso(window.start_s * NS), iso(window.end_s * NS)
    version = revision(window)
    source: dict[str, Any] = {
        "@timestamp": start,
        "event.kind": "metric",
        "event.start": start,
        "event.end": end,
        "event.duration": window.over_s * NS,
        "service.name": facts.service,
        "http.request.method": None if all_routes else window.route.partition(" ")[0],
        "livefire.run_id": window.run_id,
        "livefire.kind": window.kind.value,
        "livefire.route": window.route,
        "livefire.step": window.step,
        "livefire.window": series.name,
        "livefire.over_s": window.over_s,
        "livefire.elapsed_s": window.elapsed_s,
        "livefire.speed": facts.speed if stress else None,
        "livefire.copies": facts.loads.get(window.step) if stress else None,
        "livefire.final": window.final,
        "livefire.revision": version,
        "livefire.count": t.completed,
        "livefire.offered": t.offered,
        "livefire.completed": t.completed,
        "livefire.failed": t.failed,
        "livefire.errors": t.errors,
        "livefire.shed": t.shed,
        "livefire.unknown": t.unknown,
        "livefire.differing": t.differing,
        "livefire.bytes_out": t.bytes_out,
        "livefire.bytes_in": t.bytes_in,
        "livefire.offered_rate": t.offered / window.over_s,
        "livefire.completed_rate": t.completed / window.over_s,
        "livefire.error_share": t.error_share,
        "livefire.max_ms": t.max_ms,
    }
    for label, q in SHOWN:
        source[f"livefire.{label}_ms"] = t.quantile_ms(q)
        source[f"livefire.send_{label}_ms"] = t.quantile_ms(q, from_send=True)
    if histograms and t.samples:
        source["livefire.latencies_ms"] = histogram(t.from_due)
    index = f"{base_of(series, all_routes=all_routes, name=name)}-{day(window.start_s)}"
    return Document(index, window_id(window, series), source, version)


def window_id(window: Window, series: Series) -> str:
    """Run, kind, series, start and route, the last as a digest: an id may not be longer than 512 bytes."""
    return ".".join(
        (window.run_id, window.kind.value, series.name, str(window.start_s), digest_of(window.route.encode()))
    )


def revision(window: Window) -> int:
    """Grows with whatever is added to a window, as each outcome is offered once and ends at most once; and once more
    when the window is final."""
    t: Tally = window.tally
    return 2 * (t.offered + t.completed + t.failed) + window.final


def histogram(sketch: Sketch) -> dict[str, list[float] | list[int]]:
    """As the field type takes it: ms, ascending, and how many of each."""
    values = [0.0] * (sketch.zero > 0) + [value_of(index) / 1e6 for index in sketch.indexes]
    return {"values": values, "counts": [sketch.zero] * (sketch.zero > 0) + list(sketch.counts)}


def exemplar_document(exemplar: Exemplar, facts: RunFacts, *, name: str = NAME) -> Document:
    """A slow or failed shot as it is indexed. Its heads are masked already, where they were kept."""
    o = exemplar.outcome
    due, answered = iso(o.due_ns), o.failure is Failure.NONE
    done = bool(o.done_ns)
    target = _text(target_of(exemplar.request_head))
    never = o.failure is Failure.UNKNOWN or o.failure.value.startswith("shed")
    source: dict[str, Any] = {
        "@timestamp": due,
        "event.kind": "event",
        "event.outcome": "unknown" if never else "success" if answered and o.status < 500 else "failure",
        "event.start": due,
        "event.end": iso(o.done_ns) if done else None,
        "event.duration": o.done_ns - o.due_ns if done else None,
        "service.name": facts.service,
        "error.type": None if answered else o.failure.value,
        "http.request.method": _text(method_of(exemplar.request_head)) or o.route.partition(" ")[0],
        "http.request.bytes": o.bytes_out,
        "http.response.status_code": o.status or None,
        "http.response.bytes": o.bytes_in,
        "url.original": target or None,
        "url.path": target.partition("?")[0] or None,
        "livefire.run_id": o.run_id,
        "livefire.kind": o.kind.value,
        "livefire.route": o.route,
        "livefire.step": o.step,
        "livefire.exchange_id": o.exchange_id.hex(),
        "livefire.copy": o.copy,
        "livefire.lap": o.lap,
        "livefire.worker": o.worker,
        "livefire.verdict": None if o.verdict is Verdict.NONE else o.verdict.value,
        "livefire.latency_ms": (o.done_ns - o.due_ns) / 1e6 if done else None,
        "livefire.send_latency_ms": (o.done_ns - o.sent_ns) / 1e6 if done and o.sent_ns else None,
        "livefire.request_head": _text(exemplar.request_head),
        "livefire.response_head": _text(exemplar.response_head),
    }
    shot = f"{o.run_id}\0{o.exchange_id.hex()}\0{o.copy}\0{o.lap}\0{o.step}\0{o.kind.value}\0{o.due_ns}"
    return Document(exemplars_of(name), digest_of(shot.encode()), source)


# ---------------------------------------------------------------------------- what the store itself goes by

_encode: Final = msgspec.json.Encoder().encode


def range_document(
    run_id: str, index: str, writer: str, number: int, panes: Sequence[Pane], sources: Sequence[SourceRange]
) -> Document:
    """All that one `apply` adds, in one document: so it is there whole or not at all.

    It is named by its writer and where the ranges begin: when it is sent again, it meets itself.
    """
    seconds = [pane.second for pane in panes]
    source = {
        "run": run_id,
        "writer": writer,
        "number": number,
        "first_s": min(seconds, default=None),
        "last_s": max(seconds, default=None),
        "sources": [[source.topic, source.partition, source.first, source.end] for source in sources],
        "panes": msgspec.Raw(_encode(panes)),
    }
    begins = "\0".join(f"{source.topic}\0{source.partition}\0{source.first}" for source in sources)
    return Document(index, digest_of(f"{run_id}\0{writer}\0{begins}".encode()), source)


def panes_of(source: Mapping[str, Any]) -> list[Pane]:
    """The panes of a range's document."""
    return msgspec.convert(source["panes"], list[Pane])


def ranges_of(source: Mapping[str, Any]) -> list[SourceRange]:
    return [SourceRange(*fields) for fields in source["sources"]]


# ---------------------------------------------------------------------------- words


def digest_of(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()


def day(second: int) -> str:
    """`2027.01.15`, UTC."""
    return datetime.fromtimestamp(second, UTC).strftime("%Y.%m.%d")


def iso(ns: int) -> str:
    """`2027-01-15T08:00:00.123Z`; to the millisecond, as the field type keeps it."""
    return datetime.fromtimestamp(ns // NS, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{ns % NS // 1_000_000:03d}Z"


def _text(data: bytes) -> str:
    return data[:_KEPT_HEAD].decode("utf-8", "replace").rstrip("\r\n")
