"""GoReplay's messages as it writes them to Kafka: one request or one answer each, plain or as JSON.

Plain: header line and raw HTTP as in its files (`capture.goreplay`); nothing behind it. JSON: `Req_URL`, `Req_Type`,
`Req_ID`, `Req_Ts`, `Req_Method`, `Req_Body`, `Req_Headers` (repeated ones joined); of an answer, what stands in the
place of method and URL are its protocol and status, where it has them at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from capture import goreplay
from capture.assembler import Assembler
from capture.goreplay import REQUEST, Pairs, Part, Unreadable, kind_of, number_of

__all__ = ["Pairs", "Part", "Unreadable", "decode", "feed"]


class _Json(msgspec.Struct):
    type: str | int = msgspec.field(name="Req_Type")
    id: str = msgspec.field(name="Req_ID")
    ts: str | int = msgspec.field(name="Req_Ts")
    url: str = msgspec.field(name="Req_URL", default="")
    method: str = msgspec.field(name="Req_Method", default="")
    body: str | None = msgspec.field(name="Req_Body", default=None)
    headers: dict[str, str] | None = msgspec.field(name="Req_Headers", default=None)


_json = msgspec.json.Decoder(_Json)


def decode(value: bytes) -> Part:
    """One message, plain or JSON. Raises Unreadable."""
    return _of_json(value) if value[:1] == b"{" else goreplay.decode(value)


def feed(values: Iterable[bytes], assembler: Assembler) -> Iterator[int]:
    """See `goreplay.feed`."""
    return goreplay.feed(values, assembler, decode)


def _of_json(value: bytes) -> Part:
    try:
        found = _json.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Unreadable(str(error)) from None
    kind = kind_of(found.type)
    part = Part(kind, found.id.encode(), number_of(found.ts), b"")
    if kind == REQUEST:
        if not found.method or not found.url:
            raise Unreadable("a request without method or URL")
        start = f"{found.method} {found.url} HTTP/1.1"
    elif len(found.url) == 3 and found.url.isdigit() and found.url >= "100":
        start = f"HTTP/1.1 {found.url} -"
    else:
        return part
    return part._replace(payload=_message(start, found))


def _message(start: str, found: _Json) -> bytes:
    """Raw HTTP again. The body is framed by its length: what was kept of it is what counts."""
    body = (found.body or "").encode("utf-8", "surrogatepass")
    lines, chunked = [start], False
    for name, text in (found.headers or {}).items():
        low = name.lower()
        chunked = chunked or (low == "transfer-encoding" and "chunked" in text.lower())
        if low not in ("content-length", "transfer-encoding"):
            lines.append(f"{name}: {' '.join(text.splitlines())}")
    if chunked and body.endswith(b"0\r\n\r\n"):
        lines.append("Transfer-Encoding: chunked")
    elif body or found.method not in ("GET", "HEAD", "DELETE", "OPTIONS"):
        lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape") + body
