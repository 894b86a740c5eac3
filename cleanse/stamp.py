"""One exchange becomes one Stamped: framed for firing, with what production answered as its baseline."""

from __future__ import annotations

import hashlib
from typing import Final

from cleanse.plain import HOP_BY_HOP, framed_head
from cleanse.rules.unreplayable import started_ns
from wire import head as heads
from wire.records import Baseline, Exchange, Framing, Request, Stamped

_SAFE: Final = tuple(method + b" " for method in sorted(heads.SAFE_METHODS))


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
        length = response.body_bytes if response.truncated_bytes >= 0 else -1
        baseline = Baseline(response.status, max(latency, 0), response.head, body, length, digest)
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
        unsafe=not request.head.startswith(_SAFE),
    )


def framed(request: Request) -> Request:
    """The request with a length in the place of chunks, without fields of the recorded connection and trailers."""
    plain = framed_head(request.head, len(request.body))
    if plain is None:
        return _framed(request)
    return Request(plain[0], request.body, request.body_bytes, plain[1])


def _framed(request: Request) -> Request:
    fields = heads.fields_of(request.head.partition(b"\n")[2])
    gone = set(HOP_BY_HOP)
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
