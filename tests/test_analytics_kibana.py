"""Kibana's objects: the committed file is what is generated, keeps Kibana's rules, and the rules find what is broken."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from kibana_rules import problems

from analytics.fields import EXEMPLAR_FIELDS, SERIES, WINDOW_FIELDS, exemplars_of, pattern_of
from analytics.kibana import lens, vega
from analytics.kibana.address import base_address, dashboard_address, rison
from analytics.kibana.dashboards import exported, objects
from analytics.kibana.data_views import all_views
from analytics.kibana.panels import panels
from analytics.kibana.reading import views
from wire.config import ConfigError

COMMITTED = Path(__file__).parent.parent / "deploy/kibana/livefire.ndjson"


def known_fields(name: str = "livefire") -> dict[str, dict[str, str]]:
    """What documents hold, by pattern of their indices: from the field list, not from the data views."""
    windows = {field.name: field.type for field in WINDOW_FIELDS}
    found = {pattern_of(s, all_routes=rows, name=name): windows for s in SERIES for rows in (False, True)}
    return {**found, exemplars_of(name): {field.name: field.type for field in EXEMPLAR_FIELDS}}


FIELDS = known_fields()


def test_the_committed_file_is_what_is_generated() -> None:
    assert COMMITTED.read_text("utf-8") == exported(), (
        "generate it again: livefire kibana export --to deploy/kibana/livefire.ndjson"
    )


@pytest.mark.parametrize("name", ["livefire", "shop"])
def test_every_line_keeps_the_rules(name: str) -> None:
    assert problems(exported(name), known_fields(name)) == []
    assert f'"id":"{name}-dashboard-drill"' in exported(name)


def test_every_panel_is_on_a_dashboard_and_the_default_view_comes_first() -> None:
    made = objects()
    assert {panel.id for panel in panels().values()} <= {one.id for one in made}
    assert (made[0].type, made[0].attributes["title"]) == ("index-pattern", "livefire-windows-tumbling-10s-*")
    titles = [one.attributes["title"] for one in made if one.type == "dashboard"]
    assert titles == ["Livefire: Drill", "Livefire: Route", "Livefire: Production beside stress"]
    assert len({view.title for view in all_views()}) == 2 * len(SERIES) + 1


def test_no_panel_averages_and_none_mixes_totals_with_routes() -> None:
    text = exported()
    assert '"operationType":"average"' not in text and '"avg"' not in text and "percentiles" not in text
    for panel in panels().values():
        if panel.type == "lens":
            layers = panel.attributes["state"]["datasourceStates"]["formBased"]["layers"].values()
            for column in (column for layer in layers for column in layer["columns"].values()):
                if column["operationType"] == "sum":
                    additive = {field.name for field in WINDOW_FIELDS if field.additive}
                    assert column["sourceField"] in additive, panel.title


# -- the rules find what is broken


Objects = list[dict[str, Any]]


def one(found: Objects, key: str) -> dict[str, Any]:
    return next(each for each in found if each["id"] == key)


def first_layer(found: Objects, key: str) -> dict[str, Any]:
    return next(iter(one(found, key)["attributes"]["state"]["datasourceStates"]["formBased"]["layers"].values()))


def respec(found: Objects, key: str, change: Callable[[str], str]) -> None:
    attributes = one(found, key)["attributes"]
    state = json.loads(attributes["visState"])
    spec = change(state["params"]["spec"])
    assert spec != state["params"]["spec"]
    attributes["visState"] = json.dumps({**state, "params": {"spec": spec}})


def repanel(found: Objects, change: Callable[[list[dict[str, Any]]], None]) -> None:
    attributes = one(found, "livefire-dashboard-drill")["attributes"]
    placed = json.loads(attributes["panelsJSON"])
    change(placed)
    attributes["panelsJSON"] = json.dumps(placed)


def drop_reference(key: str) -> Callable[[Objects], None]:
    return lambda found: one(found, key)["references"].pop()


BROKEN: dict[str, tuple[Callable[[Objects], object], str]] = {
    "a panel's reference": (drop_reference("livefire-panel-load"), "no reference named indexpattern-datasource-layer"),
    "a dashboard's reference": (
        lambda f: one(f, "livefire-dashboard-drill")["references"].pop(0),
        "no reference named 1:panel_1",
    ),
    "a picker's reference": (drop_reference("livefire-dashboard-drill"), "KeyError 'controlGroup_picker-name"),
    "a panel that is gone": (lambda f: f.remove(one(f, "livefire-panel-load")), "no lens livefire-panel-load"),
    "a Vega panel that is gone": (
        lambda f: f.remove(one(f, "livefire-panel-latency")),
        "no visualization livefire-panel-latency",
    ),
    "a data view that is gone": (
        lambda f: f.remove(one(f, "livefire-totals-tumbling-10s")),
        "no data view of livefire-totals",
    ),
    "an id twice": (lambda f: f.append(f[-1]), "twice in the file"),
    "a reference twice": (lambda f: f[-1]["references"].append(f[-1]["references"][0]), "1:panel_1: twice"),
    "a reference too many": (
        lambda f: f[-1]["references"].append({"name": "x", "type": "lens", "id": "livefire-panel-meant"}),
        "reference x: nothing speaks of it",
    ),
    "a field in Lens": (
        lambda f: first_layer(f, "livefire-panel-meant")["columns"]["sum-offered"].update(
            sourceField="livefire.offred"
        ),
        "no field livefire.offred",
    ),
    "a field in Vega": (
        lambda f: respec(f, "livefire-panel-latency", lambda s: s.replace("livefire.p95_ms", "livefire.p95")),
        "no field livefire.p95 ",
    ),
    "a field in a filter": (
        lambda f: respec(f, "livefire-panel-latency", lambda s: s.replace("livefire.kind", "livefire.kinds")),
        "no field livefire.kinds",
    ),
    "a field in a query": (
        lambda f: one(f, "livefire-panel-meant")["attributes"]["state"]["query"].update(query='livefire.kid : "x"'),
        "no field livefire.kid",
    ),
    "a field of the wrong type": (
        lambda f: first_layer(f, "livefire-panel-meant")["columns"]["sum-offered"].update(sourceField="livefire.route"),
        "sum of livefire.route, a keyword",
    ),
    "a field in a picker": (
        lambda f: f[-1]["attributes"]["controlGroupInput"].update(
            panelsJSON=f[-1]["attributes"]["controlGroupInput"]["panelsJSON"].replace("livefire.run_id", "livefire.run")
        ),
        "no field livefire.run ",
    ),
    "a format of no field": (
        lambda f: f[0]["attributes"].update(fieldFormatMap='{"livefire.p96_ms":{}}'),
        "no field livefire.p96_ms",
    ),
    "an aggregation that is read": (
        lambda f: respec(f, "livefire-panel-latency", lambda s: s.replace('"p95_ms":{"max"', '"p96_ms":{"max"')),
        "reads p95_ms.value, which is nowhere aggregated",
    ),
    "a value that is shown": (
        lambda f: respec(f, "livefire-panel-knee", lambda s: s.replace('"field":"p95 ms"', '"field":"p96 ms"')),
        "shows p96 ms, which is nowhere made",
    ),
    "filters that do not reach": (
        lambda f: respec(f, "livefire-panel-knee", lambda s: s.replace('"%context%":true', '"%context%":false')),
        "the dashboard's filters and time do not reach it",
    ),
    "a query beside the context": (
        lambda f: respec(f, "livefire-panel-knee", lambda s: s.replace('"body":{', '"body":{"query":{},')),
        "the dashboard's filters and time do not reach it",
    ),
    "encoded once too often": (
        lambda f: f[-1]["attributes"].update(panelsJSON=json.loads(f[-1]["attributes"]["panelsJSON"])),
        "panelsJSON is not a string that holds JSON",
    ),
    "an attribute too many": (lambda f: f[-1]["attributes"].update(panels=[]), "attribute panels is refused"),
    "an attribute too few": (lambda f: f[0]["attributes"].pop("name"), "attribute name is missing"),
    "a version": (lambda f: f[-1].update(typeMigrationVersion="8.10.0"), "wrong versions"),
    "no version": (lambda f: f[-1].pop("typeMigrationVersion"), "typeMigrationVersion is missing"),
    "a column out of order": (
        lambda f: first_layer(f, "livefire-panel-load")["columnOrder"].pop(),
        "columnOrder is not its columns",
    ),
    "a column that is not drawn": (
        lambda f: one(f, "livefire-panel-load")["attributes"]["state"]["visualization"]["layers"][0]["accessors"].pop(),
        "what is drawn is not what the layers hold",
    ),
    "a panel over another": (lambda f: repanel(f, lambda p: p[1]["gridData"].update(x=0)), "lies over panel 1"),
    "a panel outside": (lambda f: repanel(f, lambda p: p[5]["gridData"].update(w=9)), "outside of 48 columns"),
    "a panel in another's name": (
        lambda f: repanel(f, lambda p: p[0].update(panelRefName="panel_9")),
        "named otherwise than its place",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_the_rules_find_what_is_broken(what: str) -> None:
    found = [json.loads(line) for line in exported().splitlines()]
    damage, told = BROKEN[what]
    damage(found)
    text = "\n".join(json.dumps(each) for each in found)
    assert [line for line in problems(text, FIELDS) if re.search(re.escape(told), line + " ")], problems(text, FIELDS)


# -- what may not be made


def test_what_may_not_be_summed_is_refused() -> None:
    view = views().routes
    for bad in ("livefire.p95_ms", "livefire.offered_rate", "livefire.error_share", "livefire.step"):
        with pytest.raises(ValueError, match="may not be summed"):
            lens.total(view, bad, "x")
        with pytest.raises(ValueError, match="may not be summed"):
            vega.sums(view, bad.removeprefix("livefire."))
    with pytest.raises(ValueError, match="is no number"):
        lens.highest(view, "livefire.route", "x")
    with pytest.raises(ValueError, match="is no number"):
        vega.highest(view, "run_id")
    with pytest.raises(KeyError, match=r"no field livefire\.p96_ms"):
        lens.highest(view, "livefire.p96_ms", "x")


# -- addresses


NS = 1_000_000_000


def test_the_address_opens_the_drill_with_run_and_time() -> None:
    address = dashboard_address(
        "https://kibana.example:5601/", "ops", "01JD'X!", 1_800_000_000 * NS, 1_800_000_060 * NS
    )
    parts = urlsplit(address)
    assert (parts.netloc, parts.path) == ("kibana.example:5601", "/s/ops/app/dashboards")
    fragment = unquote(parts.fragment)
    assert fragment.startswith("/view/livefire-dashboard-drill?_g=(refreshInterval:(pause:!t,value:10000),time:(")
    assert "from:'2027-01-15T07:59:50.000Z',to:'2027-01-15T08:01:30.000Z'" in fragment
    assert "query:(match_phrase:(livefire.run_id:'01JD!'X!!'))" in fragment
    assert "index:'livefire-windows-tumbling-10s'" in fragment
    assert not re.search(r"[\s\"<>{}#]", parts.fragment)


def test_while_it_runs_the_page_follows_it() -> None:
    address = unquote(dashboard_address("http://127.0.0.1:5601/kibana", "", "r", 1_800_000_000 * NS, None))
    assert "to:'now'" in address and "pause:!f" in address
    assert address.startswith("http://127.0.0.1:5601/kibana/app/dashboards#/view/")


@pytest.mark.parametrize(
    ("url", "space", "base"),
    [
        ("https://k:5601", "", "https://k:5601"),
        ("https://k:5601/", "default", "https://k:5601"),
        ("https://k:5601", "ops", "https://k:5601/s/ops"),
        ("https://k:5601", "a/b c", "https://k:5601/s/a%2Fb%20c"),
        ("https://k:5601/s/ops", "", "https://k:5601/s/ops"),
        ("https://k:5601/s/ops/", "ops", "https://k:5601/s/ops"),
        ("https://proxy/kibana", "ops", "https://proxy/kibana/s/ops"),
    ],
)
def test_where_a_space_is(url: str, space: str, base: str) -> None:
    assert base_address(url, space) == base


@pytest.mark.parametrize(
    ("url", "space", "told"),
    [
        ("kibana:5601", "", "is no address; give one like"),
        ("ftp://k", "", "is no address"),
        ("https://", "", "is no address"),
        ("https://u:secret@k:5601", "", "no user and password in the address"),
        ("https://k:5601/app/home#/x", "", "without . and #"),
        ("https://k:5601/s/ops", "dev", "names the space 'ops', not 'dev'"),
        ("https://u:secret@[k", "", "is no address"),
        ("https://k:56010000", "", "is no address"),
    ],
)
def test_an_address_that_is_none_is_one_line(url: str, space: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as error:
        base_address(url, space)
    assert "secret" not in str(error.value) and "\n" not in str(error.value)


def test_rison() -> None:
    value = {"a": [1, None, True, "x'y!"], "$state": {}, "b.c": False, "": ""}
    assert rison(value) == "(a:!(1,!n,!t,'x!'y!!'),'$state':(),b.c:!f,'':'')"
    with pytest.raises(TypeError):
        rison(1.5)
