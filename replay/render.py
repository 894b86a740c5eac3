"""A recorded request as the bytes of a shot, but for the marker, which the firer puts in when it fires.

The head is rebuilt: fields of one connection go (RFC 9110 section 7.6.1), so do recorded markers and trace
context; framing is by Content-Length, as the body was de-chunked when it was recorded. Each shot carries

    Host               of the target, or as recorded
    traceparent        fresh ids, flags 00: not sampled (W3C Trace Context)
    Livefire-Shot      <exchange id, hex>.<copy>.<lap>: names the shot in any log, so that a log that is not ours
                       can prove that nothing was fired twice; a canary's begins with "canary."
    Livefire-Marker    signed, made at fire time
"""

from __future__ import annotations

import random
from typing import Final, NamedTuple

import msgspec

from wire import head as heads
from wire.records import Framing, Kind, Stamped

SHOT_HEADER: Final = "Livefire-Shot"

_DROPPED: Final = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer transfer-encoding "
    b"upgrade http2-settings expect content-length host livefire-marker livefire-shot traceparent tracestate b3 "
    b"x-b3-traceid x-b3-spanid x-b3-parentspanid x-b3-sampled x-b3-flags uber-trace-id x-cloud-trace-context "
    b"x-amzn-trace-id sentry-trace x-datadog-trace-id x-datadog-parent-id x-datadog-sampling-priority".split()
)
_NO_BODY: Final = b"Connection: keep-alive\r\n\r\n"
_FRAMED: Final = (Framing.LENGTH, Framing.CHUNKED)
#: A request with one of these methods has a length even when its body is empty (RFC 9110 section 8.6).
_WITH_LENGTH: Final = frozenset({b"POST", b"PUT", b"PATCH"})


_TRACE_BYTES: Final = 24
_TRACES: Final = 256  # made at a time


class Template(msgspec.Struct, frozen=True):
    """What stands before and after the fields that each shot has of its own."""

    first: bytes
    last: bytes
    name: bytes  # of the exchange, hex; with "canary." before it for a canary


def template(
    stamped: Stamped, head: bytes, body: bytes, authority: bytes, *, keep_host: bool = False, kind: Kind = Kind.STRESS
) -> Template:
    """`head` and `body` are the request to send: as recorded, or with live values."""
    line, _, rest = head.partition(b"\r\n")
    method, target = _method_and_target(line)
    kept = _kept.get(rest)
    if kept is None:
        if len(_kept) >= _MAX_KEPT:
            _kept.clear()
        kept = _kept[rest] = _keep(head, rest)
    host = kept.host if keep_host and kept.host else authority
    first = b"%b %b HTTP/1.1\r\nHost: %b\r\n%b" % (method, target, host, kept.lines)
    framed = stamped.request.framing in _FRAMED
    length = b"Content-Length: %d\r\n" % len(body) if body or framed or method in _WITH_LENGTH else b""
    last = b"%bConnection: keep-alive\r\n\r\n%b" % (length, body) if length else _NO_BODY
    prefix = b"canary." if kind is Kind.CANARY else b""
    return Template(first, last, prefix + stamped.exchange_id.hex().encode())


class _Kept(NamedTuple):
    """What stays of a head's field lines, and the host that they named."""

    lines: bytes
    host: bytes


#: A client sends the same field lines again and again: they are read once.
_kept: dict[bytes, _Kept] = {}
_MAX_KEPT: Final = 2_000


def _keep(head: bytes, rest: bytes) -> _Kept:
    lines: list[bytes] = []
    host = b""
    for text in _lines(head, rest):
        name = text[: text.find(b":")].lower()
        if name not in _DROPPED:
            lines.append(text + b"\r\n")
        elif name == b"connection":
            named = {word.strip().lower() for word in text[11:].split(b",")} - {b"keep-alive", b"close"}
            if named:
                shorter = _without(head, named)
                return _keep(shorter, shorter.partition(b"\r\n")[2])
        elif name == b"host":
            host = text[5:].strip()
    return _Kept(b"".join(lines), host)


def _lines(head: bytes, rest: bytes) -> list[bytes]:
    """The field lines. Most heads are clean, and are only cut at their line ends; others are parsed and rebuilt."""
    lines = rest.split(b"\r\n")
    while lines and not lines[-1]:
        lines.pop()
    if b"\r\n " in head or b"\r\n\t" in head or b" :" in head or head.count(b"\n") != len(lines) + 2:
        return [b"%b: %b" % pair for pair in heads.fields_of(head.partition(b"\n")[2])]
    return lines


def _without(head: bytes, named: set[bytes]) -> bytes:
    """The head without Connection and the fields that it names."""
    return heads.map_fields(head, lambda name, value: None if name == b"connection" or name in named else value)


def _method_and_target(line: bytes) -> tuple[bytes, bytes]:
    """A target in absolute form would name the recorded host: what goes to an origin is path and query."""
    method, _, rest = line.partition(b" ")
    target, _, version = rest.rpartition(b" ")
    if method and target.startswith(b"/") and version.startswith(b"HTTP/"):
        return method, target  # nearly all
    parts = heads.request_head(line + b"\r\n")
    if parts.target.startswith(b"/") or parts.target == b"*":
        return parts.method, parts.target
    path, query = heads.path_of(parts.target), heads.query_of(parts.target)
    return parts.method, (path or b"/") + (b"?" + query if query else b"")


def shot_fields(template: Template, copy: int, lap: int, trace: bytes) -> bytes:
    """The first part of a shot: the template's, a trace context of 48 hex digits (see `Traces`), and its name."""
    return b"%btraceparent: 00-%b-%b-00\r\nLivefire-Shot: %b.%d.%d\r\n" % (
        template.first,
        trace[:32],
        trace[32:],
        template.name,
        copy,
        lap,
    )


class Traces:
    """Trace contexts, random. Made many at a time: by themselves they would cost a fifth of a shot."""

    def __init__(self, source: random.Random) -> None:
        self._source = source
        self._digits = b""
        self._at = 0

    def next(self) -> bytes:
        """32 hex digits of a trace id and 16 of a parent id. Neither is all zeros, which W3C forbids."""
        at = self._at
        if at >= len(self._digits):
            at = 0
            self._digits = b"0" * 16
            while b"0" * 16 in self._digits:
                self._digits = self._source.randbytes(_TRACE_BYTES * _TRACES).hex().encode()
        self._at = at + 2 * _TRACE_BYTES
        return self._digits[at : self._at]
