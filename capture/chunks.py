"""The lines of a chunked body (RFC 9112 section 7.1): what is read, and what of it is strict."""

from __future__ import annotations

import re
from typing import Final

from capture.message import LENIENT, OPAQUE, RESPONSE, STRICT, Message, hints_chunked

_BLANKS: Final = rb"[ \t\v\f]*"
_CHUNK_SIZE: Final = re.compile(_BLANKS + rb"([0-9A-Fa-f]+)[ \t\v\f]*(?:;[^\n]*)?\r?\Z")
_SIZE_AND_MORE: Final = re.compile(_BLANKS + rb"([0-9A-Fa-f]+)(?![0-9A-Za-z])")
_BEGINS_LIKE_SIZE: Final = re.compile(_BLANKS + rb"(?:[0-9A-Fa-f]|\Z)")
_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_QUOTED: Final = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
#: RFC 9112 section 7.1.1. What it is not is read all the same, and lenient.
STRICT_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]+(?:;" + _TOKEN + rb"(?:=(?:" + _TOKEN + rb"|" + _QUOTED + rb"))?)*\r\Z")
STRICT_TRAILER = re.compile(_TOKEN + rb":[\t -~\x80-\xff]*\r\Z")
#: The end of a chunk and the size of the next one, not the last, as nearly all write them.
NEXT_CHUNK: Final = re.compile(rb"\r\n(?=[0-9A-Fa-f]*[1-9A-Fa-f])([0-9A-Fa-f]{1,8})\r\n")
_MAX_LENGTH: Final = 1 << 62


def size_of(line: bytes) -> int:
    """What the line before a chunk says of its size, however leniently; -1 where nothing can be told."""
    return _size(_CHUNK_SIZE.match(line))


def size_in(message: Message, line: bytes) -> int:
    """The same for a message, which is strict, lenient or opaque accordingly."""
    size = size_of(line)
    if size < 0 and message.kind is RESPONSE:
        size = _size(_SIZE_AND_MORE.match(line))  # some readers of answers ignore what else stands there
        message.ambiguous, message.mode = True, OPAQUE
    strictly(message, STRICT_CHUNK_SIZE.match(line) is not None)
    return size


def next_chunk(message: Message, data: bytes, at: int) -> tuple[int, int]:
    """Behind a chunk: the size of the next one and where it begins, if the lines between are here and plain. Else
    (0, at), and they are read one by one; that would come to the same."""
    lines = NEXT_CHUNK.match(data, at)
    if lines is None:
        return 0, at
    message.wire_bytes += lines.end() - at
    return int(lines.group(1), 16), lines.end()


def cut(data: bytes, left: int) -> tuple[list[bytes], int, int] | None:
    """A segment in which a chunk ends of which `left` bytes are to come: the parts of the body in it, how much is to
    come of the chunk that it ends in (at least 1), and bytes of lines. None where a line is not plain, not whole in it,
    or that of the last chunk; it is read step by step then."""
    at, lines, size = 0, 0, len(data)
    parts: list[bytes] = []
    while left < size - at:
        line = NEXT_CHUNK.match(data, at + left)
        if line is None:
            return None
        parts.append(data[at : at + left])
        at = line.end()
        lines += at - line.start()
        left = int(line.group(1), 16)
    if left == size - at:
        return None
    if at < size:
        parts.append(data[at:])
    return parts, left - (size - at), lines


def none_follow(message: Message, data: bytes, at: int, end: int) -> bool:
    """Whether the first line of an answer's body shows that it is not chunked, though its head sounded like it.

    `end`: where the line ends, -1 where that is not seen yet.
    """
    if message.kind is not RESPONSE or message.wire_bytes > len(message.head):
        return False
    begins = bool(_BEGINS_LIKE_SIZE.match(data, at)) if end < 0 else size_of(data[at:end]) >= 0
    return not begins and hints_chunked(message)


def _size(found: re.Match[bytes] | None) -> int:
    size = int(found.group(1), 16) if found else -1
    return size if size <= _MAX_LENGTH else -1


def strictly(message: Message, strict: bool) -> None:
    if not strict and message.mode is STRICT:
        message.mode = LENIENT
