"""The files of analytics/schema, and which of them a database still lacks.

`NNN_*.sql` are applied once, in order, and recorded in `livefire_migrations`. A first line `-- since 20.3` leaves a
file to servers of that version or later; when a server is upgraded, what it could not take before is applied.
`windows.sql` is a template: made into one view for each series of `analytics.fields`, and again when its text changed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from importlib import resources
from string import Template
from typing import Any, Final

from analytics.fields import SERIES
from analytics.store_port import StoreError
from analytics.windows import SHOWN

OLDEST: Final = (18, 16)
SPANS: Final = (5, 10, 60, 600)  # of the roll-ups; each divides the next ones
_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS livefire_migrations (name String, digest String, at DateTime DEFAULT now()) "
    "ENGINE = MergeTree ORDER BY (name, at)"
)
_SINCE: Final = re.compile(r"-- since (\d+)\.(\d+)")

Execute = Callable[[str], list[tuple[Any, ...]]]
Version = tuple[int, int]


def version_of(text: str) -> Version:
    """'18.16.1' -> (18, 16)."""
    parts = text.split(".")
    return int(parts[0]), int(parts[1])


def statements(text: str) -> list[str]:
    """The statements of a file; each ends with ';' at the end of a line."""
    return [one.strip() for one in re.split(r";[ \t]*(?:\n|$)", text) if one.strip()]


def migrations(version: Version) -> dict[str, list[str]]:
    """name -> statements, for a server of this version, in order."""
    found: dict[str, list[str]] = {}
    folder = resources.files("analytics").joinpath("schema")
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if re.match(r"\d{3}_.*\.sql$", file.name):
            text = file.read_text(encoding="utf-8")
            since = _SINCE.match(text)
            if since is None or version >= (int(since[1]), int(since[2])):
                found[file.name] = statements(text)
    return found


def _percentile(which: str, name: str, q: float) -> str:
    n, seen = f"{which}_n", f"{which}_seen"
    rank = f"ceil({q!r} * {n} * (1 - 1e-15)) - {which}_zero_n"
    # The rank as an array: 18.16 does not find a column inside a lambda of a subquery.
    index = f"{which}_buckets[arrayFirstIndex((c, r) -> c >= r, {seen}, arrayResize([{rank}], length({seen}), {rank}))]"
    low, high = f"exp2({index} / 64)", f"exp2(({index} + 1) / 64)"
    value = f"2 * {low} * {high} / ({low} + {high})"
    few = f"{n} < {10 / (1 - q) * (1 - 1e-9)!r}"
    shown = f"if({rank} <= 0, 0., least({value}, toFloat64(top_{which}))) / 1e6"
    return f"       if({few}, NULL, {shown}) AS {'send_' if which == 'send' else ''}{name}_ms"


#: Where windows overlap, those that begin before the run's first pane are left out.
_RUNS_AND_FIRST: Final = """(
                    SELECT run, max(start_s) AS start_s, max(watermark_s) AS watermark_s,
                           max(first_second) AS first_second
                    FROM (
                        SELECT run, start_s, watermark_s, toInt64(0) AS first_second FROM runs
                        UNION ALL
                        SELECT run, toInt64(0), toInt64(0), min(second) FROM panes WHERE kind != '' GROUP BY run
                    ) GROUP BY run
                )"""
_FIRST_ONLY: Final = "\n        WHERE slot - part >= toInt64(floor((first_second - start_s) / {}))"


def views() -> dict[str, list[str]]:
    """name of a view -> the statements that make it."""
    folder = resources.files("analytics").joinpath("schema")
    template = Template(folder.joinpath("windows.sql").read_text(encoding="utf-8"))
    found = {}
    for series in SERIES:
        parts, rest = divmod(series.over_s, series.every_s)
        if rest:
            raise ValueError(f"series {series.name}: its length is no multiple of its distance")
        for scope, route in (("windows", "route"), ("totals", "'*'")):
            name = f"{scope}_{series.name}"
            slots = {
                "name": name,
                "every": series.every_s,
                "over": series.over_s,
                "parts": parts,
                "percentiles": ",\n".join(_percentile(w, name, q) for w in ("due", "send") for name, q in SHOWN),
                "runs": _RUNS_AND_FIRST if parts > 1 else "runs",
                "first_second": ", first_second" if parts > 1 else "",
                "first_only": _FIRST_ONLY.format(series.every_s) if parts > 1 else "",
                "span": max(span for span in SPANS if series.every_s % span == 0 and series.over_s % span == 0),
                "route": route,
            }
            found[name] = statements(template.substitute(slots))
    return found


def _digest(made: list[str]) -> str:
    return hashlib.sha256("\n".join(made).encode()).hexdigest()[:16]


def recorded(execute: Execute, shown: str) -> Mapping[str, str]:
    """name -> digest of what the database holds. Raises StoreError for one of a later version of Livefire."""
    execute(_TABLE)
    held: dict[str, str] = dict(execute("SELECT name, argMax(digest, at) FROM livefire_migrations GROUP BY name"))
    known = migrations((1 << 30, 0))
    if unknown := [name for name in held if re.match(r"\d{3}_", name) and name not in known]:
        raise StoreError(f"{shown}: made by a newer version of Livefire (it has {min(unknown)})")
    return held


def bring_up(execute: Execute, version: Version, shown: str) -> list[str]:
    """Apply what is missing; the names of what was. Statements may be repeated: two that do this at once do no harm."""
    held = recorded(execute, shown)
    todo = [(name, made) for name, made in migrations(version).items() if name not in held]
    for name, made in views().items():
        if held.get(name) != _digest(made):
            todo.append((name, [f"DROP TABLE IF EXISTS {name}", *made]))
    for name, made in todo:
        for statement in made:
            execute(statement)
        digest = _digest(made[1:] if made[0].startswith("DROP") else made)
        execute(f"INSERT INTO livefire_migrations (name, digest) SELECT '{name}', '{digest}'")
    return [name for name, _ in todo]
