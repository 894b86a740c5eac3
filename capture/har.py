"""HAR 1.2 (also what calls itself 1.1): an entry of a browser's or proxy's log is an exchange.

A HAR tells what a program made of the traffic, not the bytes: heads are written anew, as HTTP/1.1, without
pseudo-headers. `content.text` is decoded, whatever Content-Encoding says; the bytes that were on the wire are not in
the file. So the answer's body is that text, and its head says so: Content-Encoding and Transfer-Encoding go,
Content-Length follows. Bodies that are not in the file are known by length alone.

Rejected, by reason: `no_request` (method or URL missing), `bad_time`, `bad_entry` (not of the form), `bad_value` (no
record can hold it), `not_http` (data:, blob: ..., intentional), `from_cache` (never sent, intentional), `connect` (a
tunnel, intentional).
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote, quote_plus, urlsplit

import msgspec

from capture.entry import NOBODY, UNKNOWN, Entry, Reject, address, request_without_body, response_without_body
from capture.lines import Input
from wire import head as heads
from wire.config import ConfigError
from wire.records import Fault, Framing, Request, Response

MAX_FILE: Final = 1 << 30
_BOM: Final = b"\xef\xbb\xbf"
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_DROPPED: Final = frozenset({"content-encoding", "transfer-encoding", "content-length"})
_BOUNDARY: Final = re.compile(r'boundary="?([^";,\s]{1,70})', re.IGNORECASE)
_CALL: Final = re.compile(rb"\s*([A-Za-z_$][\w$.]{0,60})\s*\(\s*\{")
#: What Safari calls what was not sent. `cache` tells nothing: Firefox fills it also where it asked and got a 304.
_SAFARI_CACHED: Final = ("Memory Cache", "Disk Cache")
#: Escapes of JSON; of surrogates in pairs, and (the group) of one that stands alone.
_ESCAPE: Final = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)
_STAND_IN: Final = "\ufdd0"  # no character of any text (Unicode, chapter 23.7)
_HAS_LOG: Final = re.compile(rb'\s*\{.{0,65536}?"log"\s*:', re.DOTALL)


class _Pair(msgspec.Struct):
    name: str = ""
    value: str | None = None


class _Param(msgspec.Struct):
    name: str = ""
    value: str | None = None
    file: str | None = msgspec.field(name="fileName", default=None)
    type: str | None = msgspec.field(name="contentType", default=None)


class _Post(msgspec.Struct):
    type: str | None = msgspec.field(name="mimeType", default=None)
    text: str | None = None
    params: list[_Param] | None = None
    encoding: str | None = None


class _Request(msgspec.Struct):
    method: str | None = None
    url: str | None = None
    version: str | None = msgspec.field(name="httpVersion", default=None)
    headers: list[_Pair] | None = None
    post: _Post | None = msgspec.field(name="postData", default=None)
    body_size: float | None = msgspec.field(name="bodySize", default=None)


class _Content(msgspec.Struct):
    size: float | None = None
    text: str | None = None
    encoding: str | None = None


class _Response(msgspec.Struct):
    status: int | None = 0
    reason: str | None = msgspec.field(name="statusText", default=None)
    headers: list[_Pair] | None = None
    content: _Content | None = None
    body_size: float | None = msgspec.field(name="bodySize", default=None)


class _Entry(msgspec.Struct):
    started: str | None = msgspec.field(name="startedDateTime", default=None)
    time: float | None = None
    request: _Request | None = None
    response: _Response | None = None
    timings: dict[str, Any] | None = None
    server: str | None = msgspec.field(name="serverIPAddress", default=None)
    connection: str | int | None = None
    cached: Any = msgspec.field(name="_fromCache", default=None)  # Chrome's
    fetched: Any = msgspec.field(name="_fetchType", default=None)  # Safari's


class _Log(msgspec.Struct):
    entries: list[msgspec.Raw]


class _Har(msgspec.Struct):
    log: _Log


_file = msgspec.json.Decoder(_Har)
_entry = msgspec.json.Decoder(_Entry, strict=False)


def is_har(start: bytes) -> bool:
    """Whether a file begins like a HAR, or like one that is wrapped in a call (which is then told)."""
    start = start.removeprefix(_BOM)
    return _HAS_LOG.match(start) is not None or (_CALL.match(start) is not None and b'"entries"' in start)


def entries(file: Input) -> Iterator[Entry | Reject]:
    """Raises ConfigError for what is no HAR."""
    data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise ConfigError(f"{file.name}: holds more than {MAX_FILE >> 30} GiB; split it by pages")
    data = data.removeprefix(_BOM)
    log, mended = _log(file.name, data)
    for place, raw in enumerate(log.entries, 1):
        try:
            entry = _entry.decode(raw)
            if mended and _STAND_IN.encode() in msgspec.json.encode(entry):
                yield Reject(place, "bad_entry", "half of a surrogate pair is in it, which no bytes can tell")
                continue
            yield _of(place, entry)
        except msgspec.MsgspecError as error:  # it names types and keys of HAR, no values
            yield Reject(place, "bad_entry", str(error)[:200])
        except (ValueError, RecursionError):
            yield Reject(place, "bad_entry", "a URL, a number or a text in it is none")


def _log(name: str, data: bytes) -> tuple[_Log, bool]:
    """The log, and whether something stands in it for surrogates without their other half: programs write them, of
    texts that they cut, JSON has them, and one must not cost the entries of a whole file. Raises ConfigError."""
    try:
        return _file.decode(data).log, False
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        why = _why(data, str(error))
    stand_in = json.dumps(_STAND_IN)[1:-1].encode()
    changed = _ESCAPE.sub(lambda match: stand_in if match[1] else match[0], data)
    if changed == data:
        raise ConfigError(f"{name}: is no HAR: {why}")
    try:
        return _file.decode(changed).log, True
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{name}: is no HAR: {_why(data, str(error))}") from None


def _why(data: bytes, error: str) -> str:
    call = _CALL.match(data)
    if call:
        return "it is wrapped in a call of a function (JSONP): take that off"
    return error.replace("JSON is malformed", "its JSON is malformed").replace("Expected", "expected")


def _of(place: int, entry: _Entry) -> Entry | Reject:
    asked = entry.request
    if asked is None or not asked.method or not asked.url:
        url = asked.url if asked is not None else None
        if url and not url.lower().startswith(("http", "ws", "/")):
            return Reject(place, "not_http", "its URL is not of HTTP", intentional=True)
        return Reject(place, "no_request", "request.method or request.url is missing")
    if not _TOKEN.match(asked.method):
        return Reject(place, "no_request", "request.method is no method")
    if asked.method == "CONNECT":
        return Reject(place, "connect", "a tunnel", intentional=True)
    fields = _fields(asked.headers)
    place_of = _target(asked.url, fields)
    if place_of is None:
        intentional = re.match(r"[a-z][a-z0-9+.-]*:", asked.url, re.IGNORECASE) is not None
        why = "its URL is not of HTTP" if intentional else "request.url is none, or names no host"
        return Reject(place, "not_http" if intentional else "no_request", why, intentional)
    if entry.cached or entry.fetched in _SAFARI_CACHED:
        return Reject(place, "from_cache", "it was answered by the cache", intentional=True)
    started = _time_ns(entry.started)
    if started is None:
        return Reject(place, "bad_time", "startedDateTime is no time")
    target, port, notes = place_of
    request, missing = _request(asked, target, fields)
    start, end, first, last = _times(started, entry)
    response, lacks = _response(asked.method, entry.response) if entry.response is not None else (None, "")
    faults: list[Fault] = []
    if response is None:
        faults.append(Fault.UNFINISHED)
        first = last = 0
    if missing or (response is not None and response.truncated_bytes):
        faults.append(Fault.TRUNCATED)
    if missing:
        notes.append("request_bodies_not_in_file")
    if lacks:
        notes.append(lacks)
    server = address(entry.server or "", port)
    version = (asked.version or "").lower()
    protocol = "http/3" if version in ("h3", "http/3", "http/3.0") or version.startswith("h3-") else "http/1"
    if version in ("h2", "http/2", "http/2.0"):
        protocol = "http/2"
    name = "" if entry.connection in (None, "", 0, "0") else str(entry.connection)
    return Entry(place, request, response, start, end, first, last, NOBODY, server, name, protocol, tuple(faults),
                 tuple(notes))  # fmt: skip


def _fields(pairs: list[_Pair] | None) -> list[tuple[str, str]]:
    """Header fields that HTTP/1.1 can carry; several values of one that were joined by newlines apart again."""
    found = []
    for pair in pairs or ():
        if _TOKEN.match(pair.name):
            values = (pair.value or "").split("\n") if pair.name.lower() == "set-cookie" else [pair.value or ""]
            found += [(pair.name, value.strip()) for value in values]
    return found


def _target(url: str, fields: list[tuple[str, str]]) -> tuple[str, int, list[str]] | None:
    """(origin-form, port, notes), with the Host in `fields`; None for what is not fetched by HTTP."""
    notes: list[str] = []
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme in ("https", "wss") else 80)
    except ValueError:
        return None
    if parts.scheme not in ("http", "https", "ws", "wss") and not (url.startswith("/") and not parts.scheme):
        return None
    host = parts.netloc.rpartition("@")[2]
    if host and not any(name.lower() == "host" for name, _ in fields):
        fields.insert(0, ("Host", host))
    elif not host and not any(name.lower() == "host" for name, _ in fields):
        return None
    if parts.scheme in ("https", "wss"):
        notes.append("https_entries")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query or url.endswith("?") else "")
    return quote(target, safe="!\"$%&'()*+,-./:;<=>?@[\\]^_`{|}~"), port, notes


def _time_ns(text: str | None) -> int | None:
    """ISO 8601; without a zone it is UTC."""
    try:
        at = datetime.fromisoformat((text or "").strip())
    except ValueError:
        return None
    whole = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    since = whole - datetime(1970, 1, 1, tzinfo=UTC)
    ns = (since.days * 86_400 + since.seconds) * 1_000_000_000 + since.microseconds * 1000
    return ns if ns > 0 else None


def _times(started: int, entry: _Entry) -> tuple[int, int, int, int]:
    """When the request was sent, its end, the answer's begin and end. An entry begins sooner, without a connection."""

    def ns(name: str) -> int:
        value = (entry.timings or {}).get(name)
        return round(value * 1e6) if isinstance(value, int | float) and 0 < value < 1e9 else 0

    start = started + ns("blocked") + ns("dns") + ns("connect")
    end = start + ns("send")
    first = end + ns("wait")
    last = first + ns("receive")
    whole = started + round(max(0.0, min(entry.time or 0.0, 1e9)) * 1e6)
    if first == started:  # no timings, as some programs write
        return started, started, started, max(whole, started)
    return start, end, first, max(last, first)


def _request(asked: _Request, target: str, fields: list[tuple[str, str]]) -> tuple[Request, bool]:
    method = (asked.method or "").encode()
    declared = next((int(value) for name, value in fields if name.lower() == "content-length" and value.isdigit()), -1)
    size = max(declared, int(asked.body_size or -1) if asked.body_size is not None else -1)
    if asked.body_size == 0 and declared < 0:
        size = 0
    body = _posted(asked.post, fields, size) if asked.post is not None else None
    start = f"{asked.method} {target} HTTP/1.1".encode()
    if body is None or (not body and size > 0):
        request, missing = request_without_body(_head(start, fields), method, size if size >= 0 else UNKNOWN)
        return request, missing
    kept = [(name, value) for name, value in fields if name.lower() not in ("content-length", "transfer-encoding")]
    if body or method not in (b"GET", b"HEAD", b"DELETE", b"OPTIONS"):
        kept.append(("Content-Length", str(len(body))))
    return Request(_head(start, kept), body, len(body), Framing.LENGTH if body else Framing.NONE), False


def _posted(post: _Post, fields: list[tuple[str, str]], size: int) -> bytes | None:
    """The body that was sent; None when it is not in the file, or not whole."""
    if post.text:
        if (post.encoding or "").lower() == "base64":
            return _unbase64(post.text)
        body = post.text.encode("utf-8", "surrogatepass")
        if size == len(post.text) != len(body) and max(post.text) < "\u0100":
            return post.text.encode("latin-1")  # bytes that were written as characters
        return body
    if not post.params:
        return b"" if post.text is not None or post.params is not None else None
    kind = next((value for name, value in fields if name.lower() == "content-type"), post.type or "")
    if kind.lower().startswith("multipart/"):
        return _multipart(post.params, kind)
    # Programs differ in whether values are decoded: a valid escape is taken for one.
    return "&".join(f"{_form(p.name)}={_form(p.value or '')}" for p in post.params).encode()


def _form(text: str) -> str:
    if re.fullmatch(r"(?:[\w.~*+-]|%[0-9A-Fa-f]{2})*", text, re.ASCII):
        return text
    return quote_plus(text, errors="replace")


def _multipart(params: list[_Param], kind: str) -> bytes | None:
    match = _BOUNDARY.search(kind)
    if match is None or any(p.file and p.value is None for p in params):
        return None  # files are named, their content is not there
    parts = []
    for p in params:
        head = f'--{match[1]}\r\nContent-Disposition: form-data; name="{p.name}"'
        head += f'; filename="{p.file}"' if p.file else ""
        head += f"\r\nContent-Type: {p.type}" if p.file and p.type else ""
        parts.append(f"{head}\r\n\r\n{p.value or ''}\r\n")
    return ("".join(parts) + f"--{match[1]}--\r\n").encode("utf-8", "surrogatepass")


def _response(method: str, got: _Response) -> tuple[Response | None, str]:
    """The answer, and what to note of it."""
    status = got.status or 0
    if not 100 <= status <= 999:
        return None, ""
    fields = _fields(got.headers)
    reason = (got.reason or "").encode("latin-1", "replace")
    start = b"HTTP/1.1 %d %b" % (status, reason)
    content = got.content or _Content()
    sizes = [int(size) for size in (got.body_size, content.size) if size is not None and size >= 0]
    if method == "HEAD" or status in (204, 304) or status < 200:
        return Response(status, _head(start, fields)), "bodies_from_cache" if content.text else ""
    body: bytes | None = None
    if content.text is not None and (content.text or not any(sizes)):
        based = (content.encoding or "").lower() == "base64"
        body = _unbase64(content.text) if based else content.text.encode("utf-8", "surrogatepass")
    if body is None:
        known = max(sizes, default=UNKNOWN) if any(sizes) or sizes else UNKNOWN
        return response_without_body(
            status, _head(start, fields), known
        ), "response_bodies_not_in_file" if known else ""
    note = "bodies_decoded" if any(name.lower() == "content-encoding" for name, _ in fields) else ""
    kept = [(name, value) for name, value in fields if name.lower() not in _DROPPED]
    kept.append(("Content-Length", str(len(body))))
    return Response(status, _head(start, kept), body, len(body), Framing.LENGTH if body else Framing.NONE), note


def _unbase64(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=False)
    except (binascii.Error, ValueError):
        return None


def _head(start: bytes, fields: list[tuple[str, str]]) -> bytes:
    return heads.build(start, [(name.encode(), value.encode("utf-8", "surrogatepass")) for name, value in fields])
