"""The lines of a chunked body (RFC 9112 section 7.1): what is read, and what of it is strict."""

from __future__ import annotations

import re
from typing import Final

from capture.message import LENIENT, STRICT, Message

_CHUNK_SIZE: Final = re.compile(rb"[ \t]*([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\n]*)?\r?\Z")
_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_QUOTED: Final = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
#: RFC 9112 section 7.1.1. What it is not is read all the same, and lenient.
STRICT_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]+(?:;" + _TOKEN + rb"(?:=(?:" + _TOKEN + rb"|" + _QUOTED + rb"))?)*\r\Z")
STRICT_TRAILER = re.compile(_TOKEN + rb":[\t -~\x80-\xff]*\r\Z")
_MAX_LENGTH: Final = 1 << 62


def size_of(line: bytes) -> int:
    """What the line before a chunk says of its size, however leniently; -1 where nothing can be told."""
    found = _CHUNK_SIZE.match(line)
    size = int(found.group(1), 16) if found else -1
    return size if size <= _MAX_LENGTH else -1


def strictly(message: Message, strict: bool) -> None:
    if not strict and message.mode is STRICT:
        message.mode = LENIENT
