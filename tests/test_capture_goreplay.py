"""Records of GoReplay's files: each comes out as it went in, whatever it lacks, and none takes another one with it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capture import goreplay
from capture.lines import Input
from tests.test_capture_importers import AT, GET, GOT, gor, imported, record
from wire.records import Fault

SEPARATOR = goreplay.SEPARATOR
POST = record(1, "bb", AT + 10, b"POST /2 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")
POSTED = record(2, "bb", AT + 15, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
INNER = record(1, "dd", AT, b"DELETE / HTTP/1.1\r\nHost: x\r\n\r\n")


class Pieces(Input):
    def __init__(self, data: bytes, size: int) -> None:
        self.name, self.cut, self.said = "x", False, []
        self._left, self._size = data, size

    def read(self, wanted: int) -> bytes:
        piece, self._left = self._left[: self._size], self._left[self._size :]
        return piece


def records(data: bytes, size: int = 1 << 20) -> list[bytes]:
    return list(goreplay.records(Pieces(data, size)))


@pytest.mark.parametrize(
    ("first", "targets", "answers", "drops"),
    [
        ([record(1, "aa", AT, b"GET /1 HTTP/1.1\nHost: x\n\n"), GOT], ["/1", "/2"], 2, {}),
        ([record(1, "aa", AT, b"GET /1 HTTP/1.1\r\nHost: x\r\nX: y")], ["/1", "/2"], 1, {}),
        ([GET, record(2, "aa", AT + 5, b"")], ["/1", "/2"], 1, {"no_status": 1}),
        ([GET, record(2, "aa", AT + 5, b"HTTP/1.1 200 OK\r\nContent-Le")], ["/1", "/2"], 1, {}),
        ([GET, GOT, b"1 cc %d" % AT], ["/1", "/2"], 2, {"unreadable": 1}),
    ],
)
def test_a_record_that_lacks_the_end_of_its_head_takes_nothing_of_the_next(
    tmp_path: Path, first: list[bytes], targets: list[str], answers: int, drops: dict[str, int]
) -> None:
    found, account = imported(tmp_path, gor(*first, POST, POSTED))
    assert sorted(e.request.head.split()[1].decode() for e in found) == targets
    assert sum(e.response is not None and e.response.status == 200 for e in found) == answers
    assert [e.request.body for e in found if e.request.head.startswith(b"POST")] == [b"abc"]
    ledger = account.ledger("goreplay")
    assert ledger.seen == len(first) + 2 and ledger.drops == drops


def test_a_request_whose_head_is_cut_is_unfinished(tmp_path: Path) -> None:
    found, _ = imported(tmp_path, gor(record(1, "aa", AT, b"GET /1 HTTP/1.1\r\nHost: x\r\nX: y"), POST, POSTED))
    assert [Fault.UNFINISHED in e.faults for e in sorted(found, key=lambda e: e.request_start_ns)] == [True, False]


def test_a_separator_in_a_body_is_of_the_body_when_its_length_tells() -> None:
    """Also when a header line comes behind it, behind heads of either kind, and at the end without a last one."""
    body = b"a" + SEPARATOR + INNER
    for end in (b"\r\n", b"\n"):
        head = end.join((b"POST / HTTP/1.1", b"Host: x", b"Content-Length: %d" % len(body), b"", b""))
        whole = record(1, "aa", AT, head + body)
        for size in (1, 7, 1 << 20):
            assert records(gor(whole, POST), size) == [whole, POST]
            assert records(gor(whole), size) == [whole]
            assert records(SEPARATOR.join([POST, whole]), size) == [POST, whole]
            assert records(gor(POST, whole)[:-5], size) == [POST, whole]


@pytest.mark.parametrize("answered", [b"HTTP/1.1 200 OK", b"HTTP/1.1 304 Not Modified"])
def test_a_length_that_an_answer_without_body_tells_joins_no_records(answered: bytes) -> None:
    """Not even when it is, by chance, that of the records behind it."""
    head = record(1, "aa", AT, (b"HEAD" if b"200" in answered else b"GET") + b" / HTTP/1.1\r\nHost: x\r\n\r\n")
    length = len(SEPARATOR + POST)
    answer = record(2, "aa", AT + 5, answered + b"\r\nContent-Length: %d\r\n\r\n" % length)
    assert records(gor(head, answer, POST, POSTED)) == [head, answer, POST, POSTED]


@pytest.mark.parametrize("keep", range(1, len(POST)))
def test_what_is_left_of_a_record_at_the_end_is_a_record(keep: int) -> None:
    file = Pieces(gor(GET, GOT) + POST[:keep], 50)
    assert list(goreplay.records(file)) == [GET, GOT, POST[:keep]] and file.cut
    assert "is cut off in record 3" in file.said[0]


def test_a_head_in_bare_lf_at_the_end_is_whole() -> None:
    file = Pieces(gor(GET) + record(1, "ab", AT, b"GET / HTTP/1.1\nHost: x\n\n"), 50)
    assert len(list(goreplay.records(file))) == 2 and not file.cut


_HEADS = st.sampled_from([b"POST / HTTP/1.1", b"GET /a HTTP/1.1", b"HTTP/1.1 200 OK", b"HTTP/1.0 500 No"])
_BODIES = st.lists(
    st.one_of(
        st.binary(max_size=20), st.sampled_from([SEPARATOR, SEPARATOR + INNER, SEPARATOR + b"1 aa", b"\r\n\r\n"])
    ),
    max_size=4,
).map(b"".join)
_PLAIN = st.binary(max_size=40).filter(lambda data: b"\xf0" not in data)


@st.composite
def payloads(draw: st.DrawFn) -> bytes:
    """Whole messages, those that lack the end of their head or body, and empty ones."""
    start, end = draw(_HEADS), draw(st.sampled_from([b"\r\n", b"\n"]))
    what = draw(st.sampled_from(["whole", "short", "head", "empty", "untold", "noise"]))
    body = draw(_BODIES if what == "whole" else _PLAIN)
    length = len(body) + (draw(st.integers(1, len(SEPARATOR))) if what == "short" else 0)
    fields = [b"Host: x", b"X-A: b"] if what == "untold" else [b"Host: x", b"Content-Length: %d" % length, b"X-A: b"]
    head = end.join((start, *fields, b"", b""))
    if what == "head":
        return head[: draw(st.integers(0, len(head) - len(end)))]
    return b"" if what == "empty" else body if what == "noise" else head + body


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([1, 2, 3]), payloads()), max_size=7), st.integers(1, 90))
def test_no_record_takes_another_with_it_whatever_it_lacks(found: list[tuple[int, bytes]], size: int) -> None:
    values = [record(kind, "ab", AT + n, payload) for n, (kind, payload) in enumerate(found)]
    assert records(gor(*values) if values else b"", size) == values


@pytest.mark.parametrize("size", [1, 50, 300, 1 << 20])
def test_a_record_that_is_too_long_is_told_and_costs_no_other(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Nor does one whose length, which is not true, is nearly the longest that there may be."""
    monkeypatch.setattr(goreplay, "_MAX_RECORD", 2000)
    head = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n"
    long = record(1, "ab", AT, head % 6000 + b"x" * 6000)
    lies = record(1, "ab", AT, head % 1900 + b"x" * 20)
    for told in (lies, POST):
        values = [GET, told, GOT, long, POST, POSTED]
        found = records(gor(*values), size)
        assert [value for value in found if value not in (b"", long)] == [GET, told, GOT, POST, POSTED]
        assert len(found) == len(values) and (size > 5000 or b"" in found)


def test_the_last_separator_is_of_no_body() -> None:
    for more in range(1, 2 * len(SEPARATOR)):
        value = record(1, "ab", AT, b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\nabc" % (3 + more))
        assert records(gor(GET, value)) == [GET, value]


def test_of_many_records_without_heads_the_ledger_sees_each(tmp_path: Path) -> None:
    rows = []
    for n in range(40):
        cut = b"GET /%d HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n"[: 18 + n % 33] % n
        rows += [record(1, f"a{n}", AT + n * 100, cut), record(2, f"a{n}", AT + n * 100 + 9, GOT.partition(b"\n")[2])]
    found, account = imported(tmp_path, gor(*rows))
    ledger = account.ledger("goreplay")
    assert (ledger.seen, ledger.emitted, len(found)) == (80, 80, 40)


@pytest.mark.parametrize("left", range(1, len(SEPARATOR)))
def test_a_file_that_ends_inside_of_its_last_separator(left: int) -> None:
    told = record(2, "bb", AT + 5, b"HTTP/1.1 200 OK\r\n\r\nhello")
    data = SEPARATOR.join([GET, told, SEPARATOR])[: -len(SEPARATOR) - left]
    assert records(data) == [GET, told] or left == len(SEPARATOR) - 1  # one newline may be of the body
