"""Exchanges for other tools: GoReplay's `.gor`, lines of curl.

What cannot be told in such a file without saying something else than what was recorded gives a reason instead; the
caller counts it. Stored values are written as they are: what is masked stays masked.
"""

from __future__ import annotations

import re
from typing import Final

from capture.goreplay import SEPARATOR
from wire import head as heads
from wire.records import Exchange, Fault, Framing, Mode, Request, Response

_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_TARGET: Final = re.compile(rb"[!-~\x80-\xff]+\Z")
_PLAIN_BODY: Final = re.compile(rb"[\n\r\t -~]*\Z")
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_MAX_ARGUMENT: Final = 96 << 10  # Linux takes 128 KiB for one argument (MAX_ARG_STRLEN)
#: What every line of curl begins with: nothing of its own is added, globbed or normalised; the answer is thrown away.
CURL: Final = b"curl -sS -o /dev/null --http1.1 --globoff --path-as-is"
TARGET: Final = b'"${TARGET:?is not set: TARGET=http://staging:8080}"'


def why_not(exchange: Exchange) -> str:
    """The reason for which its request cannot be exported; "" when it can."""
    request = exchange.request
    if not request.head:
        return "no_request"
    if exchange.mode is Mode.OPAQUE or not _readable(request.head):
        return "opaque"
    if request.head.startswith(b"CONNECT ") or (exchange.response is not None and exchange.response.status == 101):
        return "tunnel"
    if Fault.AMBIGUOUS in exchange.faults:
        return "ambiguous"
    if request.missing_bytes:
        return "gap"
    if request.truncated_bytes:
        return "truncated" if request.truncated_bytes > 0 and request.body else "no_body"
    if Fault.UNFINISHED in exchange.faults and _short(request):
        return "unfinished"
    return ""


def gor(exchange: Exchange) -> tuple[bytes, str]:
    """The records of an exchange, each with its separator, and why its answer is not among them ("" when it is, or none
    was seen); (b"", reason) for an exchange that cannot be exported."""
    reason = why_not(exchange)
    message = b"" if reason else _wire(exchange.request)
    if reason or SEPARATOR in message:
        return b"", reason or "separator"
    name = exchange.exchange_id.hex()[:24]
    start = exchange.request_start_ns or exchange.request_end_ns or exchange.response_start_ns
    record = b"1 %b %d 0\n" % (name.encode(), start) + message + SEPARATOR
    response = exchange.response
    if response is None:
        return record, ""
    if response.missing_bytes or response.truncated_bytes:
        return record, "answer_not_whole"
    answer = _wire(response)
    if SEPARATOR in answer:
        return record, "answer_separator"
    at = response_ns = exchange.response_start_ns or start
    latency = max(0, response_ns - start)
    return record + b"2 %b %d %d\n" % (name.encode(), at, latency) + answer + SEPARATOR, ""


def curl(exchange: Exchange) -> tuple[bytes, str]:
    """One line of a shell script, or (b"", reason)."""
    reason = why_not(exchange)
    if reason:
        return b"", reason
    parts = heads.request_head(exchange.request.head)
    body = exchange.request.body
    words = [CURL]
    words.append(b"--head" if parts.method == b"HEAD" and not body else b"-X " + quoted(parts.method))
    if parts.version == b"HTTP/1.0":
        words.append(b"--http1.0")  # of two the last one counts; requests of it need no Host
    named: set[bytes] = set()
    for name, value in parts.fields:
        low = name.lower()
        if not _TOKEN.match(name) or _CONTROL.search(value):
            return b"", "field"
        if low in (b"content-length", b"transfer-encoding", b"connection") or (low == b"expect" and not body):
            continue
        if low == b"host" and low in named:
            return b"", "hosts"  # curl sends one, and drops the others
        named.add(low)
        words.append(b"-H " + quoted(name + b": " + value if value else name + b";"))
    unwanted = [b"Host", b"User-Agent", b"Accept", *((b"Content-Type", b"Expect") if body else ())]
    words += [b"-H " + quoted(name + b":") for name in unwanted if name.lower() not in named]
    before = b""
    if body and len(body) <= _MAX_ARGUMENT and _PLAIN_BODY.match(body):
        words.append(b"--data-raw " + quoted(body))
    elif body:
        before = b"{ " + b"; ".join(_printed(body)) + b"; } | "
        words.append(b"--data-binary @-")
    elif parts.method in (b"POST", b"PUT", b"PATCH"):
        words.append(b"--data-raw ''")
        words += [b"-H " + quoted(b"Content-Type:")] if b"content-type" not in named else []
    target = parts.target
    path = target if target.startswith(b"/") else b"/"
    if target != path:
        words.append(b"--request-target " + quoted(target))
    return before + b" ".join(words) + b" " + TARGET + quoted(path) + b"\n", ""


def quoted(word: bytes) -> bytes:
    """One word for a POSIX shell, whatever is in it but NUL."""
    return b"'" + word.replace(b"'", b"'\\''") + b"'"


def _printed(body: bytes) -> list[bytes]:
    """printf writes any byte, in any shell."""
    size = _MAX_ARGUMENT // 4
    pieces = (body[at : at + size] for at in range(0, len(body), size))
    return [b"printf '" + b"".join(b"\\%03o" % byte for byte in piece) + b"'" for piece in pieces]


def _readable(head: bytes) -> bool:
    parts = heads.request_head(head)
    return bool(_TOKEN.match(parts.method) and _TARGET.match(parts.target) and parts.version.startswith(b"HTTP/"))


def _short(request: Request) -> bool:
    """Whether the head tells of more body than there is."""
    length = heads.field(request.head, b"content-length")
    return (length is not None and length.isdigit() and int(length) > len(request.body)) or (
        request.framing is Framing.NONE and heads.field(request.head, b"transfer-encoding") is not None
    )


def _wire(message: Request | Response) -> bytes:
    """The message as bytes: what was chunked is so again, in one chunk."""
    if message.framing is not Framing.CHUNKED:
        return message.head + message.body
    chunk = b"%x\r\n" % len(message.body) + message.body + b"\r\n" if message.body else b""
    return message.head + chunk + b"0\r\n" + message.trailers + b"\r\n"  # trailers are kept without their empty line
