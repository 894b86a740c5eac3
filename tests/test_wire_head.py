"""Heads: parsed from any bytes without an exception, changed without touching the rest."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wire import head
from wire.head import RequestHead, ResponseHead

TOKEN = st.text("abcXYZ019-_", min_size=1, max_size=8).map(str.encode)
VALUE = st.text("abc XYZ019;=,\xe9", max_size=12).map(lambda text: text.strip().encode("latin-1"))
FIELDS = st.lists(st.tuples(TOKEN, VALUE), max_size=6)
TARGET = st.text("/abc?=&%20", min_size=1, max_size=12).map(lambda text: b"/" + text.replace(" ", "").encode())

SAMPLE = (
    b"GET /a/b?x=1&y=2 HTTP/1.1\r\nHost: shop\r\nCookie: sid=1\r\ncookie: b=2\r\n"
    b"X-Folded: one\r\n  two\r\nEmpty:\r\n\r\n"
)


def test_a_request_head_is_read_on_demand() -> None:
    assert head.request_head(SAMPLE) == RequestHead(
        b"GET", b"/a/b?x=1&y=2", b"HTTP/1.1",
        [(b"Host", b"shop"), (b"Cookie", b"sid=1"), (b"cookie", b"b=2"), (b"X-Folded", b"one two"), (b"Empty", b"")],
    )  # fmt: skip
    assert head.field(SAMPLE, b"cookie") == b"sid=1" and head.field(SAMPLE, b"absent") is None
    assert head.method_of(SAMPLE) == b"GET" and head.target_of(SAMPLE) == b"/a/b?x=1&y=2"
    assert head.target_of(b"GET /x HTTP/1.1") == b"/x"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"GET   /a HTTP/1.1", (b"GET", b"/a", b"HTTP/1.1")),
        (b"GET\t/a\tHTTP/1.1", (b"GET", b"/a", b"HTTP/1.1")),
        (b"GET /a  b HTTP/1.1 ", (b"GET", b"/a  b", b"HTTP/1.1")),
        (b"GET \t/a", (b"GET", b"/a", b"")),
        (b"GET  HTTP/1.1", (b"GET", b"", b"HTTP/1.1")),
        (b"GET\t", (b"GET", b"", b"")),
        (b" \t ", (b"", b"", b"")),
    ],
)
def test_any_blanks_part_the_words_of_a_request_line(line: bytes, words: tuple[bytes, ...]) -> None:
    assert head.request_head(line + b"\r\nHost: x\r\n\r\n") == (*words, [(b"Host", b"x")])


def test_a_response_head_is_read_on_demand() -> None:
    parts = head.response_head(b"HTTP/1.1 404 Not Found\nA: b\n\n")
    assert parts == ResponseHead(b"HTTP/1.1", 404, b"Not Found", [(b"A", b"b")])
    assert head.response_head(b"HTTP/1.1 204\r\n\r\n").status == 204
    assert head.response_head(b"").status == 0
    assert head.response_head(b"HTTP/1.1 " + b"9" * 5000).status == 0


@settings(max_examples=50)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_without_an_exception(data: bytes) -> None:
    request, response = head.request_head(data), head.response_head(data)
    assert 0 <= response.status <= 999
    for rebuilt in (head.build_request(request), head.build_response(response), head.map_fields(data, lambda _, v: v)):
        # A value can end neither its field nor the head.
        assert rebuilt.endswith(b"\r\n\r\n") and rebuilt.find(b"\r\n\r\n") in (len(rebuilt) - 4, 0)
        assert rebuilt.count(b"\r") == rebuilt.count(b"\n") == rebuilt.count(b"\r\n")
    assert isinstance(head.path_of(request.target) + head.query_of(request.target) + head.target_of(data), bytes)
    assert head.with_fields(data, {}) == head.map_fields(data, lambda _, value: value)


@settings(max_examples=50)
@given(TOKEN, TARGET, FIELDS)
def test_a_request_head_is_the_same_after_a_round_trip(method: bytes, target: bytes, fields: list[head.Field]) -> None:
    parts = RequestHead(method, target, b"HTTP/1.1", fields)
    assert head.request_head(head.build_request(parts)) == parts


@settings(max_examples=50)
@given(st.integers(100, 999), VALUE, FIELDS)
def test_a_response_head_is_the_same_after_a_round_trip(status: int, reason: bytes, fields: list[head.Field]) -> None:
    parts = ResponseHead(b"HTTP/1.1", status, reason, fields)
    assert head.response_head(head.build_response(parts)) == parts


def test_a_value_cannot_smuggle_a_field_or_a_request() -> None:
    evil = b"x\r\nLivefire-Marker: forged\r\n\r\nGET /admin HTTP/1.1\0"
    for built in (
        head.with_fields(SAMPLE, {b"cookie": evil}),
        head.map_fields(SAMPLE, lambda name, value: evil if name == b"cookie" else value),
        head.build_request(RequestHead(b"GET", b"/" + evil, b"HTTP/1.1", [])),
    ):
        assert built.count(b"\r\n\r\n") == 1 and b"\0" not in built
        assert head.field(built, b"livefire-marker") is None
    # Negative control: the same bytes joined plainly do smuggle.
    assert head.field(b"GET / HTTP/1.1\r\nCookie: " + evil, b"livefire-marker") == b"forged"


def test_fields_are_set_removed_and_appended_in_place() -> None:
    changed = head.with_fields(SAMPLE, {b"cookie": b"sid=9", b"host": None, b"new": b"1", b"absent": None})
    assert head.request_head(changed).fields == [
        (b"Cookie", b"sid=9"), (b"X-Folded", b"one two"), (b"Empty", b""), (b"new", b"1"),
    ]  # fmt: skip
    assert changed.startswith(b"GET /a/b?x=1&y=2 HTTP/1.1\r\n")


@settings(max_examples=50)
@given(FIELDS, TOKEN)
def test_a_changed_field_leaves_the_others_alone(fields: list[head.Field], name: bytes) -> None:
    before = head.build(b"GET / HTTP/1.1", fields)
    after = head.map_fields(before, lambda low, value: None if low == name.lower() else value)
    assert head.request_head(after).fields == [field for field in fields if field[0].lower() != name.lower()]


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"/a/b?x=1", b"/a/b", b"x=1"),
        (b"/a#f", b"/a", b""),
        (b"/a?b#f", b"/a", b"b"),
        (b"http://h/a?b", b"/a", b"b"),
        (b"http://h", b"/", b""),
        (b"http://h?b=/c", b"/", b"b=/c"),
        (b"*", b"", b""),
        (b"host:443", b"", b""),
        (b"", b"", b""),
    ],
)
def test_paths_and_queries_of_all_forms_of_a_target(target: bytes, path: bytes, query: bytes) -> None:
    assert (head.path_of(target), head.query_of(target)) == (path, query)
