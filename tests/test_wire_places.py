"""Where values stand: what is listed can be read, and what is put in is read back, with every other byte kept."""

from __future__ import annotations

import json
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wire import content, jsontext
from wire.places import read_request, read_response, substitute, values_of_request, values_of_response
from wire.records import Place, PlaceKind

HEAD = (
    b"POST /shop/orders/a%20b?page=2&q=red+shoes&q=x%26y HTTP/1.1\r\n"
    b"Host: shop.test\r\n"
    b"authorization: Bearer abc.def\r\n"
    b'Cookie: sid=s%2F1; theme="dark mode"; other=1\r\n'
    b"Referer: http://shop.test/carts/c77?step=pay\r\n"
    b"X-Request-Token: t-1\r\n"
    b"Content-Type: TYPE\r\n\r\n"
)
JSON_HEAD = HEAD.replace(b"TYPE", b"application/json; charset=utf-8")
JSON_BODY = b'{ "items": [ {"id": "i1", "n": 2}, {"id": "i\\u0032"} ], "we.ird": {"a\\"b": true, "x": -1.50} }'
FORM_HEAD = HEAD.replace(b"TYPE", b"application/x-www-form-urlencoded")


def at(kind: PlaceKind, name: str, prefix: str = "") -> Place:
    return Place(kind, name, prefix)


REQUEST_TABLE = [
    (at(PlaceKind.PATH, "0"), ["shop"]),
    (at(PlaceKind.PATH, "2"), ["a b"]),
    (at(PlaceKind.QUERY, "page"), ["2"]),
    (at(PlaceKind.QUERY, "q"), ["red shoes", "x&y"]),
    (at(PlaceKind.HEADER, "authorization", "Bearer "), ["abc.def"]),
    (at(PlaceKind.HEADER, "x-request-token"), ["t-1"]),
    (at(PlaceKind.HEADER, "referer[1]"), ["c77"]),
    (at(PlaceKind.HEADER, "referer?step"), ["pay"]),
    (at(PlaceKind.COOKIE, "sid"), ["s/1"]),
    (at(PlaceKind.COOKIE, "theme"), ["dark mode"]),
    (at(PlaceKind.JSON, "$.items[*].id"), ["i1", "i2"]),
    (at(PlaceKind.JSON, "$.items[*].n"), ["2"]),
    (at(PlaceKind.JSON, '$["we.ird"].x'), ["-1.50"]),
]


@pytest.mark.parametrize(("place", "values"), REQUEST_TABLE, ids=lambda v: getattr(v, "name", None))
def test_a_place_of_a_request_is_listed_read_and_changed(place: Place, values: list[str]) -> None:
    assert [value for found, value in values_of_request(JSON_HEAD, JSON_BODY) if found == place] == values
    assert read_request(place, JSON_HEAD, JSON_BODY) == values

    head, body = substitute(JSON_HEAD, JSON_BODY, place, lambda value: f"new{value}&=;/é")
    assert read_request(place, head, body) == [f"new{value}&=;/é" for value in values]
    # Nothing else moved: putting the old values back gives the old bytes, up to spelling of the place itself.
    others = [pair for pair in values_of_request(JSON_HEAD, JSON_BODY) if pair[0] != place]
    assert [pair for pair in values_of_request(head, body) if pair[0] != place] == others
    assert substitute(JSON_HEAD, JSON_BODY, place, lambda value: None) == (JSON_HEAD, JSON_BODY)


def test_an_absent_place_changes_nothing() -> None:
    for kind in PlaceKind:
        for name in ("absent", "9", "$.absent", "$", "not a path", "location[1]"):
            place = at(kind, name)
            assert read_request(place, JSON_HEAD, JSON_BODY) == []
            assert read_response(place, b"HTTP/1.1 200 OK\r\n\r\n", b"") == []
            assert substitute(JSON_HEAD, JSON_BODY, place, lambda value: "x") == (JSON_HEAD, JSON_BODY)


def test_another_scheme_is_another_place() -> None:
    place = at(PlaceKind.HEADER, "authorization", "Basic ")
    assert substitute(JSON_HEAD, b"", place, lambda value: "x") == (JSON_HEAD, b"")


def test_a_form_is_changed_and_what_is_put_in_cannot_add_a_field() -> None:
    body = b"name=Ann+Lee&name=b%3D&empty=&flag"
    place = at(PlaceKind.FORM, "name")
    assert read_request(place, FORM_HEAD, body) == ["Ann Lee", "b="]
    _, changed = substitute(FORM_HEAD, body, place, lambda value: "x&admin=1" if value == "b=" else None)
    assert changed == b"name=Ann+Lee&name=x%26admin%3D1&empty=&flag"


def test_a_live_value_cannot_end_its_header_line() -> None:
    place = at(PlaceKind.HEADER, "x-request-token")
    head, _ = substitute(JSON_HEAD, b"", place, lambda value: "a\r\nX-Admin: 1")
    assert b"\r\nX-Admin" not in head
    cookie, _ = substitute(JSON_HEAD, b"", at(PlaceKind.COOKIE, "other"), lambda value: "a; admin=1\r\n")
    assert read_request(at(PlaceKind.COOKIE, "admin"), cookie, b"") == []
    twice, _ = substitute(JSON_HEAD, b"", at(PlaceKind.COOKIE, "sid"), lambda value: "a%41b")
    assert read_request(at(PlaceKind.COOKIE, "sid"), twice, b"") == ["a%41b"]


def test_a_number_stays_a_number() -> None:
    head = HEAD.replace(b"TYPE", b"application/json")
    place = at(PlaceKind.JSON, "$.id")
    assert substitute(head, b'{"id": 17}', place, lambda value: "18")[1] == b'{"id": 18}'
    assert substitute(head, b'{"id": 17}', place, lambda value: "a1")[1] == b'{"id": "a1"}'
    assert substitute(head, b'{"id": "17"}', place, lambda value: "18")[1] == b'{"id": "18"}'


@pytest.mark.parametrize("coding", [b"gzip", b"deflate", b"zstd", b"gzip, deflate"])
def test_content_codings_are_taken_off_and_put_on(coding: bytes) -> None:
    codings = tuple(part.strip() for part in coding.split(b","))
    head = JSON_HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: " + coding + b"\r\n\r\n")
    place = at(PlaceKind.JSON, "$.items[*].id")
    body = content.encoded(JSON_BODY, codings)
    assert read_request(place, head, body) == ["i1", "i2"]
    _, changed = substitute(head, body, place, lambda value: "z" if value == "i1" else None)
    assert content.decoded(changed, codings) == (JSON_BODY.replace(b'"i1"', b'"z"'), True)
    assert read_request(place, head, b"\x00damaged") == []
    cut = content.decoded(body[:-3], codings)
    assert cut is None or cut[1] is False


def test_deflate_without_its_header_is_read() -> None:
    machine = zlib.compressobj(6, zlib.DEFLATED, -15)
    raw = machine.compress(b"hello" * 20) + machine.flush()
    assert content.decoded(raw, (b"deflate",)) == (b"hello" * 20, True)


@pytest.mark.patches
def test_a_bomb_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "MAX_DECODED_BYTES", 10_000)
    for coding in (b"gzip", b"zstd"):
        assert content.decoded(content.encoded(bytes(10_000), (coding,)), (coding,)) is not None
        assert content.decoded(content.encoded(bytes(10_001), (coding,)), (coding,)) is None


def test_an_answer_is_listed_and_read() -> None:
    head = (
        b"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nLocation: http://shop.test/orders/o-77?key=k1\r\n"
        b'Set-Cookie: sid=abc123; Path=/; HttpOnly\r\nSet-Cookie: other=2\r\nETag: "v1"\r\nDate: x\r\n\r\n'
    )
    body = b'{"token": "t1", "order": {"id": 9007199254740993}}'
    listed = values_of_response(head, body)
    expected = [
        (at(PlaceKind.HEADER, "location[0]"), "orders"),
        (at(PlaceKind.HEADER, "location[1]"), "o-77"),
        (at(PlaceKind.HEADER, "location?key"), "k1"),
        (at(PlaceKind.COOKIE, "sid"), "abc123"),
        (at(PlaceKind.COOKIE, "other"), "2"),
        (at(PlaceKind.HEADER, "etag"), '"v1"'),
        (at(PlaceKind.JSON, "$.token"), "t1"),
        (at(PlaceKind.JSON, "$.order.id"), "9007199254740993"),
    ]
    assert listed == expected
    for place, value in expected:
        assert read_response(place, head, body) == [value]


def test_a_list_at_the_top_is_read() -> None:
    head = b"HTTP/1.1 200 OK\r\n\r\n"
    assert read_response(at(PlaceKind.JSON, "$[*].id"), head, b'[{"id":"a"},{"id":"b"}]') == ["a", "b"]
    assert read_response(at(PlaceKind.JSON, "$"), head + b"", b"plain text") == []


def test_half_of_a_surrogate_pair_in_an_answer_can_be_put_anywhere() -> None:
    """It is no text, so it stays as it is written."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"
    (value,) = read_response(at(PlaceKind.JSON, "$.id"), head, b'{"id":"x\\ud83d"}')
    assert value == "x\\ud83d"
    assert read_response(at(PlaceKind.JSON, "$.id"), head, b'{"id":"x\\ud83d\\ude00"}') == ["x\U0001f600"]
    asked = b"GET /a/1?b=2 HTTP/1.1\r\nCookie: c=3\r\nX-D: 4\r\nContent-Type: application/json\r\n\r\n"
    for place in (at(PlaceKind.PATH, "1"), at(PlaceKind.QUERY, "b"), at(PlaceKind.COOKIE, "c"), at(PlaceKind.HEADER, "x-d"),
                  at(PlaceKind.JSON, "$.e")):  # fmt: skip
        assert read_request(place, *substitute(asked, b'{"e": 5}', place, lambda _: value)) == [value]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=20,
)


def _leaves(value: object, path: tuple[str | None, ...] = ()) -> list[tuple[tuple[str | None, ...], str]]:
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in _leaves(inner, (*path, key))]
    if isinstance(value, list):
        return [leaf for inner in value for leaf in _leaves(inner, (*path, None))]
    if isinstance(value, bool) or value is None:
        return []
    return [(path, str(value))]


@given(_JSON, st.booleans(), st.sampled_from([None, 2]))
@settings(max_examples=150, deadline=None)
def test_the_scanner_agrees_with_a_parser(value: object, ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")
    found = list(jsontext.scalars(text))
    if b"\xed" not in text:  # lone surrogates have no UTF-8
        assert [(scalar.path, scalar.value) for scalar in found] == _leaves(value)
    for scalar in found:
        assert jsontext.read_path(jsontext.written(scalar.path)) == scalar.path
    same = jsontext.changed(text, lambda scalar: text[scalar.start : scalar.end])
    assert same == text
    marked = jsontext.changed(text, lambda scalar: b'"new"')
    assert [found for _, found in _leaves(json.loads(marked))] == ["new"] * len(found)


@given(st.binary(max_size=200), st.binary(max_size=200))
@settings(max_examples=150, deadline=None)
def test_nothing_on_the_wire_raises(head: bytes, body: bytes) -> None:
    for prefix in (b"", b"POST / HTTP/1.1\r\nContent-Type: application/json\r\n", b"GET /a?b=c HTTP/1.1\r\ncookie:"):
        for place, value in values_of_request(prefix + head, body):
            assert value in read_request(place, prefix + head, body)
            substitute(prefix + head, body, place, lambda found: found + "x")
        for place, value in values_of_response(prefix + head, body):
            assert value in read_response(place, prefix + head, body)


@pytest.mark.parametrize("text", ["", "items", "$items", "$.", "$.a[", "$[a]"])
def test_a_bad_path_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a JSON path"):
        jsontext.read_path(text)
