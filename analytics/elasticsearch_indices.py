"""Templates and indices as they stand on the server: put in place, and looked at before the first write."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from analytics import templates
from analytics.documents import day
from analytics.elasticsearch_client import Client, Refused
from analytics.fields import EXEMPLAR_FIELDS, SERIES, WINDOW_FIELDS, base_of, exemplars_of
from analytics.store_port import StoreError

_NOT_ALLOWED: Final = 403
_NO_HANDLER: Final = frozenset({400, 405, _NOT_ALLOWED})
_DAY_S: Final = 86_400


class Indices:
    """`histograms`: the server takes fields of that type; known after `install`."""

    def __init__(self, client: Client, name: str) -> None:
        self._client, self._name = client, name
        self._checked: set[str] = set()
        self.histograms = False

    def install(self) -> None:
        """Put the templates in place, unless newer ones are. What the server cannot do is found out here, once."""
        first = f"{self._name}-window-fields"
        found = self._client.request("GET", f"/_component_template/{first}", absent=True)
        there = found["component_templates"][0]["component_template"] if found else {}
        if there.get("version", 0) > templates.VERSION:
            self.histograms = "latencies_ms" in json.dumps(there)
            return
        lifecycle = self._has_lifecycle()
        self.histograms = True
        try:
            self._put_templates(lifecycle)
        except Refused as refused:
            if "histogram" not in refused.reason:
                raise
            self.histograms = False
            self._put_templates(lifecycle)

    def _put_templates(self, lifecycle: bool) -> None:
        parts = templates.component_templates(name=self._name, histograms=self.histograms, lifecycle=lifecycle)
        for key, body in parts.items():
            self._put(f"/_component_template/{key}", body)
        for key, body in templates.index_templates(name=self._name, lifecycle=lifecycle).items():
            self._put(f"/_index_template/{key}", body)

    def _put(self, path: str, body: Mapping[str, Any]) -> None:
        try:
            self._client.request("PUT", path, body)
        except Refused as refused:
            # Who may only write goes on with what somebody else put there: each mapping is looked at before its use.
            if refused.status != _NOT_ALLOWED:
                raise

    def _has_lifecycle(self) -> bool:
        """Whether the server has ILM; then there is a policy afterwards: ours, unless there was one already."""
        path = f"/_ilm/policy/{templates.policy_name(self._name)}"
        try:
            if self._client.request("GET", path, absent=True) is None:
                self._client.request("PUT", path, templates.policy())
        except Refused as refused:
            if refused.status in _NO_HANDLER:
                return False
            raise
        return True

    def ensure(self, index: str, wanted: Mapping[str, Any]) -> None:
        """The index is there afterwards, and its mapping is ours. Raises StoreError when it is another's."""
        if index in self._checked:
            return
        found = self._client.request("GET", f"/{index}/_mapping", absent=True)
        if found is None:
            self._make(index)
            found = self._client.request("GET", f"/{index}/_mapping")
        self._check(index, next(iter(found.values()))["mappings"], wanted)

    def _make(self, index: str) -> None:
        try:
            self._client.request("PUT", f"/{index}")
        except Refused as refused:
            if refused.type != "resource_already_exists_exception":
                raise

    @property
    def window_properties(self) -> dict[str, Any]:
        return templates.properties(WINDOW_FIELDS, histograms=self.histograms)

    def look(self, second: int) -> list[str]:
        """Look, in one request, at what there is of the windows that begin on a second's day; what is missing."""
        wanted = [base_of(series, all_routes=both, name=self._name) for series in SERIES for both in (False, True)]
        names = [f"{base}-{day(second)}" for base in wanted]
        if all(name in self._checked for name in names):
            return []
        path = f"/{self._name}-windows-*-{day(second)},{self._name}-totals-*-{day(second)}/_mapping"
        found = self._client.request("GET", path, params={"ignore_unavailable": "true"}, absent=True) or {}
        for name in names:
            if name in found:
                self._check(name, found[name]["mappings"], self.window_properties)
        return [name for name in names if name not in self._checked]

    def ensure_windows(self, index: str, second: int) -> None:
        """`ensure`, of windows that begin on a second's day."""
        if index not in self._checked:
            self.look(second)
            self.ensure(index, self.window_properties)

    def make_ahead(self, second: int) -> None:
        """All of the second's day, and of the next day one at each call: to make one takes up to a second."""
        self.ensure(templates.runs_index(self._name), templates.RUN_PROPERTIES)
        self.ensure(templates.panes_index(second, self._name), templates.RANGE_PROPERTIES)
        for name in self.look(second):
            self.ensure(name, self.window_properties)
        for name in self.look(second + _DAY_S)[:1]:
            self.ensure(name, self.window_properties)

    def check_stream(self) -> None:
        """The stream of exemplars will be made, by the first write, of our template. Raises StoreError if not."""
        stream = exemplars_of(self._name)
        if stream in self._checked:
            return
        found = self._client.request("POST", f"/_index_template/_simulate_index/{stream}")
        wanted = templates.properties(EXEMPLAR_FIELDS, histograms=self.histograms)
        self._check(stream, found.get("template", {}).get("mappings", {}), wanted)

    def _check(self, index: str, mapping: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        faults = templates.faults(mapping.get("properties", {}), wanted)
        if mapping.get("dynamic") != "strict":
            faults.append("types of unknown fields are guessed")
        if faults:
            more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
            raise StoreError(
                f"{self._client.where}: {index} was not made by our template: {faults[0]}{more}; "
                "remove it, or give another name (elasticsearch://host:port/name)"
            )
        self._checked.add(index)
