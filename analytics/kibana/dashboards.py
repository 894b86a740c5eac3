"""The dashboards: panels in rows, pickers above them; and all objects together.

`Drill` is what on-call opens: left to right, top to bottom, what was meant, what came of it, what was lost, where.
Panels are saved by themselves, so that they can be put on other dashboards too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from analytics.fields import NAME
from analytics.kibana.data_views import DataView, all_views
from analytics.kibana.objects import Reference, SavedObject, ndjson, search_source, text
from analytics.kibana.panels import panels
from analytics.kibana.reading import views

COLUMNS: Final = 48  # of Kibana's grid
_OPTIONS: Final = {
    "useMargins": True,
    "syncColors": True,
    "syncCursor": True,
    "syncTooltips": False,
    "hidePanelTitles": False,
}
_OWN: Final = {"ignoreFilters": False, "ignoreQuery": False, "ignoreTimerange": False, "ignoreValidations": False}

Row = tuple[int, tuple[str, ...]]  # height, and the panels that share the width


class _Page(msgspec.Struct, frozen=True):
    key: str
    title: str
    description: str
    pickers: tuple[tuple[str, str], ...]  # field, label
    rows: tuple[Row, ...]
    live: bool = False  # refreshes itself while it is open


_RUN: Final = ("livefire.run_id", "Run")
_ROUTE: Final = ("livefire.route", "Route")
_SERVICE: Final = ("service.name", "Service")

_PAGES: Final = (
    _Page(
        "drill",
        "Drill",
        "One run: what was meant, what came of it, what was lost, where. Choose one run.",
        (_RUN, _SERVICE),
        (
            (6, ("meant", "answered", "errors", "error-share", "not-sent", "highest-p95")),
            (12, ("load", "latency")),
            (12, ("lost", "error-share-over-time", "knee")),
            (12, ("errors-by-route", "last-minute")),
            (13, ("routes",)),
            (10, ("steps",)),
            (10, ("exemplars",)),
        ),
        live=True,
    ),
    _Page(
        "route",
        "Route",
        "One route of a run: choose both.",
        (_RUN, _ROUTE),
        (
            (6, ("meant", "answered", "errors", "error-share", "not-sent")),
            (12, ("load", "latency-of-route")),
            (12, ("latency-by-route", "due-and-sent")),
            (12, ("wrong", "error-share-over-time", "bytes")),
            (10, ("steps",)),
            (10, ("exemplars",)),
        ),
    ),
    _Page(
        "production",
        "Production beside stress",
        "The same windows of both kinds of traffic. Production that was recorded by itself stands under its recording: "
        "choose it beside the run.",
        (_RUN, _ROUTE),
        (
            (13, ("hurt", "load-by-kind")),
            (12, ("p50-by-kind", "p95-by-kind", "p99-by-kind")),
            (12, ("error-share-by-kind",)),
            (15, ("routes-by-kind",)),
        ),
    ),
)


def dashboard_id(key: str, name: str = NAME) -> str:
    """Of `drill`, `route` or `production`."""
    return f"{name}-dashboard-{key}"


def objects(name: str = NAME) -> list[SavedObject]:
    """Everything that is imported: data views, panels, dashboards; each before what refers to it."""
    made = panels(name)
    pages = [_dashboard(page, made, views(name).routes, name) for page in _PAGES]
    used = {reference.id for page in pages for reference in page.references}
    return [
        *(view.saved() for view in all_views(name)),
        *(panel for panel in made.values() if panel.id in used),
        *pages,
    ]


def exported(name: str = NAME) -> str:
    """The file that Kibana imports."""
    return ndjson(objects(name))


def _dashboard(page: _Page, made: dict[str, SavedObject], view: DataView, name: str) -> SavedObject:
    placed, references = _placed(page.rows, made)
    pickers, more = _pickers(page.pickers, view)
    attributes = {
        "title": f"{name[:1].upper()}{name[1:]}: {page.title}",
        "description": page.description,
        "panelsJSON": text(placed),
        "optionsJSON": text(_OPTIONS),
        "controlGroupInput": {
            "controlStyle": "oneLine",
            "chainingSystem": "HIERARCHICAL",
            "ignoreParentSettingsJSON": text(_OWN),
            "panelsJSON": text(pickers),
        },
        "kibanaSavedObjectMeta": search_source(),
        "timeRestore": True,
        "timeFrom": "now-1h",
        "timeTo": "now",
        "refreshInterval": {"pause": not page.live, "value": 10_000},
    }
    return SavedObject("dashboard", dashboard_id(page.key, name), attributes, (*references, *more))


def _placed(rows: Sequence[Row], made: dict[str, SavedObject]) -> tuple[list[dict[str, Any]], list[Reference]]:
    """Panels in the grid, top down, each row shared out evenly. Raises KeyError for a panel that is none."""
    placed: list[dict[str, Any]] = []
    references = []
    top = 0
    for height, keys in rows:
        for number, key in enumerate(keys):
            left, right = (COLUMNS * number // len(keys), COLUMNS * (number + 1) // len(keys))
            index = str(len(placed) + 1)
            placed.append(
                {
                    "type": made[key].type,
                    "panelIndex": index,
                    "gridData": {"x": left, "y": top, "w": right - left, "h": height, "i": index},
                    "embeddableConfig": {"enhancements": {}},
                    "panelRefName": f"panel_{index}",
                }
            )
            references.append(Reference(f"{index}:panel_{index}", made[key].type, made[key].id))
        top += height
    return placed, references


def _pickers(fields: Sequence[tuple[str, str]], view: DataView) -> tuple[dict[str, Any], list[Reference]]:
    found: dict[str, Any] = {}
    references = []
    for order, (field, label) in enumerate(fields):
        key = f"picker-{view.field(field).name.rpartition('.')[2]}"
        found[key] = {
            "type": "optionsListControl",
            "order": order,
            "grow": True,
            "width": "medium",
            "explicitInput": {
                "id": key,
                "fieldName": field,
                "title": label,
                "selectedOptions": [],
                "enhancements": {},
            },
        }
        references.append(Reference(f"controlGroup_{key}:optionsListDataView", "index-pattern", view.id))
    return found, references
