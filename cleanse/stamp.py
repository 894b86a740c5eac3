"""One exchange becomes one Stamped: framed for firing, with what production answered as its baseline."""

from __future__ import annotations

import hashlib
import re
from typing import Final

from cleanse.rules.unreplayable import started_ns
from wire import head as heads
from wire.records import Baseline, Exchange, Framing, Request, Stamped

#: Of one connection only (RFC 9110 section 7.6.1), and what a sender decides anew.
_HOP_BY_HOP: Final = frozenset(
    (b"connection", b"expect", b"http2-settings", b"keep-alive", b"proxy-authorization", b"proxy-connection", b"te",
     b"trailer", b"transfer-encoding", b"upgrade")
)  # fmt: skip
#: Options of `Connection` that name no field that is kept (fields of these names are rare enough to look closer).
_OF_CONNECTION: Final = (_HOP_BY_HOP | {b"close"}) - {b"connection"}
#: Every line ends in CRLF; every field is a token, a colon, one space, and a value without space around it.
_PLAIN: Final = re.compile(
    rb"[^\r\n\0]*(?:\r\n(?!(?i:close):)[!#$%&'*+.^_`|~0-9A-Za-z-]++: [^\s\0](?:[^\r\n\0]*[^\s\0])?+)*+\r\n\r\n\Z"
)
_SPECIAL: Final = re.compile(
    rb"\r\n(" + b"|".join(re.escape(name) for name in (*sorted(_HOP_BY_HOP), b"content-length")) + rb"): ([^\r]*)",
    re.IGNORECASE,
)
_HAS_LENGTH: Final = re.compile(rb"\r\ncontent-length:", re.IGNORECASE)


def stamped(
    exchange: Exchange, route: str, first_ns: int, session_start_ns: int, session_index: int, max_body: int
) -> Stamped:
    """`first_ns`: when the recording's first request began (epoch ns); `session_start_ns`: an offset from it."""
    response = exchange.response
    start = started_ns(exchange)
    if response is None:
        baseline = Baseline(0, 0, b"", b"", 0, b"")
    else:
        body = response.body[:max_body]
        latency = exchange.response_start_ns - start if exchange.response_start_ns else 0
        digest = hashlib.sha256(body).digest() if body else b""
        baseline = Baseline(response.status, max(latency, 0), response.head, body, response.body_bytes, digest)
    request = framed(exchange.request)
    return Stamped(
        exchange_id=exchange.exchange_id,
        session_id=exchange.session_id or exchange.connection_id,
        route=route,
        offset_ns=start - first_ns,
        request=request,
        baseline=baseline,
        session_start_ns=session_start_ns,
        session_index=session_index,
        unsafe=heads.method_of(request.head) not in heads.SAFE_METHODS,
    )


def framed(request: Request) -> Request:
    """The request with a length in the place of chunks, without fields of the recorded connection and trailers."""
    head = _framed_plain(request.head, len(request.body))
    if head is None:
        return _framed(request)
    framing = Framing.LENGTH if request.body or _HAS_LENGTH.search(head) else Framing.NONE
    return Request(head, request.body, request.body_bytes, framing)


def _framed_plain(head: bytes, body_bytes: int) -> bytes | None:
    """What `_framed` makes of a head that is written as nearly all are; None for all others. Three times as fast."""
    if not _PLAIN.match(head):
        return None
    parts: list[bytes] = []
    at = 0
    has_length = False
    for found in _SPECIAL.finditer(head):
        parts.append(head[at : found.start()])
        at = found.end()
        name = found[1].lower()
        if name == b"content-length":
            if has_length:
                return None
            has_length = True
            parts.append(b"\r\n%b: %d" % (found[1], body_bytes))
        elif name == b"connection":
            for token in found[2].split(b","):
                if token.strip().lower() not in _OF_CONNECTION:
                    return None
    parts.append(head[at:-4])
    if body_bytes and not has_length:
        parts.append(b"\r\nContent-Length: %d" % body_bytes)
    parts.append(b"\r\n\r\n")
    return b"".join(parts)


def _framed(request: Request) -> Request:
    fields = heads.fields_of(request.head.partition(b"\n")[2])
    gone = set(_HOP_BY_HOP)
    has_length = False
    for name, value in fields:
        low = name.lower()
        if low == b"connection":
            gone.update(part.strip().lower() for part in value.split(b","))
        elif low == b"content-length":
            has_length = True
    # A field that `Connection` lists is of the connection, but nobody may take the framing and the host away.
    gone -= {b"content-length", b"host", b"content-type", b"cookie", b"authorization"}
    kept = [(name, value) for name, value in fields if name.lower() not in gone]
    if request.body or has_length:
        length = b"%d" % len(request.body)
        at = next((i for i, (name, _) in enumerate(kept) if name.lower() == b"content-length"), len(kept))
        kept = [pair for i, pair in enumerate(kept) if i == at or pair[0].lower() != b"content-length"]
        kept[at : at + 1] = [(kept[at][0] if at < len(kept) else b"Content-Length", length)]
    line = request.head.partition(b"\n")[0].rstrip(b"\r")
    framing = Framing.LENGTH if request.body or has_length else Framing.NONE
    return Request(heads.build(line, kept), request.body, request.body_bytes, framing)
