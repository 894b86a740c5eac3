"""Routes are learned from paths: by the shape of segments, and by how many there are."""

from __future__ import annotations

import random
import uuid

import pytest

from cleanse import routes as module
from cleanse.routes import RouteLearner, varies
from mask.tokens import Tokens
from wire.config import ConfigError
from wire.routes import RouteMatcher


def names(paths: list[str], **settings: object) -> list[str]:
    learner = RouteLearner(**settings)  # type: ignore[arg-type]
    for path in paths:
        method, _, target = path.partition(" ")
        learner.add(method, target.encode())
    return sorted(route.name for route in learner.table("r").routes)


@pytest.mark.parametrize(
    "segment",
    ["17", "P0001", "sku-00017", "0f8fad5b-d9cb-469f-a165-70867728950e", "deadbeef12", "ann@mail.example", "2026-11-20",
     "k9J2mQ8xL4pR7vT1", "1f1f684c02126eec746c0fb5", Tokens(b"k" * 16).token("anything at all")],
)  # fmt: skip
def test_values_vary_by_their_shape(segment: str) -> None:
    assert varies(segment)


@pytest.mark.parametrize(
    "segment", ["orders", "v1", "v2.1", "latest", "order-history", "OAuth2", "s3", "", "index.html"]
)
def test_names_do_not(segment: str) -> None:
    assert not varies(segment)


def test_a_small_api() -> None:
    paths = [f"GET /v1/orders/{n}" for n in range(5)] + ["GET /v1/orders/latest"] * 5
    paths += [f"GET /v1/orders/{n}/items/{uuid.UUID(int=n * 7919 << 64)}" for n in range(5)]
    paths += ["POST /v1/orders", "GET /", "GET /v1/orders?page=2".partition("?")[0]]
    assert names(paths) == [
        "GET /", "GET /v1/orders", "GET /v1/orders/latest", "GET /v1/orders/{id}", "GET /v1/orders/{id}/items/{id}",
        "POST /v1/orders",
    ]  # fmt: skip


def test_names_that_differ_in_digits_alone_are_values() -> None:
    assert names([f"GET /seats/row{n}" for n in range(4)]) == ["GET /seats/{id}"]
    assert names(["GET /v1/a", "GET /v2/a", "GET /v3/a"]) == ["GET /v1/a", "GET /v2/a", "GET /v3/a"]


WORDS = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath"]
MANY = [f"{a}-{b}" for a in WORDS for b in WORDS]


def test_many_names_alike_are_values_and_few_are_not() -> None:
    assert names([f"GET /shop/{slug}" for slug in MANY]) == ["GET /shop/{id}"]
    assert len(names([f"GET /shop/{slug}" for slug in MANY[:8]])) == 8
    kept = names([f"GET /shop/{slug}/price" for slug in MANY] + ["GET /shop/about", "POST /shop/about"])
    assert kept == ["GET /shop/about", "GET /shop/{id}/price", "POST /shop/about"]


def test_the_order_of_paths_does_not_matter() -> None:
    paths = (
        [f"GET /a/{slug}/b/{n}" for n, slug in enumerate(MANY)] + [f"POST /c/{n}" for n in range(30)] + ["GET /c/x"] * 9
    )
    first = names(paths)
    for seed in range(3):
        random.Random(seed).shuffle(paths)
        assert names(paths) == first


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_NODES", 500)
    monkeypatch.setattr(module, "MAX_CHILDREN", 50)
    rng = random.Random(1)
    learner = RouteLearner()
    for _ in range(5000):
        learner.add("GET", "/".join(["", *("".join(rng.choices("abcdefghij", k=6)) for _ in range(3))]).encode())
    assert learner._nodes <= 500
    table = learner.table("r")
    assert sum(route.count for route in table.routes) <= 5000 and len(table.routes) <= module.MAX_ROUTES
    learner.add("GET", b"/x" * 5000)
    learner.add("GET", b"*")


def test_known_patterns_win_and_routes_are_renamed() -> None:
    paths = [f"GET /shop/{slug}" for slug in MANY[:5]] + ["GET /shop/about/us", "GET /x/17"]
    found = names(paths, known=["GET /shop/{slug}"], rename={"GET /shop/{slug}": "shop page", "GET /x/{id}": "x"})
    assert found == ["GET /shop/about/us", "shop page", "x"]


def test_the_matcher_names_every_path_that_was_learned_from() -> None:
    paths = [f"/a/{slug}/{n}" for n, slug in enumerate(MANY)] + ["/", "/a", "/a/", "/b%20c/17"]
    learner = RouteLearner()
    for path in paths:
        learner.add("GET", path.encode())
    matcher = RouteMatcher(learner.table("r"))
    assert not [path for path in paths if matcher.name(b"GET", path.encode()).endswith("(other)")]
    assert matcher.name(b"GET", b"/never/seen") == "GET (other)"


@pytest.mark.parametrize("text", ["orders", "/orders", "get /orders", "GET orders"])
def test_a_bad_pattern_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a route"):
        RouteLearner([text])


def test_an_id_of_letters_alone_is_an_id_beside_ids_of_its_length() -> None:
    ids = [f"/orders/{'aB3' * 5}{n:x}" for n in range(10)]
    stray = "/orders/bvmyCzymdniKVWVI"
    assert names([f"GET {path}" for path in [*ids, stray, stray, stray]]) == ["GET /orders/{id}"]
    kept = ["/orders/recent", "/orders/getOrderSummary", "/orders/mostRecentOrders"]
    found = names([f"GET {path}" for path in [*ids, *kept]])
    assert found == sorted(f"GET {path}" for path in [*kept, "/orders/{id}"])
