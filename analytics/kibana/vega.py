"""Vega panels: where the query itself must be right, not only its aggregation.

Two kinds of figures need that. A percentile is of *one* window: there is one document for it, and a bucket as long as
the window holds one document, so `max` picks it out (of several it is the highest, and never an average). A share is a
sum over a sum, which is made here of the sums, after the aggregation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from analytics.kibana.data_views import TIME_FIELD, DataView
from analytics.kibana.objects import SavedObject, search_source, text

_SCHEMA: Final = "https://vega.github.io/schema/vega-lite/v5.json"
_NUMBERS: Final = ("long", "integer", "double")

_TIME: Final = {"calculate": "datum.at.value", "as": "time"}

Body = dict[str, Any]


def sums(view: DataView, *names: str) -> Body:
    """An aggregation of the field's own short name for each. Raises ValueError for what may not be summed."""
    for name in names:
        if not view.field(f"livefire.{name}").additive:
            raise ValueError(f"{name} may not be summed")
    return {name: {"sum": {"field": f"livefire.{name}"}} for name in names}


def highest(view: DataView, *names: str) -> Body:
    """Of one window its own figure, of several the highest. Raises ValueError for no number."""
    for name in names:
        if view.field(f"livefire.{name}").type not in _NUMBERS:
            raise ValueError(f"{name} is no number")
    return {name: {"max": {"field": f"livefire.{name}"}} for name in names}


def of_kind(view: DataView, kind: str, inner: Body) -> Body:
    """Only documents of this kind of traffic."""
    view.field("livefire.kind")
    return {"filter": {"term": {"livefire.kind": kind}}, "aggs": inner}


def whole(view: DataView, inner: Body) -> Body:
    """Only windows to which nothing can be added any more."""
    view.field("livefire.final")
    return {"filter": {"term": {"livefire.final": True}}, "aggs": inner}


def all_of_kind(view: DataView, kind: str, inner: Body) -> Body:
    """The same as a list of one bucket: Vega reads lists."""
    view.field("livefire.kind")
    return {"filters": {"filters": [{"term": {"livefire.kind": kind}}]}, "aggs": inner}


def each_window(view: DataView, inner: Body, *, every_s: int = 0, at: str = TIME_FIELD) -> Body:
    """A bucket a window. `every_s`: the distance of the windows, unless it is their length; `at`: which time counts.

    Buckets begin at multiples of their length, windows at the run's start: `at` is kept, so that points stand right.
    """
    view.field(at)
    return {
        "date_histogram": {"field": at, "fixed_interval": f"{every_s or view.over_s}s", "min_doc_count": 1},
        "aggs": {"at": {"max": {"field": at}}, **inner},
    }


def share(errors: str, *of: str) -> str:
    """An expression: a sum over sums; null where nothing finished."""
    whole = " + ".join(f"datum.{name}.value" for name in of)
    return f"({whole}) > 0 ? datum.{errors}.value / ({whole}) : null"


def lines(
    key: str,
    title: str,
    description: str,
    view: DataView,
    aggregations: Body,
    buckets: str,
    *,
    values: Mapping[str, str],
    axis: str,
    colors: Sequence[str],
    shown: str = ",.1~f",
) -> SavedObject:
    """Lines over time with a point a window. `values`: name in the legend -> expression over the bucket."""
    names = list(values)
    spec = _spec(view, aggregations, buckets)
    spec["transform"] = [
        _TIME,
        *({"calculate": expression, "as": name} for name, expression in values.items()),
        {"fold": names, "as": ["what", "value"]},
    ]
    spec["mark"] = {"type": "line", "point": {"size": 18}, "interpolate": "linear", "tooltip": True}
    spec["encoding"] = {
        "x": {"field": "time", "type": "temporal", "title": None},
        "y": {
            "field": "value",
            "type": "quantitative",
            "title": axis,
            "axis": {"format": shown},
            "scale": {"zero": True},
        },
        "color": {
            "field": "what",
            "type": "nominal",
            "title": None,
            "sort": names,
            "scale": {"domain": names, "range": list(colors)},
            "legend": {"orient": "bottom"},
        },
        "tooltip": [
            {"field": "time", "type": "temporal", "title": "window", "format": "%H:%M:%S"},
            {"field": "what", "type": "nominal", "title": "what"},
            {"field": "value", "type": "quantitative", "title": axis, "format": shown},
        ],
    }
    return _saved(key, title, description, spec)


def points(
    key: str,
    title: str,
    description: str,
    view: DataView,
    aggregations: Body,
    buckets: str,
    *,
    values: Mapping[str, str],
    axes: tuple[str, str],
) -> SavedObject:
    """A point a window: the second of `values` over the first, coloured by the third, which counts from 0."""
    x, y, color = values
    spec = _spec(view, aggregations, buckets)
    spec["transform"] = [_TIME, *({"calculate": expression, "as": name} for name, expression in values.items())]
    spec["mark"] = {"type": "point", "filled": True, "size": 45, "opacity": 0.8}
    spec["encoding"] = {
        "x": {"field": x, "type": "quantitative", "title": axes[0]},
        "y": {"field": y, "type": "quantitative", "title": axes[1]},
        "color": {
            "field": color,
            "type": "ordinal",
            "title": f"{color} (the first is 0)",
            "scale": {"scheme": "viridis"},
        },
        "tooltip": [
            {"field": "time", "type": "temporal", "title": "window", "format": "%H:%M:%S"},
            *({"field": name, "type": "quantitative", "title": name, "format": ",.1f"} for name in values),
        ],
    }
    return _saved(key, title, description, spec)


def number(
    key: str, title: str, description: str, view: DataView, aggregations: Body, buckets: str, *, name: str, value: str
) -> SavedObject:
    """One number, written large, of the one bucket that there is."""
    spec = _spec(view, aggregations, buckets)
    spec["transform"] = [{"calculate": value, "as": name}]
    spec["mark"] = {"type": "text", "fontSize": 32, "fontWeight": "bold", "color": "#343741"}
    spec["encoding"] = {"text": {"field": name, "type": "quantitative", "format": ".2%"}}
    spec["config"] = {"view": {"stroke": None}}
    return _saved(key, title, description, spec)


def _spec(view: DataView, aggregations: Body, buckets: str) -> Body:
    return {
        "$schema": _SCHEMA,
        "autosize": {"type": "fit", "contains": "padding"},
        "data": {
            "url": {
                "%context%": True,
                "%timefield%": TIME_FIELD,
                "index": view.title,
                "body": {"size": 0, "aggs": aggregations},
            },
            "format": {"property": f"aggregations.{buckets}"},
        },
    }


def _saved(key: str, title: str, description: str, spec: Body) -> SavedObject:
    state = {"title": title, "type": "vega", "aggs": [], "params": {"spec": text(spec)}}
    attributes = {
        "title": title,
        "description": description,
        "version": 1,
        "uiStateJSON": "{}",
        "kibanaSavedObjectMeta": search_source(),
        "visState": text(state),
    }
    return SavedObject("visualization", key, attributes)
