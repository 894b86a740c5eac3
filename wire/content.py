"""Bodies as they are meant: content codings taken off and put on again (RFC 9110 section 8.4), and media types.

Nothing here raises for what was on the wire: a body that cannot be decoded is None.
"""

from __future__ import annotations

import gzip
import re
import zlib
from typing import Final

import zstandard

MAX_DECODED_BYTES: Final = 32 << 20  # a few kilobytes can decode into gigabytes
_TYPE: Final = re.compile(rb"\ncontent-type[ \t]*:[ \t]*([^\r\n;]*)", re.IGNORECASE)
_ENCODING: Final = re.compile(rb"\ncontent-encoding[ \t]*:((?:[^\r\n]|\r?\n[ \t])*)", re.IGNORECASE)
_TRANSFER: Final = re.compile(rb"\ntransfer-encoding[ \t]*:((?:[^\r\n]|\r?\n[ \t])*)", re.IGNORECASE)
_KNOWN: Final = (b"gzip", b"x-gzip", b"deflate", b"zstd")


def codings_of(head: bytes) -> tuple[bytes, ...]:
    """The codings of a body in the order in which they were put on, in lower case: those of the content, then those of
    its transfer (RFC 9112 section 7), but for chunked, which is off already, and identity."""
    low = head.lower()
    found: list[bytes] = []
    for name, field in ((b"\ncontent-encoding", _ENCODING), (b"\ntransfer-encoding", _TRANSFER)):
        at = low.find(name)  # most heads have none, and looking so is ten times faster
        if at >= 0:
            found += field.findall(low, at)
    if not found:
        return ()
    codings = (part.strip() for value in found for part in value.split(b","))
    return tuple(coding for coding in codings if coding not in (b"", b"identity", b"chunked"))


def decoded(body: bytes, codings: tuple[bytes, ...]) -> tuple[bytes, bool] | None:
    """(body without its codings, whether it was whole), or None: an unknown coding, damage, or more than
    MAX_DECODED_BYTES. Of a body that was cut off, what can be decoded is given."""
    whole = True
    for coding in reversed(codings):
        if coding not in _KNOWN:
            return None
        try:
            found = _unzstd(body) if coding == b"zstd" else _inflated(body, coding)
        except (zlib.error, zstandard.ZstdError):
            return None
        if found is None:
            return None
        body, complete = found
        whole = whole and complete
    return body, whole


def encoded(body: bytes, codings: tuple[bytes, ...]) -> bytes:
    """The body with these codings put on: the same bytes every time. Raises ValueError for an unknown one."""
    for coding in codings:
        if coding in (b"gzip", b"x-gzip"):
            body = gzip.compress(body, compresslevel=6, mtime=0)
        elif coding == b"deflate":
            body = zlib.compress(body, 6)
        elif coding == b"zstd":
            body = zstandard.ZstdCompressor(level=3).compress(body)
        else:
            raise ValueError(f"cannot encode {coding!r}")
    return body


def media_type(head: bytes) -> bytes:
    """`application/json`: lower case, without parameters; b"" where there is none, or two say different things."""
    low = head.lower()
    at = low.find(b"\ncontent-type")  # without a look at case a search is ten times faster
    match = _TYPE.search(head, at) if at >= 0 else None
    if match is None:
        return b""
    media = match.group(1).rstrip().lower()
    at = low.find(b"\ncontent-type", match.end())
    others = _TYPE.findall(low, at) if at >= 0 else ()
    return media if all(other.rstrip() == media for other in others) else b""


def is_json(media: bytes, body: bytes) -> bool:
    """By its type; without a telling one, by how it begins."""
    if media.endswith((b"/json", b"+json", b"/x-ndjson", b"/jsonl", b"/json-seq")):
        return True
    return media in (b"", b"text/plain", b"application/octet-stream") and body.lstrip()[:1] in (b"{", b"[")


def is_form(media: bytes) -> bool:
    return media == b"application/x-www-form-urlencoded"


def _inflated(body: bytes, coding: bytes) -> tuple[bytes, bool] | None:
    # "deflate" is the zlib format (RFC 9110 section 8.4.1.2), but some senders leave its header out.
    raw = coding == b"deflate" and (len(body) < 2 or body[0] & 15 != 8 or (body[0] << 8 | body[1]) % 31 != 0)
    parts: list[bytes] = []
    room = MAX_DECODED_BYTES
    while body:
        machine = zlib.decompressobj(-15 if raw else 47)
        part = machine.decompress(body, room + 1)
        room -= len(part)
        if room < 0:
            return None
        parts.append(part)
        if not machine.eof:
            return b"".join(parts), False
        body = machine.unused_data.lstrip(b"\0")
    return b"".join(parts), bool(parts)


def _unzstd(body: bytes) -> tuple[bytes, bool] | None:
    machine = zstandard.ZstdDecompressor().decompressobj()
    size = zstandard.frame_content_size(body)
    if size > MAX_DECODED_BYTES:
        return None
    parts: list[bytes] = []
    total = 0
    for at in range(0, len(body), 1 << 14):
        part = machine.decompress(body[at : at + (1 << 14)])
        total += len(part)
        if total > MAX_DECODED_BYTES:
            return None
        parts.append(part)
        if machine.eof:
            break
    return b"".join(parts), machine.eof
