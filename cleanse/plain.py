"""The short way of exchanges that are as nearly all are: complete, and with a request that is written plainly.

What is meant stands in `cleanse.rules` and `cleanse.stamp`; this says the same several times as fast where it knows
all that there is to know of an exchange, and None where it does not: then the long way decides. So it need not know
everything, but what it says must hold; tests hold it against the long way.

Heads are not taken apart field by field. What becomes of a line, and of all of a head's lines behind the first, is
kept: users send the same fields with each request. What is kept is bounded by count and by bytes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from itertools import compress
from typing import Any, Final

from livefire_shadow.marker import HEADER
from wire import head as heads
from wire.records import Exchange, Framing, Mode

#: The fields of a Stamped in their order, Request and Baseline as such rows, too: encoded, they are the same bytes.
Row = tuple[Any, ...]
#: Framed: (what stands before the length of the body, and behind it; all where there is neither body nor length).
#: And whether all rules that look at fields have nothing against them.
Block = tuple[bytes, bytes, bytes | None, bool]

#: Of one connection only (RFC 9110 section 7.6.1), and what a sender decides anew.
HOP_BY_HOP: Final = frozenset(
    (b"connection", b"expect", b"http2-settings", b"keep-alive", b"proxy-authorization", b"proxy-connection", b"te",
     b"trailer", b"transfer-encoding", b"upgrade")
)  # fmt: skip
#: Options of `Connection` that name no field that is kept (fields of these names are rare enough to look closer).
_OF_CONNECTION: Final = (HOP_BY_HOP | {b"close"}) - {b"connection"}
#: A field as nearly all are written: a token, a colon, one space, and a value without space around it.
_FIELD: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]++): ([^\s\0](?:[^\r\n\0]*[^\s\0])?)")
_MARKER: Final = HEADER.lower().encode()
#: What becomes of a field's line: left out, kept, the length, chunked (left out), our marker, too odd to be told here.
_GONE, _KEPT, _LENGTH, _CODED, _MARKED, _ODD = range(6)
_LENGTH_NAME: Final = b"content-length"
_MAX_KINDS: Final = 8192
_MAX_KIND_BYTES: Final = 512
_MAX_BLOCK_BYTES: Final = 4096
_MAX_BLOCKS_BYTES: Final = 4 << 20  # of memory for all that are kept: with a cookie a session they never come to an end
_BLOCK_COSTS: Final = 300  # bytes of an entry beside its text; its text is there thrice, as what it becomes

#: Methods that everybody reads alike, and whether they may change state; CONNECT is none of them.
_UNSAFE: Final = {
    method: method not in heads.SAFE_METHODS
    for method in (b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"POST", b"PUT", b"PATCH", b"DELETE")
}
_VERSIONS: Final = frozenset((b" HTTP/1.1", b" HTTP/1.0"))
_NOT_IN_TARGETS: Final = b" \t\n\r\v\f\0"
_PLAIN_MODES: Final = frozenset((Mode.STRICT, Mode.LENIENT))


class _Kinds(dict[bytes, int]):
    """What becomes of a field's line. Most lines come again, so it is kept for as many as there is room for."""

    def __missing__(self, line: bytes) -> int:
        kind = _kind(line)
        if len(line) <= _MAX_KIND_BYTES:
            if len(self) >= _MAX_KINDS:
                self.clear()
            self[line] = kind
        return kind


def _kind(line: bytes) -> int:
    found = _FIELD.fullmatch(line)
    if not found:
        return _ODD
    name = found[1].lower()
    if name == _LENGTH_NAME:
        return _LENGTH
    if name == b"connection":
        tokens = (token.strip().lower() for token in found[2].split(b","))
        return _GONE if all(token in _OF_CONNECTION for token in tokens) else _ODD
    if name == b"close":  # which a `Connection: close` would name
        return _ODD
    if name == b"transfer-encoding":
        return _CODED if found[2].lower() == b"chunked" else _ODD
    if name == _MARKER:
        return _MARKED
    return _GONE if name in HOP_BY_HOP else _KEPT


class _Blocks:
    """What becomes of a head behind its start line, from that one's line end on."""

    def __init__(self) -> None:
        self.known: dict[bytes, Block] = {}
        self._kind_of = _Kinds().__getitem__
        self._room = _MAX_BLOCKS_BYTES

    def read(self, block: bytes) -> Block | None:
        """None: the long way knows."""
        if len(block) < 7 or block[:2] != b"\r\n" or block[-4:] != b"\r\n\r\n":
            return None
        lines = block[2:-4].split(b"\r\n")
        kinds = list(map(self._kind_of, lines))
        lengths = kinds.count(_LENGTH)
        if _ODD in kinds or lengths > 1:
            return None
        sound = _MARKED not in kinds
        if _CODED in kinds:
            sound = sound and not lengths
            kinds = [_GONE if kind == _CODED else kind for kind in kinds]
        if lengths:
            at = kinds.index(_LENGTH)
            name = lines[at][: len(_LENGTH_NAME)]
            before = b"\r\n".join((b"", *compress(lines[:at], kinds), name + b": "))
            after = b"\r\n".join((b"", *compress(lines[at + 1 :], kinds[at + 1 :]), b"", b""))
            found: Block = (before, after, None, sound)
        else:
            kept = b"\r\n".join((b"", *compress(lines, kinds)))
            found = (kept + b"\r\nContent-Length: ", b"\r\n\r\n", kept + b"\r\n\r\n", sound)
        if len(block) <= _MAX_BLOCK_BYTES:
            costs = 3 * len(block) + _BLOCK_COSTS
            self._room -= costs
            if self._room < 0:
                self.known.clear()
                self._room = _MAX_BLOCKS_BYTES - costs
            self.known[block] = found
        return found


_blocks: Final = _Blocks()
_known: Final = _blocks.known


def framed_head(head: bytes, body_bytes: int) -> tuple[bytes, Framing] | None:
    """The head as it is fired with so long a body, and its framing. None: `stamp` knows."""
    at = head.find(b"\r\n")
    start, rest = head[:at], head[at:]
    if at < 0 or b"\n" in start or b"\r" in start or b"\0" in start:
        return None
    block = _known.get(rest) or _blocks.read(rest)
    if block is None:
        return None
    before, after, bare, _ = block
    if body_bytes or bare is None:
        return b"%b%b%d%b" % (start, before, body_bytes, after), Framing.LENGTH
    return start + bare, Framing.NONE


def row(exchange: Exchange, route_of: Callable[[bytes, bytes], str], max_body: int) -> Row | None:
    """What `stamp.stamped` makes of it in a stream of batches, where no rule that is always on has anything against
    it; None: rules and stamp know. `route_of`: (method, path) -> name."""
    response = exchange.response
    if response is None or (found := _plain(exchange)) is None:
        return None
    at, method, target, (before, after, bare, _) = found
    request = exchange.request
    line, body = request.head[:at], request.body
    if body or bare is None:
        head, framing = b"%b%b%d%b" % (line, before, len(body), after), "length"
    else:
        head, framing = line + bare, "none"
    path = target if b"?" not in target and b"#" not in target else heads.path_of(target)
    start, began = exchange.request_start_ns, exchange.response_start_ns
    latency = began - start if began > start else 0
    answer = response.body[:max_body]
    digest = hashlib.sha256(answer).digest() if answer else b""
    length = response.body_bytes if response.truncated_bytes >= 0 else -1  # a log does not tell it
    return (
        exchange.exchange_id,
        exchange.session_id or exchange.connection_id,
        route_of(method, path),
        start,
        (head, body, request.body_bytes, framing, 0, 0, b""),
        (response.status, latency, response.head, answer, length, digest),
        0,
        0,
        _UNSAFE[method],
    )


def sound(exchange: Exchange) -> bool:
    """Whether no rule that is always on has anything against it, as far as can be told here; False: they decide."""
    return _plain(exchange) is not None


def _plain(exchange: Exchange) -> tuple[int, bytes, bytes, Block] | None:
    """(how long the start line is, method, target, the lines behind it) of what no rule has anything against."""
    request, response = exchange.request, exchange.response
    if (
        exchange.faults
        or exchange.mode not in _PLAIN_MODES
        or exchange.request_start_ns <= 0
        or request.missing_bytes
        or request.truncated_bytes
        or (response is not None and (response.missing_bytes or response.status == 101))
    ):
        return None
    head = request.head
    at, space = head.find(b"\r\n"), head.find(b" ")
    method, target = head[:space], head[space + 1 : at - 9]
    if (
        at < 9
        or method not in _UNSAFE
        or head[at - 9 : at] not in _VERSIONS
        or target[:1] != b"/"
        or len(target.translate(None, _NOT_IN_TARGETS)) != len(target)
    ):
        return None
    rest = head[at:]
    block = _known.get(rest) or _blocks.read(rest)
    return (at, method, target, block) if block is not None and block[3] else None
