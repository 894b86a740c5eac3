"""What cleansing learned, for people: which values of answers come back in which requests."""

from __future__ import annotations

from wire.records import Flow, Flows, Place, PlaceKind

_SHOWN = 3  # routes that are named before they are counted


def learned(flows: Flows) -> list[str]:
    """One line for each value that is handed out: 'POST /orders $.order -> path of GET /orders/{id}'."""
    by_source: dict[tuple[str, Place, str], list[Flow]] = {}
    for flow in flows.flows:
        by_source.setdefault((flow.source_route, flow.source, _where(flow.sink)), []).append(flow)
    lines = []
    for (route, source, where), found in sorted(by_source.items(), key=lambda item: -sum(f.support for f in item[1])):
        routes = sorted({flow.sink_route for flow in found})
        named = ", ".join(routes) if len(routes) <= _SHOWN else f"{len(routes)} routes"
        lines.append(f"{route} {_value(source)} -> {where} of {named}")
    return lines


def _value(place: Place) -> str:
    return place.name if place.kind is PlaceKind.JSON else f"{place.kind.value} {place.name}"


def _where(place: Place) -> str:
    return "path" if place.kind is PlaceKind.PATH else _value(place)
