"""Saved panels as the queries that Kibana would make of them, and their answers as rows.

Nothing is known here of how panels are generated: what is read is the file. Lens: columns in their order become nested
aggregations. Vega: the body with the dashboard's filters and time put in, the rows taken from where `format.property` says,
and the `calculate` expressions worked out. A row is {label: value}; times are ms since 1970.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kibana_rules import asked

Search = Callable[[str, dict[str, Any]], dict[str, Any]]
Row = dict[str, Any]
_MISSING = "__missing__"


class Context:
    """What the dashboard adds to every query: its time range (ms) and its filters."""

    def __init__(self, from_ms: int, to_ms: int, filters: Sequence[dict[str, Any]]) -> None:
        self.from_ms, self.to_ms, self.filters = from_ms, to_ms, list(filters)

    def query(self, time_field: str, *more: dict[str, Any]) -> dict[str, Any]:
        span = {"range": {time_field: {"gte": self.from_ms, "lte": self.to_ms, "format": "epoch_millis"}}}
        return {"bool": {"filter": [span, *self.filters, *more]}}


def rows_of(panel: Mapping[str, Any], views: Mapping[str, str], search: Search, context: Context) -> list[list[Row]]:
    """A list of rows for each layer. `views`: id of a data view -> its pattern."""
    if panel["type"] == "visualization":
        return [_vega(panel, search, context)]
    return list(_lens(panel, views, search, context))


def clause(query: str) -> dict[str, Any]:
    """A query in Kibana's language, of the little that is used of it, as a clause."""
    if not query:
        return {"match_all": {}}
    terms = [{"term": {field: value}} for field, value in asked(query)]
    both = " and " in query
    if both and " or " in query:
        raise ValueError(query)
    return {"bool": {"filter": terms}} if both else {"bool": {"should": terms, "minimum_should_match": 1}}


# ---------------------------------------------------------------------------- Lens


def _lens(panel: Mapping[str, Any], views: Mapping[str, str], search: Search, context: Context) -> Iterator[list[Row]]:
    state = panel["attributes"]["state"]
    view_of = {reference["name"]: views[reference["id"]] for reference in panel["references"]}
    for key, layer in state["datasourceStates"]["formBased"]["layers"].items():
        columns = [(each, layer["columns"][each]) for each in layer["columnOrder"]]
        buckets = [each for each in columns if each[1]["isBucketed"]]
        measures = [each for each in columns if not each[1]["isBucketed"]]
        body = {
            "size": 0,
            "track_total_hits": True,
            "query": context.query("@timestamp", clause(state["query"]["query"])),
            "aggs": _nested(buckets, measures),
        }
        answer = search(view_of[f"indexpattern-datasource-layer-{key}"], body)
        whole = {**answer.get("aggregations", {}), "doc_count": answer["hits"]["total"]["value"]}
        yield list(_read(buckets, measures, whole, {}, 0.0))


def _nested(buckets: Sequence[Any], measures: Sequence[Any]) -> dict[str, Any]:
    if not buckets:
        return {each: _measure(column) for each, column in measures if column["operationType"] != "count"}
    (each, column), *inner = buckets
    aggs = _nested(inner, measures)
    params = column["params"]
    if column["operationType"] == "date_histogram":
        empty = 0 if params["includeEmptyRows"] else 1
        made = {"field": column["sourceField"], "fixed_interval": params["interval"], "min_doc_count": empty}
        return {each: {"date_histogram": made, "aggs": aggs}}
    assert column["operationType"] == "terms"
    made = {"field": column["sourceField"], "size": params["size"]}
    if params["missingBucket"]:
        made["missing"] = _MISSING
    by, direction = params["orderBy"], params["orderDirection"]
    ordered = dict(measures).get(by.get("columnId"))
    if by["type"] == "alphabetical":
        made["order"] = {"_key": direction}
    elif ordered is None:
        raise AssertionError(f"ordered by {by['columnId']}, which is no column")
    elif ordered["operationType"] == "count":
        made["order"] = {"_count": direction}
    else:
        made["order"] = {"order": direction}
        aggs = {**aggs, "order": _measure({**ordered, "filter": None})}
    return {each: {"terms": made, "aggs": aggs}}


def _measure(column: Mapping[str, Any]) -> dict[str, Any]:
    made = {column["operationType"]: {"field": column["sourceField"]}}
    if column.get("filter"):
        return {"filter": clause(column["filter"]["query"]), "aggs": {"only": made}}
    return made


def _read(
    buckets: Sequence[Any], measures: Sequence[Any], at: Mapping[str, Any], row: Row, seconds: float
) -> Iterator[Row]:
    if buckets:
        (each, column), *inner = buckets
        interval = column["params"].get("interval", "0s")
        for bucket in at[each]["buckets"]:
            value = None if bucket["key"] == _MISSING else bucket["key"]
            here = {**row, column["label"]: value}
            yield from _read(inner, measures, bucket, here, float(interval.removesuffix("s")) or seconds)
        return
    found = dict(row)
    for each, column in measures:
        if column["operationType"] == "count":
            value = at["doc_count"]
        else:
            value = at[each]["only"]["value"] if column.get("filter") else at[each]["value"]
        if column.get("timeScale"):
            assert column["timeScale"] == "s" and seconds
            value = value / seconds
        found[column["label"]] = value
    yield found


# ---------------------------------------------------------------------------- Vega


def _vega(panel: Mapping[str, Any], search: Search, context: Context) -> list[Row]:
    spec = json.loads(json.loads(panel["attributes"]["visState"])["params"]["spec"])
    url = spec["data"]["url"]
    if url.get("%context%") is not True:
        raise AssertionError("the dashboard's filters do not reach it")
    body = {**url["body"], "query": context.query(url["%timefield%"])}
    found: Any = search(url["index"], body)
    for part in spec["data"]["format"]["property"].split("."):
        if part not in found:
            raise AssertionError(f"no {part} in the answer")
        found = found[part]
    assert isinstance(found, list)
    rows = []
    for bucket in found:
        row = {t["as"]: value_of(t["calculate"], bucket) for t in spec["transform"] if "calculate" in t}
        rows.append(row)
    shown = {name for t in spec["transform"] for name in (t.get("fold") or [])}
    shown |= {c["field"] for c in spec["encoding"].values() if isinstance(c, dict)}
    made = {name for t in spec["transform"] for name in ([t["as"]] if "calculate" in t else t["as"])}
    assert shown <= made, f"shown and not made: {sorted(shown - made)}"
    return rows


def value_of(expression: str, datum: Mapping[str, Any]) -> float | None:
    """Work out an expression of the few forms that are used: paths, sums, quotients, `a > 0 ? b : null`."""
    if choice := re.fullmatch(r"(.+) > 0 \? (.+) : null", expression):
        tested = value_of(choice[1], datum)
        return value_of(choice[2], datum) if tested is not None and tested > 0 else None
    gone = False

    def figure(path: re.Match[str]) -> str:
        nonlocal gone
        found: Any = datum
        for name in path[1].strip(".").split("."):
            if name not in found:
                raise AssertionError(f"no {path[1]} in the answer")
            found = found[name]
        gone = gone or found is None
        return repr(0.0 if found is None else float(found))

    plain = re.sub(r"datum((?:\.\w+)+)", figure, expression)
    assert re.fullmatch(r"[\d.e()+/ -]+", plain), plain
    return None if gone else float(eval(plain, {"__builtins__": {}}))
