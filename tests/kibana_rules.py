"""The rules by which Kibana takes a file of saved objects, and those it does not check but stumbles over later.

`problems` is what a running Kibana would say, or do wrong without a word, as one line each. Written down from Kibana's
own import, migration and schema code; versions are those of 8.9 and later.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

VERSIONS = {"index-pattern": "8.0.0", "lens": "8.9.0", "visualization": "8.5.0", "dashboard": "8.9.0"}
ENVELOPE = {"type", "id", "attributes", "references", "coreMigrationVersion", "typeMigrationVersion", "managed"}
NUMBERS = {"long", "integer", "double"}
J = "a string that holds JSON"

#: type -> attribute -> (required, what it is)
ATTRIBUTES: dict[str, dict[str, tuple[bool, object]]] = {
    "index-pattern": {
        "title": (True, str), "name": (True, str), "timeFieldName": (False, str), "fields": (False, J),
        "fieldAttrs": (False, J), "fieldFormatMap": (False, J), "runtimeFieldMap": (False, J), "sourceFilters": (False, J),
        "typeMeta": (False, J), "type": (False, str), "allowNoIndex": (False, bool),
    },
    "lens": {
        "title": (True, str), "description": (False, str), "visualizationType": (True, str), "state": (True, dict),
    },
    "visualization": {
        "title": (True, str), "description": (False, str), "version": (False, int), "kibanaSavedObjectMeta": (True, dict),
        "uiStateJSON": (False, J), "visState": (True, J), "savedSearchRefName": (False, str),
    },
    "dashboard": {
        "title": (True, str), "kibanaSavedObjectMeta": (True, dict), "description": (False, str), "panelsJSON": (True, J),
        "optionsJSON": (True, J), "timeRestore": (False, bool), "timeFrom": (False, str), "timeTo": (False, str),
        "refreshInterval": (False, dict), "controlGroupInput": (False, dict), "hits": (False, int), "version": (False, int),
    },
}  # fmt: skip

#: operation of a Lens column or of an aggregation -> the types of field that it takes
TAKES = {
    "sum": NUMBERS, "max": NUMBERS | {"date"}, "min": NUMBERS, "date_histogram": {"date"},
    "terms": {"keyword", "integer", "long", "boolean"}, "term": {"keyword", "integer", "long", "boolean"},
}  # fmt: skip

Fields = Mapping[str, Mapping[str, str]]  # title of a data view -> name of a field -> its type


def problems(text: str, fields: Fields) -> list[str]:
    """All that is wrong with the file; `fields` is what documents hold."""
    found: list[str] = []
    objects: list[dict[str, Any]] = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            objects.append(json.loads(line))
        except ValueError as error:
            found.append(f"line {number}: no JSON: {error}")
    seen: set[tuple[str, str]] = set()
    for each in objects:
        key = (str(each.get("type")), str(each.get("id")))
        if key in seen:
            found.append(f"{key[0]} {key[1]}: twice in the file; all of it is refused")
        seen.add(key)
    views = {o["id"]: o["attributes"]["title"] for o in objects if o.get("type") == "index-pattern"}
    for each in objects:
        who = f"{each.get('type')} {each.get('id')}"
        try:
            for problem in _of(each, seen, views, fields):
                found.append(f"{who}: {problem}")
        except (KeyError, TypeError, AttributeError, ValueError, StopIteration) as error:
            found.append(f"{who}: not the shape that it should have: {type(error).__name__} {error}")
    return found


def _of(each: dict[str, Any], known: set[tuple[str, str]], views: Mapping[str, str], fields: Fields) -> Iterator[str]:
    kind, attributes, references = each["type"], each["attributes"], each["references"]
    if kind not in VERSIONS:
        yield "a type that is not known"
        return
    for name in ENVELOPE.symmetric_difference(each):
        yield f"envelope: {name} is {'not wanted' if name in each else 'missing'}"
    if each.get("coreMigrationVersion") != "8.8.0" or each.get("typeMigrationVersion") != VERSIONS[kind]:
        yield "wrong versions"
    yield from _attributes(attributes, ATTRIBUTES[kind])
    names = [reference["name"] for reference in references]
    for name in {name for name in names if names.count(name) > 1}:
        yield f"reference {name}: twice"
    for reference in references:
        if set(reference) != {"name", "type", "id"}:
            yield f"reference {reference}: wrong keys"
        elif (reference["type"], reference["id"]) not in known:
            yield f"reference {reference['name']}: no {reference['type']} {reference['id']} in the file"
    used: list[str] = []
    view_of = {r["name"]: views.get(r["id"], "") for r in references if r["type"] == "index-pattern"}
    yield from _KINDS[kind](attributes, view_of, used, fields, set(views.values()))
    for name in used:
        if name not in names:
            yield f"no reference named {name}"
    for name in names:
        if name not in used:
            yield f"reference {name}: nothing speaks of it"
    yield from _source(attributes)


def _attributes(attributes: Mapping[str, Any], allowed: Mapping[str, tuple[bool, object]]) -> Iterator[str]:
    for name, value in attributes.items():
        if name not in allowed:
            yield f"attribute {name} is refused"
        elif allowed[name][1] == J:
            try:
                json.loads(value)
            except (TypeError, ValueError):
                yield f"attribute {name} is not {J}"
        elif not isinstance(value, allowed[name][1]):  # type: ignore[arg-type]
            yield f"attribute {name} is of the wrong type"
    for name, (required, _) in allowed.items():
        if required and name not in attributes:
            yield f"attribute {name} is missing"


def _source(attributes: Mapping[str, Any]) -> Iterator[str]:
    if "kibanaSavedObjectMeta" in attributes:
        source = json.loads(attributes["kibanaSavedObjectMeta"]["searchSourceJSON"])
        if set(source) != {"query", "filter"} or source["query"].get("language") != "kuery":
            yield "searchSourceJSON: query and filter wanted"


def _field(fields: Mapping[str, str], name: str, operation: str) -> Iterator[str]:
    if name not in fields:
        yield f"no field {name} in its documents"
    elif fields[name] not in TAKES.get(operation, set()):
        yield f"{operation} of {name}, a {fields[name]}"


def asked(query: str) -> list[tuple[str, str]]:
    """(field, value) of a query in Kibana's language, of the little that is used of it. Raises ValueError for more."""
    rest = re.sub(r'([\w.@]+)\s*:\s*"([^"]*)"', "x", query)
    if rest and not re.fullmatch(r"x( (and|or) x)*", rest):
        raise ValueError(f"query {query!r}")
    return re.findall(r'([\w.@]+)\s*:\s*"([^"]*)"', query)


def _query(query: Mapping[str, str], fields: Mapping[str, str]) -> Iterator[str]:
    if query["language"] != "kuery":
        yield "query in an unknown language"
    for name, _ in asked(query["query"]):
        yield from _field(fields, name, "term")


# ---------------------------------------------------------------------------- data views, dashboards


def _data_view(attributes: Any, view_of: Any, used: list[str], fields: Fields, titles: set[str]) -> Iterator[str]:
    known = fields.get(attributes["title"])
    if known is None:
        yield f"no documents in {attributes['title']}"
        return
    if known.get(attributes["timeFieldName"]) != "date":
        yield "its time field is no date"
    for name in json.loads(attributes["fieldFormatMap"]):
        if name not in known:
            yield f"no field {name} in its documents"


def _dashboard(
    attributes: Any, view_of: Mapping[str, str], used: list[str], fields: Fields, titles: set[str]
) -> Iterator[str]:
    panels = json.loads(attributes["panelsJSON"])
    taken: dict[tuple[int, int], str] = {}
    for panel in panels:
        index, grid = panel["panelIndex"], panel["gridData"]
        if grid["i"] != index or panel.get("panelRefName") != f"panel_{index}" or panel["type"] not in VERSIONS:
            yield f"panel {index}: named otherwise than its place"
        if not isinstance(panel.get("embeddableConfig"), dict):
            yield f"panel {index}: no embeddableConfig"
        used.append(f"{index}:panel_{index}")
        if grid["x"] < 0 or grid["w"] < 1 or grid["h"] < 1 or grid["x"] + grid["w"] > 48:
            yield f"panel {index}: outside of 48 columns"
        for cell in (
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        ):
            if taken.setdefault(cell, index) != index:
                yield f"panel {index}: lies over panel {taken[cell]}"
                break
    if set(attributes["refreshInterval"]) != {"pause", "value"}:
        yield "refreshInterval: pause and value wanted"
    group = attributes["controlGroupInput"]
    if set(group) != {"controlStyle", "chainingSystem", "ignoreParentSettingsJSON", "panelsJSON"}:
        yield "controlGroupInput: other keys than known"
    json.loads(group["ignoreParentSettingsJSON"])
    for key, control in json.loads(group["panelsJSON"]).items():
        name = f"controlGroup_{key}:optionsListDataView"
        used.append(name)
        if control["type"] != "optionsListControl" or control["explicitInput"]["id"] != key:
            yield f"control {key}: named otherwise than its place"
        yield from _field(fields[view_of[name]], control["explicitInput"]["fieldName"], "terms")


# ---------------------------------------------------------------------------- Lens


def _lens(
    attributes: Any, view_of: Mapping[str, str], used: list[str], fields: Fields, titles: set[str]
) -> Iterator[str]:
    state = attributes["state"]
    wanted = {"query", "filters", "internalReferences", "adHocDataViews", "datasourceStates", "visualization"}
    if set(state) != wanted:
        yield "state: other keys than known"
    layers = state["datasourceStates"]["formBased"]["layers"]
    for key, layer in layers.items():
        name = f"indexpattern-datasource-layer-{key}"
        used.append(name)
        if name not in view_of:
            continue  # told as a missing reference
        known, columns = fields.get(view_of[name], {}), layer["columns"]
        if sorted(layer["columnOrder"]) != sorted(columns):
            yield f"layer {key}: columnOrder is not its columns"
        yield from _query(state["query"], known)
        for column_id, column in columns.items():
            operation, field = column["operationType"], column["sourceField"]
            if operation == "count":
                if field != "___records___":
                    yield f"column {column_id}: count of {field}"
                continue
            yield from _field(known, field, operation)
            if column["isBucketed"] != (operation in ("terms", "date_histogram")):
                yield f"column {column_id}: isBucketed"
            if "filter" in column:
                yield from _query(column["filter"], known)
            order = column["params"].get("orderBy", {})
            if order.get("type") == "column" and order["columnId"] not in columns:
                yield f"column {column_id}: ordered by no column"
            if column.get("timeScale") and not any(c["operationType"] == "date_histogram" for c in columns.values()):
                yield f"column {column_id}: per second of no time"
        order_of = [columns[c]["isBucketed"] for c in layer["columnOrder"] if c in columns]
        if order_of != sorted(order_of, reverse=True):
            yield f"layer {key}: measures before buckets"
    yield from _drawn(attributes["visualizationType"], state["visualization"], layers)


def _drawn(shape: str, drawn: Mapping[str, Any], layers: Mapping[str, Any]) -> Iterator[str]:
    """Each column is drawn once, and nothing is drawn that is none."""
    shown: list[tuple[str, str]] = []
    if shape == "lnsXY":
        for layer in drawn["layers"]:
            ids = [layer["xAccessor"], *layer["accessors"]] + (
                [layer["splitAccessor"]] if "splitAccessor" in layer else []
            )
            shown += [(layer["layerId"], one) for one in ids]
            for config in layer.get("yConfig", []):
                if config["forAccessor"] not in layer["accessors"]:
                    yield f"colour of no column {config['forAccessor']}"
    elif shape == "lnsMetric":
        ids = [drawn[name] for name in ("metricAccessor", "secondaryMetricAccessor") if name in drawn]
        shown = [(drawn["layerId"], one) for one in ids]
    elif shape == "lnsDatatable":
        shown = [(drawn["layerId"], column["columnId"]) for column in drawn["columns"]]
    else:
        yield f"unknown chart {shape}"
    if sorted(shown) != sorted((key, one) for key, layer in layers.items() for one in layer["columns"]):
        yield "what is drawn is not what the layers hold"


# ---------------------------------------------------------------------------- Vega


def _visualization(attributes: Any, view_of: Any, used: list[str], fields: Fields, titles: set[str]) -> Iterator[str]:
    state = json.loads(attributes["visState"])
    if set(state) != {"title", "type", "params", "aggs"} or state["type"] != "vega" or state["aggs"] != []:
        yield "visState: not of a Vega panel"
    spec = json.loads(state["params"]["spec"])
    url, form = spec["data"]["url"], spec["data"]["format"]
    if url["index"] not in titles:
        yield f"no data view of {url['index']}"
    known = fields.get(url["index"], {})
    if url.get("%context%") is not True or known.get(url.get("%timefield%")) != "date" or "query" in url["body"]:
        yield "the dashboard's filters and time do not reach it"
    yield from _aggregations(url["body"]["aggs"], known)
    level = {"aggregations": url["body"]["aggs"]}
    for part in form["property"].split("."):
        if part == "buckets":
            continue
        level = level[part]["aggs"] if part != "aggregations" else level[part]
    if not form["property"].endswith(".buckets"):
        yield "its rows are no list"
    made = {"time"}
    for transform in spec["transform"]:
        if "calculate" in transform:
            for path in re.findall(r"datum((?:\.\w+)+)", transform["calculate"]):
                yield from _path(level, path.strip(".").split("."))
            made.add(transform["as"])
        else:
            yield from (f"folds {name}, which is nowhere made" for name in transform["fold"] if name not in made)
            made.update(transform["as"])
    for channel in spec["encoding"].values():
        for one in channel if isinstance(channel, list) else [channel]:
            if one["field"] not in made:
                yield f"shows {one['field']}, which is nowhere made"


def _path(level: Mapping[str, Any], path: list[str]) -> Iterator[str]:
    *names, last = path
    for name in names:
        if name not in level:
            yield f"reads {'.'.join(path)}, which is nowhere aggregated"
            return
        level = level[name].get("aggs", {})
    if last != "value":
        yield f"reads {'.'.join(path)}, not a value"


def _aggregations(level: Mapping[str, Any], known: Mapping[str, str]) -> Iterator[str]:
    for body in level.values():
        inner = body.get("aggs", {})
        (operation,) = set(body) - {"aggs"}
        asked_for = body[operation]
        if operation in ("filter", "filters"):
            for one in [asked_for] if operation == "filter" else asked_for["filters"]:
                for name in one["term"]:
                    yield from _field(known, name, "term")
        else:
            yield from _field(known, asked_for["field"], operation)
        yield from _aggregations(inner, known)


_KINDS: dict[str, Callable[..., Iterator[str]]] = {
    "index-pattern": _data_view,
    "dashboard": _dashboard,
    "lens": _lens,
    "visualization": _visualization,
}
