"""Lens objects: layers of columns, and the three charts that the dashboards need.

Only aggregations that are exact are offered: sums of additive fields, a rate as such a sum over the length of its
bucket, and the highest of something. Averages are not: an average of percentiles or of shares says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec

from analytics.kibana.data_views import TIME_FIELD, DataView
from analytics.kibana.objects import Reference, SavedObject

RECORDS: Final = "___records___"
_NUMBERS: Final = ("long", "integer", "double")

SeriesType = Literal["line", "area", "bar", "bar_stacked", "area_stacked"]


class Column(msgspec.Struct, frozen=True):
    """One column of a layer: its id in it, and what Lens keeps of it."""

    id: str
    state: dict[str, Any]


class Layer(msgspec.Struct, frozen=True):
    """Columns over one data view. Buckets stand before measures, the outermost first."""

    view: DataView
    columns: tuple[Column, ...]
    series: SeriesType = "line"
    right: bool = False  # measured on the right axis
    colors: tuple[str, ...] = ()  # of the measures, in order; none = Kibana's own

    @property
    def buckets(self) -> list[Column]:
        return [column for column in self.columns if column.state["isBucketed"]]

    @property
    def measures(self) -> list[Column]:
        return [column for column in self.columns if not column.state["isBucketed"]]


def total(view: DataView, field: str, label: str, *, per_second: bool = False) -> Column:
    """The sum of an additive field; `per_second`: over the length of its time bucket. Raises ValueError for another."""
    found = view.field(field)
    if not found.additive or found.type not in _NUMBERS:
        raise ValueError(f"{field} may not be summed")
    extra: dict[str, Any] = {"timeScale": "s"} if per_second else {}
    shown = _shown(found.unit, per_second=per_second)
    return _measure("sum", field, label, {"emptyAsNull": False, **shown}, extra)


def highest(view: DataView, field: str, label: str) -> Column:
    """The highest of a numeric field among the windows in the bucket. Raises ValueError for no number."""
    found = view.field(field)
    if found.type not in _NUMBERS:
        raise ValueError(f"{field} is no number")
    return _measure("max", field, label, {"emptyAsNull": True, **_shown(found.unit)}, {})


def records(label: str) -> Column:
    """How many documents."""
    return _measure("count", RECORDS, label, {"emptyAsNull": False}, {})


def _measure(operation: str, field: str, label: str, params: dict[str, Any], extra: dict[str, Any]) -> Column:
    state = {
        "label": label,
        "customLabel": True,
        "dataType": "number",
        "operationType": operation,
        "sourceField": field,
        "isBucketed": False,
        "scale": "ratio",
        "params": params,
        **extra,
    }
    return Column(f"{operation}-{_short(field)}", state)


def _shown(unit: str, *, per_second: bool = False) -> dict[str, Any]:
    if unit == "bytes":
        return {"format": {"id": "bytes", "params": {"decimals": 1}}}
    decimals = 1 if per_second or unit in ("ms", "1/s") else 0
    return {"format": {"id": "number", "params": {"decimals": decimals}}}


def over_time(view: DataView) -> Column:
    """A bucket a window: as long as the view's windows, so that no bucket is without its window or with half of one."""
    interval = f"{view.over_s}s"
    state = {
        "label": f"windows of {view.over_s} s",
        "customLabel": True,
        "dataType": "date",
        "operationType": "date_histogram",
        "sourceField": TIME_FIELD,
        "isBucketed": True,
        "scale": "interval",
        "params": {"interval": interval, "includeEmptyRows": True, "dropPartials": False},
    }
    return Column("time", state)


def by(view: DataView, field: str, label: str, measure: Column, *, size: int, absent: bool = False) -> Column:
    """A bucket for each of the `size` values with the most of `measure`; `absent`: one for documents without it."""
    kind = view.field(field).type
    number = kind in _NUMBERS
    order = {"type": "alphabetical"} if number else {"type": "column", "columnId": measure.id}
    state = {
        "label": label,
        "customLabel": True,
        "dataType": "number" if number else "string",
        "operationType": "terms",
        "sourceField": field,
        "isBucketed": True,
        "scale": "ordinal",
        "params": {
            "size": size,
            "orderBy": order,
            "orderDirection": "asc" if number else "desc",
            "otherBucket": False,
            "missingBucket": absent,
            "parentFormat": {"id": "terms"},
        },
    }
    return Column(f"by-{_short(field)}", state)


def _short(field: str) -> str:
    return field.removeprefix("livefire.").replace(".", "-").replace("_", "-").strip("_-") or field


def only(column: Column, query: str) -> Column:
    """The same column of documents that match a query in Kibana's language. The id tells it from the unfiltered one."""
    tail = "".join(char if char.isalnum() else "-" for char in query.rpartition(":")[2]).strip("-")
    return Column(f"{column.id}-{tail}", {**column.state, "filter": {"query": query, "language": "kuery"}})


def xy(
    key: str, title: str, description: str, layers: Sequence[Layer], query: str, *, axes: tuple[str, str]
) -> SavedObject:
    """Lines and bars over time. `axes`: what the left and the right one measure; "" = none."""
    drawn = []
    for number, layer in enumerate(layers):
        splits = [column.id for column in layer.buckets if column.state["operationType"] != "date_histogram"]
        times = [column.id for column in layer.buckets if column.state["operationType"] == "date_histogram"]
        measures = [column.id for column in layer.measures]
        found: dict[str, Any] = {
            "layerId": _layer_id(number),
            "layerType": "data",
            "seriesType": layer.series,
            "xAccessor": times[0],
            "accessors": measures,
            "position": "top",
            "showGridlines": False,
        }
        if splits:
            found["splitAccessor"] = splits[0]
        if layer.right or layer.colors:
            colors = layer.colors or ("",) * len(measures)
            found["yConfig"] = [
                {"forAccessor": measure, "axisMode": "right" if layer.right else "left"}
                | ({"color": color} if color else {})
                for measure, color in zip(measures, colors, strict=True)
            ]
        drawn.append(found)
    visualization = {
        "legend": {"isVisible": True, "position": "bottom", "showSingleSeries": True},
        "valueLabels": "hide",
        "fittingFunction": "None",
        "curveType": "CURVE_STEP_AFTER",
        "preferredSeriesType": layers[0].series,
        "yTitle": axes[0],
        "yRightTitle": axes[1],
        "axisTitlesVisibilitySettings": {"x": False, "yLeft": bool(axes[0]), "yRight": bool(axes[1])},
        "layers": drawn,
    }
    return _saved(key, title, description, "lnsXY", layers, visualization, query)


def metric(key: str, title: str, description: str, layer: Layer, query: str, *, color: str = "") -> SavedObject:
    """One number; a second measure stands small under it."""
    first, *more = layer.measures
    visualization: dict[str, Any] = {"layerId": _layer_id(0), "layerType": "data", "metricAccessor": first.id}
    if more:
        visualization["secondaryMetricAccessor"] = more[0].id
    if color:
        visualization["color"] = color
    return _saved(key, title, description, "lnsMetric", [layer], visualization, query)


def rows(key: str, title: str, description: str, layer: Layer, query: str) -> SavedObject:
    """A table: a row a bucket, a column a measure."""
    visualization = {
        "layerId": _layer_id(0),
        "layerType": "data",
        "columns": [{"columnId": column.id} for column in layer.columns],
        "paging": {"size": 20, "enabled": True},
        "rowHeight": "single",
    }
    return _saved(key, title, description, "lnsDatatable", [layer], visualization, query)


def _layer_id(number: int) -> str:
    return f"layer{number + 1}"


def _saved(
    key: str,
    title: str,
    description: str,
    shape: str,
    layers: Sequence[Layer],
    visualization: dict[str, Any],
    query: str,
) -> SavedObject:
    kept = {
        _layer_id(number): {
            "columnOrder": [column.id for column in layer.columns],
            "columns": {column.id: column.state for column in layer.columns},
            "incompleteColumns": {},
        }
        for number, layer in enumerate(layers)
    }
    state = {
        "query": {"query": query, "language": "kuery"},
        "filters": [],
        "internalReferences": [],
        "adHocDataViews": {},
        "datasourceStates": {"formBased": {"layers": kept}},
        "visualization": visualization,
    }
    attributes = {"title": title, "description": description, "visualizationType": shape, "state": state}
    references = tuple(
        Reference(f"indexpattern-datasource-layer-{_layer_id(number)}", "index-pattern", layer.view.id)
        for number, layer in enumerate(layers)
    )
    return SavedObject("lens", key, attributes, references)
