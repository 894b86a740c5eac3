"""Message heads: parsed on demand from the bytes that were seen, changed without touching the rest.

A head is the start line, the field lines, and the empty line. Lines may end in CRLF or (lenient) LF alone;
what is rebuilt ends in CRLF. Names compare in lower case (RFC 9110 section 5.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import NamedTuple

Field = tuple[bytes, bytes]  # name as seen, value without surrounding white space

#: Methods that must not change state on the server (RFC 9110 section 9.2.1).
SAFE_METHODS = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE"})


_MAX_CACHED_BLOCK = 4096
_UNSAFE_TO_SPACE = bytes.maketrans(b"\r\n\0", b"   ")


class RequestHead(NamedTuple):
    method: bytes
    target: bytes  # as sent: origin-form, absolute-form, "*" or authority
    version: bytes  # b"HTTP/1.1"
    fields: list[Field]


class ResponseHead(NamedTuple):
    version: bytes
    status: int
    reason: bytes
    fields: list[Field]


def request_head(head: bytes) -> RequestHead:
    """Parse a request's head. Never raises: what is missing is empty."""
    line, _, rest = head.partition(b"\n")
    line = line.strip()
    if b"  " in line or b"\t" in line:
        return RequestHead(*_words_of(line), fields_of(rest))
    words = line.split(b" ")
    method = words[0] if words else b""
    version = words[-1] if len(words) > 2 else b""
    target = b" ".join(words[1:-1]) if len(words) > 2 else (words[1] if len(words) == 2 else b"")
    return RequestHead(method, target, version, fields_of(rest))


def _words_of(line: bytes) -> tuple[bytes, bytes, bytes]:
    """Method, target and version, whatever blanks part them, as readers in use take it; those in a target stay."""
    method, target = line.split(None, 1)
    words = target.rsplit(None, 1)
    if not words[-1].startswith(b"HTTP/"):
        return method, target, b""
    return method, words[0] if len(words) > 1 else b"", words[-1]


def response_head(head: bytes) -> ResponseHead:
    """Parse a response's head. Never raises: status 0 where there is none."""
    line, _, rest = head.partition(b"\n")
    words = line.strip().split(b" ", 2)
    status = int(words[1]) if len(words) > 1 and len(words[1]) == 3 and words[1].isdigit() else 0
    return ResponseHead(words[0], status, words[2] if len(words) > 2 else b"", fields_of(rest))


def fields_of(block: bytes) -> list[Field]:
    """Field lines of a head without its start line. Folded lines (obs-fold) are joined by one space."""
    return list(_fields(block) if len(block) <= _MAX_CACHED_BLOCK else _fields.__wrapped__(block))


@lru_cache(512)  # one head is asked for its fields several times, by those who are not to know of each other
def _fields(block: bytes) -> tuple[Field, ...]:
    fields: list[Field] = []
    folded = b"\n " in block or b"\n\t" in block
    for line in block.split(b"\n"):
        if folded and line[:1] in (b" ", b"\t") and fields:
            name, value = fields[-1]
            fields[-1] = (name, (value + b" " + line.strip()).strip())
            continue
        name, colon, value = line.partition(b":")
        if colon:
            fields.append((name.strip(), value.strip()))
    return tuple(fields)


def field(head: bytes, name: bytes) -> bytes | None:
    """The first value of a field, or None. `name` in lower case."""
    if name not in head.lower():  # as nearly always
        return None
    for found, value in fields_of(head.partition(b"\n")[2]):
        if found.lower() == name:
            return value
    return None


def method_of(head: bytes) -> bytes:
    return head[: max(head.find(b" "), 0)]


def target_of(head: bytes) -> bytes:
    end = head.find(b"\n")
    words = (head[:end] if end >= 0 else head).strip().split(b" ")
    if len(words) == 3:
        return words[1]
    return b" ".join(words[1:-1]) if len(words) > 2 else (words[1] if len(words) == 2 else b"")


def path_of(target: bytes) -> bytes:
    """The path of a target in any form, without query and fragment; b"" for "*" and authorities."""
    if target.startswith(b"/"):
        return target.partition(b"?")[0].partition(b"#")[0]
    scheme, found, rest = target.partition(b"://")
    if not found or not scheme.isalnum():
        return b""
    slash = rest.find(b"/")
    query = rest.find(b"?")
    if slash < 0 or 0 <= query < slash:
        return b"/"
    return rest[slash:].partition(b"?")[0].partition(b"#")[0]


def query_of(target: bytes) -> bytes:
    return target.partition(b"?")[2].partition(b"#")[0]


def build(start_line: bytes, fields: Iterable[Field]) -> bytes:
    """A head of its parts. CR, LF and NUL inside a part become spaces (RFC 9110 section 5.5): a value that a service
    handed out must not be able to end a field, or a request, of ours."""
    lines = [start_line, *(name + b": " + value for name, value in fields)]
    text = b"".join(lines)
    if b"\n" in text or b"\r" in text or b"\0" in text:
        lines = [line.translate(_UNSAFE_TO_SPACE) for line in lines]
    return b"\r\n".join((*lines, b"", b""))


def build_request(parts: RequestHead) -> bytes:
    return build(b" ".join((parts.method, parts.target, parts.version)).rstrip(), parts.fields)


def build_response(parts: ResponseHead) -> bytes:
    return build(b"%b %d %b" % (parts.version, parts.status, parts.reason), parts.fields)


def map_fields(head: bytes, change: Callable[[bytes, bytes], bytes | None]) -> bytes:
    """The head with each field's value replaced by `change(lower-case name, value)`; None removes the field.

    The start line is kept as it is.
    """
    line, _, rest = head.partition(b"\n")
    kept: list[Field] = []
    for name, value in fields_of(rest):
        new = change(name.lower(), value)
        if new is not None:
            kept.append((name, new))
    return build(line.rstrip(b"\r"), kept)


def with_fields(head: bytes, replace: dict[bytes, bytes | None]) -> bytes:
    """The head with these fields (names in lower case) set; None removes; absent ones are appended."""
    line, _, rest = head.partition(b"\n")
    kept: list[Field] = []
    left = dict(replace)
    for name, value in fields_of(rest):
        low = name.lower()
        if low not in replace:
            kept.append((name, value))
        elif low in left:
            new = left.pop(low)
            if new is not None:
                kept.append((name, new))
    kept.extend((name, value) for name, value in left.items() if value is not None)
    return build(line.rstrip(b"\r"), kept)
