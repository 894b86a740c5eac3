"""The statements that make roll-ups of panes, and windows of both. Pure."""

from __future__ import annotations

from typing import Final

from analytics.clickhouse_rows import COUNT_SUMS, COUNTS, SKETCH_SUMS
from analytics.clickhouse_schema import SPANS

_MAPS: Final = ("dueMap.bucket", "dueMap.count", "sendMap.bucket", "sendMap.count")
_TOTALS: Final = ("due_zero", "due_total", "send_zero", "send_total")


def fold(run: str, start_s: int, inside: str) -> str:
    """One insert: slots of all spans made of the panes that are `inside`, and what ranges those were.

    It must be one block, for all of it to be there or nothing. So it is grouped in one piece (in two levels 18.16 would
    write a part for each of 256 buckets), and what a later server hands on in pieces is gathered before it is written.
    """
    sums = [*COUNTS, *_TOTALS]
    return f"""INSERT INTO rollups (run, span, kind, route, slot, step, class, source_topic, source_partition,
    source_first, source_end, folded, {", ".join(sums)}, due_max, send_max, {", ".join(_MAPS)})
SELECT run, span, kind, route, slot, step, class, t, p, min(f), max(e), count(),
    {", ".join(f"sum({name})" for name in sums)},
    maxState(due_max), maxState(send_max), sumMap(db, dc).1, sumMap(db, dc).2, sumMap(sb, sc).1, sumMap(sb, sc).2
FROM (
    SELECT run, toUInt32(x) AS span, kind, route, step, class,
        if(x = 0, toInt64(0), toInt64({start_s}) + toInt64(floor((second - {start_s}) / x)) * x) AS slot,
        if(kind = '', source_topic, '') AS t, if(kind = '', source_partition, '') AS p,
        if(kind = '', source_first, toUInt64(0)) AS f, if(kind = '', source_end, toUInt64(0)) AS e,
        {", ".join(sums)}, due_max, send_max,
        dueMap.bucket AS db, dueMap.count AS dc, sendMap.bucket AS sb, sendMap.count AS sc
    FROM panes ARRAY JOIN if(kind = '', [0], [{", ".join(map(str, SPANS))}]) AS x
    WHERE run = {run} AND {inside}
) GROUP BY run, span, kind, route, slot, step, class, t, p
SETTINGS group_by_two_level_threshold = 0, group_by_two_level_threshold_bytes = 0,
    min_insert_block_size_rows = 100000000, min_insert_block_size_bytes = 0"""


def slots(run: str, span: int, tail: str) -> str:
    """Rows of slots: panes (`tail` says which), and where `span` is not 0 the roll-ups of that span."""
    named = ", ".join(COUNTS)
    panes = (
        f"SELECT second, kind, route, step, class, {named}, due_zero, due_total, due_max, dueMap.bucket AS db, "
        "dueMap.count AS dc, send_zero, send_total, send_max, sendMap.bucket AS sb, sendMap.count AS sc "
        f"FROM panes WHERE run = {run} AND kind != '' AND {tail}"
    )
    if not span:
        return panes
    return (
        f"SELECT slot AS second, kind, route, step, class, {named}, due_zero, due_total, "
        "finalizeAggregation(due_max) AS due_max, dueMap.bucket AS db, dueMap.count AS dc, send_zero, send_total, "
        "finalizeAggregation(send_max) AS send_max, sendMap.bucket AS sb, sendMap.count AS sc "
        f"FROM rollups WHERE run = {run} AND span = {span} UNION ALL {panes}"
    )


def windows(source: str, every_s: int, over_s: int, start_s: int) -> str:
    """Rows for `clickhouse_rows.windows_of`: each slot is in every window that covers it, of its route and of all."""
    parts = -(-over_s // every_s)
    sketches = SKETCH_SUMS
    for which in ("due", "send"):
        sketches = sketches.replace(f"{which}Map.bucket", f"{which[0]}b").replace(f"{which}Map.count", f"{which[0]}c")
    return f"""SELECT k0 - back AS k, kind, scope, min(back), max(step), sumIf(errors, class = 0),
    {COUNT_SUMS}, {sketches}
FROM (
    SELECT *, part AS back FROM (SELECT *, toInt64(floor((second - {start_s}) / {every_s})) AS k0 FROM ({source}))
    ARRAY JOIN range({parts}) AS part
    WHERE second - {start_s} < (k0 - part) * {every_s} + {over_s}
) ARRAY JOIN ['*', route] AS scope
GROUP BY k, kind, scope"""
