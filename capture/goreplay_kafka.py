"""GoReplay's messages as it writes them to Kafka: one request or one answer each, plain or as JSON.

Plain: `<type> <id> <ts_ns> [<latency_ns>]`, a newline, the raw HTTP message; nothing behind it. Type 1 is a request, 2
the answer that production gave, 3 one to a replayed request. JSON: `Req_URL`, `Req_Type`, `Req_ID`, `Req_Ts`,
`Req_Method`, `Req_Body`, `Req_Headers` (repeated ones joined); of an answer, what stands in the place of method and URL
are its protocol and status, where it has them at all.

Ids are not unique: of several with one id, an answer goes with the latest request before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import msgspec

from capture.assembler import Assembler

_REQUEST, _ANSWER, _REPLAYED = 1, 2, 3
_MAX_WAITING_BYTES: Final = 512 << 20
_SERVER: Final = "0.0.0.0:0"  # what the messages do not tell


class Part(NamedTuple):
    """One message: half of an exchange."""

    kind: int  # 1 request, 2 answer, 3 answer to a replayed request
    id: bytes
    ts_ns: int
    payload: bytes  # raw HTTP; empty: an answer whose status was not kept


class Unreadable(Exception):
    """A message that is none of GoReplay's. The text says why."""


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
    if value[:1] == b"{":
        return _of_json(value)
    line, newline, payload = value.partition(b"\n")
    words = line.split()
    if not newline or not 3 <= len(words) <= 4:
        raise Unreadable("its first line is not: type id time [latency]")
    return Part(_kind(words[0]), words[1], _number(words[2]), payload)


def _kind(word: bytes | str | int) -> int:
    if (kind := _number(word)) not in (_REQUEST, _ANSWER, _REPLAYED):
        raise Unreadable(f"type {kind} is not 1, 2 or 3")
    return kind


def _number(word: bytes | str | int) -> int:
    try:
        return int(word)
    except ValueError:
        raise Unreadable(f"{word!r} is not a number") from None


def _of_json(value: bytes) -> Part:
    try:
        found = _json.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Unreadable(str(error)) from None
    kind = _kind(found.type)
    part = Part(kind, found.id.encode(), _number(found.ts), b"")
    if kind == _REQUEST:
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


class Pairs:
    """Puts requests and answers together, in whatever order they come. Bounded: beyond it the oldest go alone."""

    def __init__(self, max_bytes: int = _MAX_WAITING_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._waiting: dict[tuple[bytes, int], list[Part]] = {}
        self._order: deque[Part] = deque()
        self._gone: set[int] = set()  # of those in the order, by identity: already paired

    def add(self, part: Part) -> Iterator[tuple[Part | None, Part | None]]:
        """What is complete with it: (request, answer); one of them is None for what had to go alone."""
        other = self._match(part)
        if other is not None:
            yield (part, other) if part.kind == _REQUEST else (other, part)
            return
        self._waiting.setdefault((part.id, part.kind), []).append(part)
        self._order.append(part)
        self._bytes += len(part.payload) + 200
        while self._bytes > self._max_bytes and (alone := self._oldest()) is not None:
            yield alone

    def rest(self) -> Iterator[tuple[Part | None, Part | None]]:
        """What has found nothing, in the order in which it came."""
        while (alone := self._oldest()) is not None:
            yield alone

    def _match(self, part: Part) -> Part | None:
        key = (part.id, _ANSWER if part.kind == _REQUEST else _REQUEST)
        fit = [
            other
            for other in self._waiting.get(key, ())
            if (other.ts_ns >= part.ts_ns if part.kind == _REQUEST else other.ts_ns <= part.ts_ns)
        ]
        if not fit:
            return None
        found = min(fit, key=lambda other: abs(other.ts_ns - part.ts_ns))
        self._take(key, found)
        self._gone.add(id(found))
        return found

    def _take(self, key: tuple[bytes, int], part: Part) -> None:
        waiting = self._waiting[key]
        del waiting[next(n for n, other in enumerate(waiting) if other is part)]
        if not waiting:
            del self._waiting[key]
        self._bytes -= len(part.payload) + 200

    def _oldest(self) -> tuple[Part | None, Part | None] | None:
        while self._order:
            part = self._order.popleft()
            if id(part) in self._gone:
                self._gone.discard(id(part))
                continue
            self._take((part.id, part.kind), part)
            return (part, None) if part.kind == _REQUEST else (None, part)
        return None


def feed(values: Iterable[bytes], assembler: Assembler) -> Iterator[int]:
    """Hand all messages to the assembler, each pair as a connection of its own; how many so far, after each.

    The account's ledger `goreplay` counts messages: emitted, `unreadable`, `replayed` (type 3, not wanted),
    `unpaired_answer`, `no_status` (JSON answers of which GoReplay kept none).
    """
    pairs, connections = Pairs(), 0
    ledger = assembler.account.ledger("goreplay")

    def hand_on(request: Part | None, answer: Part | None) -> None:
        nonlocal connections
        ledger.in_flight -= (request is not None) + (answer is not None)
        if request is None:
            ledger.drop("unpaired_answer")
            return
        connections += 1
        channel = assembler.connection_opened(f"0.0.0.0:{connections % 65535 + 1}", _SERVER, request.ts_ns)
        channel.data(True, request.payload, request.ts_ns)
        channel.closed(True, request.ts_ns)
        end_ns = request.ts_ns
        ledger.emitted += 1
        if answer is not None and answer.payload:
            end_ns = answer.ts_ns
            channel.data(False, answer.payload, end_ns)
            ledger.emitted += 1
        elif answer is not None:
            ledger.drop("no_status")
        channel.closed(False, end_ns)

    for count, value in enumerate(values, 1):
        ledger.seen += 1
        try:
            part = decode(value)
        except Unreadable:
            ledger.drop("unreadable")
        else:
            if part.kind == _REPLAYED:
                ledger.drop("replayed", intentional=True)
            else:
                ledger.in_flight += 1
                for pair in pairs.add(part):
                    hand_on(*pair)
        if not count % 512:
            assembler.expire(assembler.now_ns)
        yield count
    for pair in pairs.rest():
        hand_on(*pair)
