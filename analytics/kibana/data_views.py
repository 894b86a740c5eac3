"""Data views: one for each series of windows, per route and for all routes together, and one for exemplars.

The default one is tumbling, ten seconds, per route: in it each outcome is counted once, so any sum is right. Rows of
all routes together have views of their own: they hold the percentiles that no sum or average of routes can give.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from analytics.fields import (
    EXEMPLAR_FIELDS,
    NAME,
    SERIES,
    WINDOW_FIELDS,
    Field,
    Series,
    base_of,
    exemplars_of,
    pattern_of,
)
from analytics.kibana.objects import SavedObject, text

TIME_FIELD: Final = "@timestamp"
_FORMATS: Final[dict[str, dict[str, Any]]] = {
    "ms": {"id": "number", "params": {"pattern": "0,0.0"}},
    "1/s": {"id": "number", "params": {"pattern": "0,0.0"}},
    "share": {"id": "percent", "params": {"pattern": "0.00%"}},
    "bytes": {"id": "bytes", "params": {"pattern": "0,0.0b"}},
    "ns": {"id": "duration", "params": {"inputFormat": "nanoseconds", "outputFormat": "humanizePrecise"}},
}
_COUNT: Final[dict[str, Any]] = {"id": "number", "params": {"pattern": "0,0"}}


class DataView(msgspec.Struct, frozen=True):
    """What panels read from: indices by a pattern, and the fields that their documents have."""

    id: str
    title: str  # the pattern
    name: str  # for people
    fields: tuple[Field, ...]
    over_s: int = 0  # length of its windows; 0 = no windows

    def field(self, name: str) -> Field:
        """Raises KeyError for a field that the documents do not have."""
        for field in self.fields:
            if field.name == name:
                return field
        raise KeyError(f"{self.name}: no field {name}")

    def saved(self) -> SavedObject:
        return SavedObject(
            "index-pattern",
            self.id,
            {
                "title": self.title,
                "name": self.name,
                "timeFieldName": TIME_FIELD,
                "fieldAttrs": "{}",
                "fieldFormatMap": text({f.name: _format(f) for f in self.fields if _format(f)}),
                "fields": "[]",
                "runtimeFieldMap": "{}",
                "sourceFilters": "[]",
                "typeMeta": "{}",
                "allowNoIndex": True,
            },
        )


def _format(field: Field) -> dict[str, Any] | None:
    if field.unit in _FORMATS:
        return _FORMATS[field.unit]
    return _COUNT if field.type == "long" and field.additive else None


def of_windows(series: Series, *, all_routes: bool = False, name: str = NAME) -> DataView:
    """The view of a series: a row per route, or with `all_routes` one for all of them together."""
    words = f"{_length(series.over_s)} windows" + ("" if series.tumbling else f" every {_length(series.every_s)}")
    rows = "all routes together" if all_routes else "per route"
    return DataView(
        id=base_of(series, all_routes=all_routes, name=name),
        title=pattern_of(series, all_routes=all_routes, name=name),
        name=f"{_spoken(name)}: {words}, {rows}",
        fields=WINDOW_FIELDS,
        over_s=series.over_s,
    )


def of_exemplars(name: str = NAME) -> DataView:
    found = exemplars_of(name)
    return DataView(id=found, title=found, name=f"{_spoken(name)}: slow and failed exemplars", fields=EXEMPLAR_FIELDS)


def all_views(name: str = NAME) -> list[DataView]:
    """The default one first."""
    ordered = sorted(SERIES, key=lambda series: not series.default)
    windows = [of_windows(series, all_routes=rows, name=name) for rows in (False, True) for series in ordered]
    return [*windows, of_exemplars(name)]


def _spoken(name: str) -> str:
    return name[:1].upper() + name[1:]


def _length(seconds: int) -> str:
    return f"{seconds // 60} min" if seconds % 60 == 0 and seconds else f"{seconds} s"
