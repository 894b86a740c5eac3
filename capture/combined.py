"""The common and combined formats of nginx and Apache, with what is often put around them.

Before the address a host or a list of proxies, behind the agent more fields. The fields that ingress-nginx puts there
by default are known, so far as they tell how long a request took. What a user is called is the client's to choose: it
may hold spaces and brackets, and Apache writes an empty one as `""`.
"""

from __future__ import annotations

import re
from typing import Final

from capture.log_format import Values, unescaped

#: What is before the time. A quote in it is escaped or of an empty user, so `] "` is the end of the time alone.
_FRONT: Final = rb'[^"\[]{5,2000}|(?:[^"\\]|\\.|""){5,2000}?'
#: A second line that lost its newline is no field.
_FIELD: Final = rb'"(?:[^"\\]|\\.)*"|(?!\[\d\d/\w{3}/\d{4}:[^\]]{0,32}\] ")[^\s"]\S*'
_COMBINED: Final = re.compile(
    rb"(?P<front>" + _FRONT + rb") \[(?P<time>[^\[\]]{20,32})\] "
    rb'"(?P<request>(?:[^"\\]|\\.)*)" (?P<status>\d{3}|-) (?P<bytes>\d+|-)'
    rb'(?: "(?P<referer>(?:[^"\\]|\\.)*)" "(?P<agent>(?:[^"\\]|\\.)*)"'
    rb"(?P<more>(?: (?:" + _FIELD + rb"))*))?\s*\Z"
)
#: ingress-nginx: length and time of the request, names of the upstream and its alternative, then lists of upstreams.
_INGRESS: Final = re.compile(rb" \d+ (\d+\.\d+) \[\S*\] \[\S*\] ")
_TIME: Final = re.compile(rb" \[[^\[\]]{20,32}\]")
_START: Final = re.compile(rb"(?:" + _FRONT + rb') \[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d(?:\.\d{1,9})? [+-]\d{4}\] "')
_ADDRESS: Final = re.compile(rb"(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]+|unix:|localhost)\Z")


def is_combined(line: bytes) -> bool:
    """Whether a line is of the common or combined format, or nearly."""
    return _START.match(line) is not None


def combined(line: bytes) -> Values | None:
    """nginx's names of what is in a line of the common or combined format."""
    match = _COMBINED.match(line)
    if match is None:
        return None
    front = match["front"].split()
    if match["front"].lstrip().count(b" ") < 2:  # a user of spaces is one
        return None
    values = {"time_local": _text(match["time"]), "request": _text(match["request"]), "status": _text(match["status"])}
    if len(front) > 3 and not front[0].endswith(b",") and _ADDRESS.match(front[1].rstrip(b",")):
        asked = front.pop(0)  # by its name, or its address
        if not _ADDRESS.match(asked):
            values["host"] = _text(asked)
    values["remote_addr"] = _text(front[0].rstrip(b","))
    values["body_bytes_sent"] = _text(match["bytes"]).replace("-", "0")
    for name, group in (("http_referer", "referer"), ("http_user_agent", "agent")):
        if match[group] not in (None, b"-", b""):
            values[name] = unescaped(_text(match[group]))
    if (took := _INGRESS.match(match["more"] or b"")) is not None:
        values["request_time"] = _text(took[1])
    values["request"] = unescaped(values["request"])
    return values


def lacks(line: bytes) -> str:
    """What of a line tells that it is not of the format, without showing any of it."""
    lack = "a [time]" if not _TIME.search(line) else 'a "request"' if b'] "' not in line else "status and size"
    return f"its {len(line)} bytes are not of the combined format: there is no {lack} where it should be"


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
