"""A place of its own on a running Elasticsearch: a prefix of names, removed afterwards with all that was made under it."""

from __future__ import annotations

import contextlib
import json
import secrets
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from analytics.store_address import open_store
from analytics.store_elasticsearch import ElasticsearchStore


class Place:
    """`url` of the server; `address` of stores whose indices begin with `name`."""

    def __init__(self, url: str) -> None:
        self.url, self.name = url, "lf-" + secrets.token_hex(5)
        self.address = f"elasticsearch://{url.removeprefix('http://')}/{self.name}"

    def open(self, run_id: str) -> ElasticsearchStore:
        store = open_store(self.address, run_id)
        assert isinstance(store, ElasticsearchStore)
        return store

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Raises AssertionError with the server's words."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {path}: {error.code} {error.read().decode()}") from None

    def search(self, body: Any, pattern: str) -> Any:
        self.ask("POST", f"/{pattern}/_refresh")
        return self.ask("POST", f"/{pattern}/_search", body)

    def sources(self, pattern: str, query: Any = None) -> list[dict[str, Any]]:
        """All documents of a pattern, at most 10,000."""
        hits = self.search({"size": 10_000, "query": query or {"match_all": {}}}, pattern)["hits"]["hits"]
        return [hit["_source"] for hit in hits]

    def remove(self) -> None:
        """All but a data stream: this server has no request to remove one."""
        for kind in ("windows", "totals", "panes", "runs"):
            with contextlib.suppress(AssertionError):
                self.ask("DELETE", f"/{self.name}-{kind}*?expand_wildcards=all")
            with contextlib.suppress(AssertionError):
                self.ask("DELETE", f"/_index_template/{self.name}-{kind}")
        for kind in ("window", "range", "run"):
            with contextlib.suppress(AssertionError):
                self.ask("DELETE", f"/_component_template/{self.name}-{kind}-fields")
        with contextlib.suppress(AssertionError):  # those of a stream that was made cannot be removed either
            self.ask("DELETE", f"/_index_template/{self.name}-exemplars")
            self.ask("DELETE", f"/_component_template/{self.name}-exemplar-fields")


@contextmanager
def place_of(request: pytest.FixtureRequest) -> Iterator[Place]:
    place = Place(request.getfixturevalue("elasticsearch_server").address)
    try:
        yield place
    finally:
        place.remove()
