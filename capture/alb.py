"""Access logs of AWS: application load balancers, of 16 fields and more, and classic ones without a type in front.

Fields: [type] time elb client target, times of request, target, response; status of the balancer and of the target;
bytes received and sent; "request" "agent" cipher protocol, and what later versions put behind. Fields that are not
known yet are let be. Bytes received and sent are of whole messages, so the length of bodies is not known. The target of
a request is logged as a URL: the request itself had its path, and its host as Host.

The time is that of the answer's end; `request_creation_time` (field 22) is when the request came, where it is there.

Rejected, by reason: `bad_line`, `bad_request` (`- http://...- -`: the client sent none), `bad_time`, `bad_value`,
`too_long`, `connect` (a tunnel, intentional), `blank` (intentional).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlsplit

from capture.entry import NOBODY, Entry, Reject, origin_of, request_without_body, response_without_body
from capture.lines import Input
from capture.log_format import unescaped
from wire import head as heads
from wire.records import Fault

_TYPES: Final = frozenset({"http", "https", "h2", "grpcs", "ws", "wss"})
_FIELD: Final = re.compile(r'"((?:[^"\\]|\\.)*)"|(\S+)')
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z\Z")
_LINE: Final = re.compile(
    rb"(?:(?:https?|h2|grpcs|wss?) )?\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z \S+ \S+:\d+ \S+ [-\d.]+ "
)
_REQUEST: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}) (\S.*) (HTTP/\d(?:\.\d)?)\Z", re.DOTALL)
_PROTOCOLS: Final = {"h2": "http/2", "grpcs": "http/2"}


def is_alb(line: bytes) -> bool:
    return _LINE.match(line) is not None


def entries(file: Input, *, host: str = "") -> Iterator[Entry | Reject]:
    """`host`: the Host of requests whose line tells none."""
    for place, line, whole in file.lines():
        if not whole:
            yield Reject(place, "too_long", f"longer than {len(line)} bytes")
        elif not line.strip():
            yield Reject(place, "blank", "an empty line", intentional=True)
        else:
            try:
                found = _of(place, line.decode("utf-8", "surrogateescape"), host)
            except ValueError:  # its text may show what is in the line
                found = Reject(place, "bad_value", "a URL, a number or a text in it is none")
            yield found


def _of(place: int, line: str, host: str) -> Entry | Reject:
    fields = [quoted or bare for quoted, bare in _FIELD.findall(line)]
    kind = fields.pop(0) if fields and fields[0] in _TYPES else ""
    if len(fields) < 12 or not _TIME.match(fields[0]):
        few = f"{len(fields)} fields are less than 12"
        why = few if len(fields) < 12 else "the first field is neither a type of load balancer nor a time"
        return Reject(place, "bad_line", why)
    at, _, client, target_host, *times = fields[:7]
    elb_status, target_status = fields[7:9]
    match = _REQUEST.match(unescaped(fields[11]))
    if match is None:
        return Reject(place, "bad_request", "what is logged as its request is none: method, URL, version")
    method, url, version = match.groups()
    if method == "CONNECT":
        return Reject(place, "connect", "a tunnel", intentional=True)
    end = _ns(at)
    if end is None:
        return Reject(place, "bad_time", "what is logged as its time is none")
    durations = [_duration(text) for text in times]
    created = _ns(fields[20]) if kind and len(fields) > 20 and _TIME.match(fields[20]) else None
    begin = created if created is not None else end - sum(durations)
    sent = begin + durations[0]
    try:
        parts = urlsplit(url)
        target, authority = origin_of(url)
        scheme = parts.scheme
        if parts.port in (80, 443):
            authority = authority.rpartition(":")[0]
    except ValueError:
        authority, scheme, target = "", "", url
    named = authority.strip("-") or host
    agent = unescaped(fields[12]) if len(fields) > 12 else "-"
    pairs = [("Host", named)] if named else []
    pairs += [("User-Agent", agent)] if agent not in ("-", "") else []
    head = _head(f"{method} {target} {version if version in ('HTTP/1.0', 'HTTP/1.1') else 'HTTP/1.1'}", pairs)
    request, missing = request_without_body(head, method.encode("ascii", "replace"))
    faults = [Fault.TRUNCATED]
    notes = ["request_bodies_not_in_file"] if missing else []
    if scheme in ("https", "wss"):
        notes.append("https_entries")
    if not named:
        notes.append("no_host")
    status = target_status if re.fullmatch(r"[1-9]\d\d", target_status) else elb_status
    response = None
    if status.isdigit() and 100 <= int(status) <= 999:
        length = 0 if method == "HEAD" or status in ("204", "304") else -1
        response = response_without_body(int(status), _head(f"HTTP/1.1 {status} ", []), length)
        faults = [Fault.TRUNCATED] if missing or length else []
        notes += ["response_bodies_not_in_file"] if length else []
    else:
        faults = [Fault.UNFINISHED]
    first = sent + durations[1]
    server = target_host if ":" in target_host else NOBODY
    return Entry(place, request, response, begin, sent, first, max(first + durations[2], end if created else 0),
                 client if ":" in client else NOBODY, server, "", _PROTOCOLS.get(kind, "http/1"), tuple(faults),
                 tuple(notes))  # fmt: skip


def _duration(text: str) -> int:
    """ns of `0.000036`; 0 for -1, which is: it did not get so far."""
    return round(float(text) * 1e9) if re.fullmatch(r"\d{1,9}(?:\.\d+)?", text) else 0


def _ns(text: str) -> int | None:
    try:
        at = datetime.fromisoformat(text.removesuffix("Z")).replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    except ValueError:
        return None
    return (at.days * 86_400 + at.seconds) * 1_000_000_000 + at.microseconds * 1000


def _head(start: str, pairs: list[tuple[str, str]]) -> bytes:
    encoded = [(name.encode(), value.encode("utf-8", "surrogateescape")) for name, value in pairs]
    return heads.build(start.encode("utf-8", "surrogateescape"), encoded)
