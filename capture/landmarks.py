"""What a message begins like, for reading on in the middle of a stream. Only methods that are in use are believed."""

from __future__ import annotations

import re
from typing import Final

from capture.message import OPAQUE, REQUEST, RESPONSE, UNKNOWN, Kind, Message, message_of, promising

#: Of RFC 9110, WebDAV and its extensions (RFC 3253, 3648, 3744, 4791, 5842), UPnP, and caches.
_METHODS: Final = (
    rb"(?:GET|POST|HEAD|PUT|DELETE|OPTIONS|PATCH|CONNECT|TRACE|QUERY|PROPFIND|PROPPATCH|REPORT|SEARCH|LOCK|UNLOCK|MKCOL|"
    rb"COPY|MOVE|MERGE|CHECKOUT|CHECKIN|UNCHECKOUT|MKACTIVITY|MKCALENDAR|MKWORKSPACE|VERSION-CONTROL|BASELINE-CONTROL|"
    rb"LABEL|UPDATE|ORDERPATCH|ACL|BIND|REBIND|UNBIND|LINK|UNLINK|M-SEARCH|NOTIFY|SUBSCRIBE|UNSUBSCRIBE|PURGE|BAN)"
)
_START_LINE: Final = {
    REQUEST: re.compile(_METHODS + rb" +[!-~]+ +HTTP/1\.[01]\r?\n"),
    RESPONSE: re.compile(rb"HTTP/1\.[01] [1-5]\d\d[ \r]"),
    UNKNOWN: re.compile(rb"(?:" + _METHODS + rb" +[!-~]+ +HTTP/1\.[01]\r?\n|HTTP/1\.[01] [1-5]\d\d[ \r])"),
}
_ANY_START: Final = re.compile(_METHODS + rb" +[!-~]+ +HTTP/[0-9]|HTTP/1\.[01] [1-5]\d\d")
_FIRST_WORDS: Final = {
    REQUEST: re.compile(_METHODS + rb" +[!-~]*"),
    RESPONSE: re.compile(rb"HTTP/1\.[01] "),
    UNKNOWN: re.compile(_METHODS + rb" +[!-~]|HTTP/1\.[01] "),
}


def begins(kind: Kind, data: bytes) -> bool:
    """Whether a whole start line stands at the beginning."""
    return bool(_START_LINE[kind].match(data))


def begins_long(kind: Kind, data: bytes) -> bool:
    """The same, or one that is longer than these bytes."""
    return begins(kind, data) or (data.find(b"\n") < 0 and may_begin(kind, data))


def half_request(data: bytes, offset: int, ts_ns: int, ack: int) -> Message | None:
    """The request whose head begins so, and was not seen to its end: its whole lines, opaque. None when it is none."""
    if not begins(REQUEST, data):
        return None
    message = message_of(REQUEST, data[: data.rfind(b"\n") + 1], offset, ts_ns, ack)
    if message is not None:
        message.low = message.head.lower()
        message.mode = OPAQUE
        message.wire_bytes = len(data)
        message.end_offset = offset + len(data)
    return message


def may_begin(kind: Kind, data: bytes) -> bool:
    """Whether what stands at the beginning is a start line, or as much of one as there is."""
    return (
        data[:1].isalpha() and bool(_FIRST_WORDS[kind].match(data)) and (begins(kind, data) or promising(kind, data, 0))
    )


def may_hold(data: bytes) -> bool:
    """False where no start line can be."""
    return data.find(b"HTTP/1.") >= 0


def find(kind: Kind, data: bytes, begin: int) -> int:
    """Where, from `begin` on, a line begins that is a start line; -1 where there is none."""
    found = _START_LINE[kind].search(data, begin) if data.find(b"HTTP/1.", begin) >= 0 else None
    while found is not None and found.start() and data[found.start() - 1] not in b"\r\n":
        found = _START_LINE[kind].search(data, found.start() + 1)
    return found.start() if found is not None else -1


def other_protocol(data: bytes, at: int) -> str:
    """What it is that is no HTTP/1: `tls`, `http2`, `not_http`; or `bad_head`, where it begins like a message, and what
    follows cannot be read as one, or is too long."""
    if data.startswith(b"\x16\x03", at):
        return "tls"
    if _ANY_START.match(data, at):
        return "bad_head"
    return "http2" if data.startswith(b"PRI * HTTP/2", at) else "not_http"
