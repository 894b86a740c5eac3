"""One exchange becomes one Stamped: framed for firing, with what production answered as its baseline."""

from __future__ import annotations

import hashlib
import re
from itertools import compress
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
#: A field as nearly all are written: a token, a colon, one space, and a value without space around it.
_FIELD: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]++): ([^\s\0](?:[^\r\n\0]*[^\s\0])?)")
_DECIMAL: Final = re.compile(rb"0|[1-9][0-9]{0,15}")
#: What becomes of a field's line: left out, kept, the length (more by its value), too odd to be dealt with here.
_GONE, _KEPT, _LENGTH, _UNKNOWN_LENGTH, _ODD = 0, 1, 2, 1 << 59, 1 << 60
_HAS_LENGTH: Final = re.compile(rb"\r\ncontent-length:", re.IGNORECASE)
_SAFE: Final = tuple(method + b" " for method in sorted(heads.SAFE_METHODS))
_MAX_KINDS: Final = 8192
_MAX_KIND_BYTES: Final = 512


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
        unsafe=not request.head.startswith(_SAFE),
    )


def framed(request: Request) -> Request:
    """The request with a length in the place of chunks, without fields of the recorded connection and trailers."""
    head = _framed_plain(request.head, len(request.body))
    if head is None:
        return _framed(request)
    framing = Framing.LENGTH if request.body or _HAS_LENGTH.search(head) else Framing.NONE
    return Request(head, request.body, request.body_bytes, framing)


def _framed_plain(head: bytes, body_bytes: int) -> bytes | None:
    """What `_framed` makes of a head that is written as nearly all are; None for all others. Five times as fast."""
    start, _, rest = head.partition(b"\r\n")
    if not rest.endswith(b"\r\n\r\n") or b"\n" in start or b"\r" in start or b"\0" in start:
        return None
    lines = rest[:-4].split(b"\r\n")
    kinds = list(map(_kind_of, lines))
    ranks = sorted(kinds)
    most = ranks[-1]
    if most == _ODD:
        return None
    if most >= _LENGTH:
        if len(ranks) > 1 and ranks[-2] >= _LENGTH:
            return None
        if most != _LENGTH + body_bytes:
            at = kinds.index(most)
            lines[at] = b"%b: %d" % (lines[at].partition(b":")[0], body_bytes)
    elif body_bytes:
        lines.append(b"Content-Length: %d" % body_bytes)
        kinds.append(_LENGTH)
    kept = b"\r\n".join(compress(lines, kinds))
    return b"".join((start, b"\r\n", kept, b"\r\n\r\n")) if kept else None


class _Kinds(dict[bytes, int]):
    """What becomes of a field's line. Most lines come again, so it is kept for as many as there is room for."""

    def __missing__(self, line: bytes) -> int:
        kind = _ODD
        if found := _FIELD.fullmatch(line):
            name = found[1].lower()
            if name == b"content-length":
                value = int(found[2]) if _DECIMAL.fullmatch(found[2]) else -1
                kind = _LENGTH + value if value >= 0 else _UNKNOWN_LENGTH
            elif name == b"connection":
                tokens = (token.strip().lower() for token in found[2].split(b","))
                kind = _GONE if all(token in _OF_CONNECTION for token in tokens) else _ODD
            elif name != b"close":  # which a `Connection: close` would name
                kind = _GONE if name in _HOP_BY_HOP else _KEPT
        if len(line) <= _MAX_KIND_BYTES:
            if len(self) >= _MAX_KINDS:
                self.clear()
            self[line] = kind
        return kind


_kind_of = _Kinds().__getitem__


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
