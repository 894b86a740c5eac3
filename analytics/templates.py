"""Index templates of what `analytics.documents` makes, from the list of fields. Pure: bodies as the server takes them.

Mappings are strict: what is not in the list is refused, so that no index ever guesses a type.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from analytics.documents import day
from analytics.fields import EXEMPLAR_FIELDS, NAME, WINDOW_FIELDS, Field, exemplars_of

VERSION: Final = 1  # grows with the list of fields; an older program leaves newer templates alone
KEPT_DAYS: Final = 90
_UNSEARCHED: Final = frozenset({"livefire.request_head", "livefire.response_head"})
_LONG: Final = frozenset({"url.original", "url.path"})
_PRIORITY: Final = 300  # above the built-in templates (100..200)

#: Of the store's own documents: panes by source range, and what is known of each run.
RANGE_PROPERTIES: Final[dict[str, Any]] = {
    "run": {"type": "keyword"},
    "writer": {"type": "keyword"},
    "number": {"type": "long"},
    "first_s": {"type": "long"},
    "last_s": {"type": "long"},
    "sources": {"type": "object", "enabled": False},
    "panes": {"type": "object", "enabled": False},
}
RUN_PROPERTIES: Final[dict[str, Any]] = {
    "run": {"type": "keyword"},
    "writer": {"type": "keyword"},
    "former": {"type": "object", "enabled": False},
    "panes_index": {"type": "keyword"},
    "number": {"type": "long"},
    "held": {"type": "object", "enabled": False},
    "notes": {"type": "object", "enabled": False},
}


def properties(fields: Iterable[Field], *, histograms: bool) -> dict[str, Any]:
    """Mapping of fields, nested as their names are dotted. Optional ones only with `histograms`."""
    tree: dict[str, Any] = {}
    for field in fields:
        if field.optional and not histograms:
            continue
        *parents, leaf = field.name.split(".")
        level = tree
        for parent in parents:
            level = level.setdefault(parent, {"properties": {}})["properties"]
        level[leaf] = _type_of(field)
    return tree


def _type_of(field: Field) -> dict[str, Any]:
    if field.name in _UNSEARCHED:
        return {"type": field.type, "index": False, "doc_values": False}
    if field.name in _LONG:
        return {"type": field.type, "ignore_above": 4096}
    return {"type": field.type}


def component_templates(*, name: str = NAME, histograms: bool, lifecycle: bool) -> dict[str, dict[str, Any]]:
    """name -> body. `lifecycle`: the server has ILM."""
    found = {
        f"{name}-window-fields": _mappings(properties(WINDOW_FIELDS, histograms=histograms)),
        f"{name}-exemplar-fields": _mappings(properties(EXEMPLAR_FIELDS, histograms=histograms)),
        f"{name}-range-fields": _mappings(RANGE_PROPERTIES),
        f"{name}-run-fields": _mappings(RUN_PROPERTIES),
    }
    if lifecycle:
        found[f"{name}-lifecycle"] = {
            "template": {"settings": {"index.lifecycle.name": policy_name(name)}},
            "version": VERSION,
        }
    return found


def _mappings(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"template": {"mappings": {"dynamic": "strict", "properties": dict(fields)}}, "version": VERSION}


def index_templates(*, name: str = NAME, lifecycle: bool) -> dict[str, dict[str, Any]]:
    """name -> body. The store asks for a refresh where something has to be seen sooner, or was just written by it."""

    def one(pattern: str, fields: str, refresh: str = "1s", *, ages: bool = True) -> dict[str, Any]:
        return {
            "index_patterns": [pattern],
            "priority": _PRIORITY,
            "version": VERSION,
            "composed_of": [fields, *([f"{name}-lifecycle"] if lifecycle and ages else [])],
            "template": {
                "settings": {
                    "index.number_of_shards": 1,
                    "index.auto_expand_replicas": "0-1",
                    "index.refresh_interval": refresh,
                }
            },
        }

    stream = one(exemplars_of(name), f"{name}-exemplar-fields")
    return {
        f"{name}-windows": one(f"{name}-windows-*", f"{name}-window-fields"),
        f"{name}-totals": one(f"{name}-totals-*", f"{name}-window-fields"),
        f"{name}-panes": one(f"{name}-panes-*", f"{name}-range-fields", "30s"),
        f"{name}-runs": one(runs_index(name), f"{name}-run-fields", "30s", ages=False),
        f"{name}-exemplars": {**stream, "data_stream": {}},
    }


def runs_index(name: str = NAME) -> str:
    """One document a run: who writes it, how far it is, its notes. It does not age: it is small."""
    return f"{name}-runs"


def panes_index(second: int, name: str = NAME) -> str:
    """Where panes of runs are kept that are first written on the second's day; they stay there."""
    return f"{name}-panes-{day(second)}"


def policy_name(name: str = NAME) -> str:
    return f"{name}-retention"


def policy(days: int = KEPT_DAYS) -> dict[str, Any]:
    """The body of `PUT _ilm/policy/...`. Indices go by day already: it only deletes."""
    return {
        "policy": {
            "phases": {
                "hot": {"min_age": "0ms", "actions": {}},
                "delete": {"min_age": f"{days}d", "actions": {"delete": {}}},
            }
        }
    }


def faults(mappings: Mapping[str, Any], wanted: Mapping[str, Any], path: str = "") -> list[str]:
    """What of the wanted properties an index's mapping lacks or has otherwise, one line each."""
    found = []
    for name, body in wanted.items():
        where = f"{path}{name}"
        there = mappings.get(name)
        if there is None:
            found.append(f"{where} is not mapped")
        elif "properties" in body:
            found += faults(there.get("properties", {}), body["properties"], f"{where}.")
        elif there.get("type", "object") != body["type"]:
            found.append(f"{where} is {there.get('type', 'an object')}, not {body['type']}")
    return found
