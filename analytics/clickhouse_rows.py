"""Panes as columns of ClickHouse, and rows of its answers as panes and windows. Pure: no driver here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from analytics.store_port import StoreError
from analytics.windows import ALL_ROUTES, Tally, Window
from wire.records import Kind, Pane, Sketch, SourceRange
from wire.sketch import SCALE

SOURCE: Final = ("source_topic", "source_partition", "source_first", "source_end")
COUNTS: Final = ("offered", "completed", "errors", "shed", "unknown", "differing", "bytes_out", "bytes_in")
_SKETCHES: Final = tuple(
    f"{which}{part}" for which in ("due", "send") for part in ("_zero", "_total", "_max", "Map.bucket", "Map.count")
)
#: Of the table of panes, in the order in which `columns` gives them. `day` is the server's.
NAMES: Final = ("run", "kind", "route", "second", "step", "class", *SOURCE, *COUNTS, *_SKETCHES)

#: Sums of rows, whatever they are grouped by; `sketch_sums` in the order that `_sketch` reads.
COUNT_SUMS: Final = ", ".join(f"sum({name})" for name in COUNTS)
SKETCH_SUMS: Final = ", ".join(
    f"sum({w}_zero), sumMap({w}Map.bucket, {w}Map.count), max({w}_max), sum({w}_total)" for w in ("due", "send")
)


def literal(text: str) -> str:
    """A string as SQL has it."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def columns(run_id: str, panes: Sequence[Pane], sources: Sequence[SourceRange]) -> list[list[Any]]:
    """One list a name of NAMES: a row for each pane, which bears the first range, and one for each range.

    Raises StoreError for a pane of another run, or of another scale than sums are made of.
    """
    tag = sources[0] if sources else SourceRange("", "", 0, 0)
    found: list[tuple[Any, ...]] = [_row(run_id, pane, tag) for pane in panes]
    nothing = (0,) * len(COUNTS) + (0, 0, 0, (), ()) * 2
    for one in sources:
        found.append((run_id, "", "", 0, 0, 0, one.topic, one.partition, one.first, one.end, *nothing))
    return [list(column) for column in zip(*found, strict=True)]


def _row(run_id: str, pane: Pane, tag: SourceRange) -> tuple[Any, ...]:
    due, send = pane.from_due, pane.from_send
    if pane.run_id != run_id:
        raise StoreError(f"a pane of run {pane.run_id} among those of run {run_id}")
    if due.scale != SCALE or send.scale != SCALE:
        raise StoreError(
            f"run {run_id}: a sketch of another scale than {SCALE} cannot be added to those that are stored"
        )
    return (
        run_id, pane.kind.value, pane.route, pane.second, pane.step, pane.status_class,
        tag.topic, tag.partition, tag.first, tag.end,
        pane.offered, pane.completed, pane.errors, pane.shed, pane.unknown, pane.differing,
        pane.bytes_out, pane.bytes_in,
        due.zero, due.total, due.max_value, due.indexes, due.counts,
        send.zero, send.total, send.max_value, send.indexes, send.counts,
    )  # fmt: skip


def _sketch(zero: int, counted: Sequence[Sequence[int]], largest: int, total: int) -> Sketch:
    indexes, counts = counted
    return Sketch(SCALE, zero, tuple(indexes), tuple(counts), largest, total)


def pane_of(run_id: str, row: Sequence[Any]) -> Pane:
    """A row of (second, step, route, kind, class, COUNT_SUMS, SKETCH_SUMS)."""
    second, step, route, kind, status_class = row[:5]
    counts = dict(zip(COUNTS, row[5:13], strict=True))
    due, send = _sketch(*row[13:17]), _sketch(*row[17:21])
    return Pane(second, run_id, step, route, Kind(kind), status_class, **counts, from_due=due, from_send=send)


def windows_of(
    run_id: str, rows: Iterable[Sequence[Any]], *, every_s: int, over_s: int, start_s: int, watermark_s: int | None
) -> list[Window]:
    """Rows of (k, kind, route, nearest, step, failed, COUNT_SUMS, SKETCH_SUMS), in the order of `analytics.windows`.

    A row's `nearest` is 0 when something stands in the first `every_s` of its window; no window begins before the
    first of those.
    """
    held = list(rows)
    first_k = min((row[0] for row in held if row[3] == 0), default=0)
    found = []
    for row in sorted(held, key=lambda row: (row[0], row[1], row[2] != ALL_ROUTES, row[2])):
        k, kind, route, _, step, failed, *_ = row[:14]
        if k < first_k:
            continue
        first = start_s + k * every_s
        counts = dict(zip(COUNTS, row[6:14], strict=True))
        tally = Tally(**counts, failed=failed, from_due=_sketch(*row[14:18]), from_send=_sketch(*row[18:22]))
        final = watermark_s is not None and first + over_s <= watermark_s
        found.append(Window(run_id, Kind(kind), route, first, first + over_s, k * every_s, step, final, tally))
    return found


def within(regions: Mapping[tuple[str, str], tuple[int, int]]) -> str:
    """The condition that a row of panes bears a range that begins in one of these."""
    parts = (
        f"(source_topic = {literal(topic)} AND source_partition = {literal(partition)} "
        f"AND source_first >= {first} AND source_first < {end})"
        for (topic, partition), (first, end) in sorted(regions.items())
    )
    return "(" + (" OR ".join(parts) or "0") + ")"
