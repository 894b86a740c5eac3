"""Access logs of nginx and Apache: a line is an exchange without bodies.

A log carries no bodies, and of heads only what its format names. So heads are as short as what is known, no field is
made up, and a request that may have had a body says that its body is not there (`Request.truncated_bytes`): cleansing
leaves it out, it is never replayed as an empty one.

Times: nginx logs when a request is over, Apache's %t when it began; lines of the `combined` format do not tell which of
them wrote it, and have seconds. Where the format has `$request_time`, the begin is the end less that.

Rejected, by reason: `bad_line` (not of the format), `bad_request` (no request line in it, as of a client that sent
none), `bad_version` (none of HTTP/1, 2 and 3, or 2 and 3 refused with 505: nothing of them can be recorded or
replayed), `bad_time`, `bad_value` (a URL, number or text that cannot be one), `too_long`, `connect` (a tunnel,
intentional), `blank` (intentional).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

from capture.combined import combined, lacks
from capture.entry import (
    BODILESS,
    NOBODY,
    Entry,
    Reject,
    address,
    origin_of,
    request_without_body,
    response_without_body,
)
from capture.lines import Input
from capture.log_format import LogFormat, Values
from wire import head as heads
from wire.records import Fault, Framing, Request

_REQUEST: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}) (\S(?:.*\S)?) (HTTP/\d(?:\.\d)?)\Z", re.DOTALL)
_VERSIONS: Final = frozenset(
    {"HTTP/1", *(f"HTTP/1.{n}" for n in range(10)), "HTTP/2", "HTTP/2.0", "HTTP/3", "HTTP/3.0"}
)
_DATE: Final = re.compile(r"(\d\d)/(\w{3})/(\d{4}):(\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))? ([+-])(\d\d)(\d\d)\Z")
_NAMES: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTHS: Final = {name: n for n, name in enumerate(_NAMES, 1)}
_SECOND: Final = 1_000_000_000


class Missing(Exception):
    """A line lacks something. Its arguments are those of a Reject."""


def entries(file: Input, format: LogFormat | None = None, *, host: str = "") -> Iterator[Entry | Reject]:
    """Lines of `format`, or of the common and combined formats. `host`: the Host of requests whose line tells none."""
    for place, line, whole in file.lines():
        if not whole:
            yield Reject(place, "too_long", f"longer than {len(line)} bytes")
            continue
        if not line.strip():
            yield Reject(place, "blank", "an empty line", intentional=True)
            continue
        values = format.read(line) if format is not None else combined(line)
        if values is None:
            lack = lacks(line) if format is None else f"its {len(line)} bytes are not of this log format"
            yield Reject(place, "bad_line", lack)
            continue
        try:
            yield entry(place, values, host)
        except Missing as missing:
            yield Reject(place, *missing.args)
        except ValueError:  # the error's text may show what is in the line
            yield Reject(place, "bad_value", "a URL, a number or a text in it is none")


def entry(place: int, values: Values, host: str) -> Entry:
    """Of nginx's variables. Raises Missing."""
    method, target, version = _request_line(values)
    status = values.get("status", "")
    if method == "CONNECT":
        raise Missing("connect", "a tunnel", True)
    if version not in _VERSIONS or (status == "505" and not version.startswith("HTTP/1")):
        raise Missing(
            "bad_version", "its version is none of HTTP/1, 2 and 3, or one of the latter that was refused (505)"
        )
    end, seconds_only, begun = _time(values)
    took = _took(values)
    start = end if begun else end - took
    fields = _request_fields(values, target, host)
    if target.lower().startswith(("http://", "https://")):
        target, _ = origin_of(target)
    head = _head(f"{method} {target} {version if version in ('HTTP/1.0', 'HTTP/1.1') else 'HTTP/1.1'}", fields)
    request, missing = _request(head, method.encode(), values)
    notes = ["times_of_seconds"] if seconds_only else []
    if "time_without_zone" in values:
        notes.append("times_without_zone")
    if not any(name == "Host" for name, _ in fields):
        notes.append("no_host")
    faults = [Fault.TRUNCATED] if missing else []
    if missing:
        notes.append("request_bodies_not_in_file")
    response = None
    if status.isdigit() and 100 <= int(status) <= 999:
        sent = values.get("body_bytes_sent", "")
        length = int(sent) if sent.isdigit() else -1
        if method == "HEAD" or status in ("204", "304"):
            length = 0
        response = response_without_body(int(status), _head(f"HTTP/1.1 {status} ", _response_fields(values)), length)
        if response.truncated_bytes:
            notes.append("response_bodies_not_in_file")
            faults = [Fault.TRUNCATED]
    else:
        faults.insert(0, Fault.UNFINISHED)
    first = _seconds(values.get("upstream_header_time", "")) or took
    protocol = {"HTTP/2": "http/2", "HTTP/3": "http/3"}.get(version.removesuffix(".0"), "http/1")
    client = address(values.get("remote_addr", ""), values.get("remote_port", "0"))
    server = address(values.get("server_addr", ""), values.get("server_port", "0"))
    return Entry(
        place,
        request,
        response,
        start,
        start,
        start + min(first, took or first),
        start + took,
        client,
        NOBODY if server.endswith(":0") else server,
        values.get("connection", ""),
        protocol,
        tuple(faults),
        tuple(notes),
    )


def _request_line(values: Values) -> tuple[str, str, str]:
    line = values.get("request")
    if line is None:
        method = values.get("request_method", "")
        target = values.get("request_uri") or values.get("uri", "")
        if "request_uri" not in values and target:
            query = values.get("args") or values.get("query_string") or values.get("query_mark", "").removeprefix("?")
            target += f"?{query}" if query else ""
        version = values.get("server_protocol", "HTTP/1.1") or "HTTP/0.9"  # nginx logs no version of these
        line = f"{method} {target} {version}" if method and target else "-"
    match = _REQUEST.match(line)
    if match is None:
        raise Missing("bad_request", "what is logged as its request is none: method, target, version")
    return match[1], match[2], match[3]


def _request(head: bytes, method: bytes, values: Values) -> tuple[Request, bool]:
    body = values.get("request_body")
    if body is not None:
        raw = body.encode("utf-8", "surrogateescape")
        known = values.get("content_length") or values.get("http_content_length") or ""
        if known.isdigit() and int(known) > len(raw):
            return Request(head, raw, int(known), Framing.LENGTH, 0, int(known) - len(raw)), True
        head = heads.with_fields(head, {b"content-length": b"%d" % len(raw)})
        return Request(head, raw, len(raw), Framing.LENGTH), False
    logged = "content_length" in values or "http_content_length" in values
    length = values.get("content_length") or values.get("http_content_length") or ""
    if logged and length.isdigit():
        return request_without_body(head, method, int(length))
    return request_without_body(head, method, 0 if method in BODILESS else -1)


def _request_fields(values: Values, target: str, host: str) -> list[tuple[str, str]]:
    """What the line tells of the request's fields, and nothing else."""
    named = values.get("http_host") or _authority(target) or values.get("host") or values.get("server_name") or host
    fields = [("Host", named)] if named and named not in ("_", "-") else []
    for name, value in values.items():
        if name.startswith("http_") and name not in ("http_host", "http_content_length"):
            fields.append((_field_name(name[5:]), value))
    if "content_type" in values and "http_content_type" not in values:
        fields.append(("Content-Type", values["content_type"]))
    cookies = [f"{name[7:]}={value}" for name, value in values.items() if name.startswith("cookie_")]
    if cookies and "http_cookie" not in values:
        fields.append(("Cookie", "; ".join(cookies)))
    return fields


def _response_fields(values: Values) -> list[tuple[str, str]]:
    skipped = ("sent_http_content_length", "sent_http_transfer_encoding")
    return [(_field_name(n[10:]), v) for n, v in values.items() if n.startswith("sent_http_") and n not in skipped]


def _field_name(name: str) -> str:
    return "-".join(part.capitalize() for part in name.split("_"))


def _authority(target: str) -> str:
    try:
        return urlsplit(target).netloc.rpartition("@")[2] if "://" in target[:12] else ""
    except ValueError:
        return ""


def _time(values: Values) -> tuple[int, bool, bool]:
    """(ns, whether it has seconds only, whether it is the request's begin). Raises Missing."""
    for name in ("time_begun_ns", "time_ns", "msec", "time_iso8601", "time_local", "time_begun"):
        if (text := values.get(name)) is None:
            continue
        at = int(text) if name.endswith("_ns") and text.isdigit() else None
        if name == "msec":
            at = _seconds(text) or None
        elif name == "time_iso8601":
            at = _iso_ns(text)
        elif name in ("time_local", "time_begun"):
            at = local_ns(text)
        if at is not None and at > 0:
            return at, not at % _SECOND, name.startswith("time_begun")
        raise Missing("bad_time", "what is logged as its time is none")
    raise Missing("bad_time", "no time in it")


@lru_cache(4096)  # many lines have the same second
def local_ns(text: str) -> int | None:
    """`10/Oct/2000:13:55:36 -0700` as ns since 1970."""
    match = _DATE.match(text)
    if match is None or match[2] not in _MONTHS:
        return None
    day, month, year, hour, minute, second, fraction, sign, hours, minutes = match.groups()
    try:
        at = datetime.fromisoformat(
            f"{year}-{_MONTHS[month]:02}-{day}T{hour}:{minute}:{min(int(second), 59):02}{sign}{hours}:{minutes}"
        )
    except ValueError:
        return None
    return int(at.timestamp()) * _SECOND + int((fraction or "0").ljust(9, "0"))


def _iso_ns(text: str) -> int | None:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return round(at.timestamp() * 1_000_000) * 1000


def _took(values: Values) -> int:
    for name, unit in (("request_time_us", 1000), ("request_time_ms", 1_000_000)):
        if values.get(name, "").isdigit():
            return int(values[name]) * unit
    return _seconds(values.get("request_time", ""))


def _seconds(text: str) -> int:
    """ns of `0.123`; of several upstreams (`0.1, 0.2`) the sum. 0 for none."""
    total = 0
    for part in re.split(r"[,:] ?", text):
        whole, _, fraction = part.strip().partition(".")
        if whole.isdigit() and len(whole) < 11 and (not fraction or fraction.isdigit()):
            total += int(whole) * _SECOND + int(fraction[:9].ljust(9, "0"))
    return total


def _head(start: str, fields: list[tuple[str, str]]) -> bytes:
    encoded = [(name.encode("ascii", "replace"), value.encode("utf-8", "surrogateescape")) for name, value in fields]
    return heads.build(start.encode("utf-8", "surrogateescape"), encoded)
