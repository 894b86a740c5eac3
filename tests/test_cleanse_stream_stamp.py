"""The short way of framing a request gives what the long one gives, or leaves it to that one."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from cleanse.plain import framed_head
from cleanse.stamp import _framed, framed
from wire.records import Framing, Request

NAMES = st.sampled_from(
    [b"Host", b"Connection", b"connection", b"Keep-Alive", b"Content-Length", b"content-length", b"Transfer-Encoding",
     b"TE", b"Upgrade", b"X-Hop", b"Close", b"Accept", b"Proxy-Connection", b"X-TE", b"Te-X", b"Cookie", b"Expect", b""]
)  # fmt: skip
VALUES = st.sampled_from(
    [b"a", b"close", b"keep-alive", b"keep-alive, X-Hop", b"TE, close", b"close,content-length", b"3", b"5", b"05", b" 3", b"3 ", b"",
     b"x\r", b"a\n b", b"a\0b", b"\xff\x85", b"a: b", b"upgrade, host", b"connection", b"\x0b"]
)  # fmt: skip
ENDS = st.sampled_from([b"\r\n"] * 9 + [b"\n", b"\r\n\r\n", b""])


@settings(max_examples=3000, deadline=None)
@given(
    line=st.sampled_from([b"GET / HTTP/1.1", b"POST /a?b HTTP/1.1", b" GET /", b"", b"GET / HTTP/1.1\r"]),
    fields=st.lists(st.tuples(NAMES, st.sampled_from([b": "] * 9 + [b":", b" : ", b""]), VALUES, ENDS), max_size=6),
    end=st.sampled_from([b"\r\n"] * 5 + [b"", b"\n"]),
    body=st.sampled_from([b"", b"hello"]),
)
def test_both_ways_give_the_same(
    line: bytes, fields: list[tuple[bytes, bytes, bytes, bytes]], end: bytes, body: bytes
) -> None:
    head = line + b"\r\n" + b"".join(b"".join(parts) for parts in fields) + end
    request = Request(head, body, len(body))
    assert framed(request) == _framed(request)


def test_what_is_common_goes_the_short_way() -> None:
    head = b"POST /a HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\nContent-Length: 9\r\nCookie: a=b; c=d\r\n\r\n"
    expected = b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nCookie: a=b; c=d\r\n\r\n"
    assert framed_head(head, 5) == (expected, Framing.LENGTH)
    head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    assert framed_head(head, 0) == (head, Framing.NONE)
    assert framed_head(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: x-own\r\nX-Own: 1\r\n\r\n", 0) is None
