"""Names of routes, from a table."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wire import head as heads
from wire import routes
from wire.records import Route, RouteTable
from wire.routes import RouteMatcher


def _matcher(*names: str) -> RouteMatcher:
    learned = []
    for name in names:
        method, path = name.split(" ", 1)
        pattern = tuple(path[1:].split("/")) if path != "/" else ()
        learned.append(Route(name, method, pattern))
    return RouteMatcher(RouteTable("r", tuple(learned)))


TABLE = _matcher(
    "GET /", "GET /orders", "GET /orders/{id}", "GET /orders/latest", "GET /orders/{id}/items/{item_id}",
    "POST /orders", "GET /{tenant}/about", "GET /orders/", "GET /a b",
)  # fmt: skip


@pytest.mark.parametrize(
    ("method", "target", "name"),
    [
        (b"GET", b"/", "GET /"),
        (b"GET", b"/?x=1", "GET /"),
        (b"GET", b"/orders", "GET /orders"),
        (b"GET", b"/orders/", "GET /orders/"),
        (b"GET", b"/orders/17?x=/y", "GET /orders/{id}"),
        (b"GET", b"/orders/latest", "GET /orders/latest"),
        (b"GET", b"/orders/17/items/3#top", "GET /orders/{id}/items/{item_id}"),
        (b"GET", b"/orders/about", "GET /orders/{id}"),
        (b"GET", b"/acme/about", "GET /{tenant}/about"),
        (b"POST", b"/orders", "POST /orders"),
        (b"POST", b"/orders/17", "POST (other)"),
        (b"GET", b"http://shop.test/orders/17", "GET /orders/{id}"),
        (b"GET", b"http://shop.test", "GET /"),
        (b"GET", b"/a%20b", "GET /a b"),
        (b"DELETE", b"/orders", "DELETE (other)"),
        (b"OPTIONS", b"*", "OPTIONS (other)"),
        (b"CONNECT", b"shop.test:443", "CONNECT (other)"),
        (b"\xff" * 90, b"/", "\ufffd" * 20 + " (other)"),
        (b"", b"", " (other)"),
    ],
)
def test_a_request_is_named(method: bytes, target: bytes, name: str) -> None:
    assert TABLE.name(method, target) == name
    assert TABLE.name(method, target) == name  # from the cache too


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "MAX_CACHED", 10)
    matcher = _matcher("GET /orders/{id}")
    for number in range(100):
        assert matcher.name(b"GET", b"/orders/%d" % number) == "GET /orders/{id}"
        assert len(matcher._cache) <= 10


SEGMENTS = st.sampled_from(["", "a", "b", "ab", "é", "%", "/", "\0", "\udcff", "\udcc3\udca9", "{id}", "{}", "{x"])
PARTS = st.sampled_from(
    [b"", b"a", b"b", b"ab", "é".encode(), b"%61", b"%2F", b"%25", b"%", b"\0", b"\xff", b"{id}", b"x"]
)


@settings(max_examples=400, deadline=None)
@given(
    patterns=st.lists(st.tuples(st.sampled_from(["GET", "P"]), st.lists(SEGMENTS, max_size=4)), max_size=8),
    paths=st.lists(st.lists(PARTS, max_size=5), max_size=8),
    method=st.sampled_from([b"GET", b"P", b"X"]),
    bound=st.integers(1, 3),
)
def test_what_is_remembered_names_as_a_walk_through_the_table_does(
    patterns: list[tuple[str, list[str]]], paths: list[list[bytes]], method: bytes, bound: int
) -> None:
    table = tuple(Route(f"{n}", method, tuple(pattern)) for n, (method, pattern) in enumerate(patterns))
    matcher = RouteMatcher(RouteTable("r", table))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(routes, "MAX_CACHED", bound)
        for parts in paths * 2:
            target = b"/" + b"/".join(parts)
            assert matcher.name(method, target) == matcher._name(method, heads.path_of(target))
            assert len(matcher._cache) <= bound and len(matcher._lasts) <= bound


def test_the_last_segment_is_all_that_is_looked_at_of_most_paths() -> None:
    matcher = _matcher("GET /orders/{id}", "GET /orders/latest", "GET /{tenant}/about")
    for number in range(100):
        assert matcher.name(b"GET", b"/orders/%d" % number) == "GET /orders/{id}"
    assert len(matcher._cache) == len(matcher._lasts) == 1
