"""HTTP/1 messages: what is known of one, and of one with its answer, and how its head is told.

A head that llhttp takes is strict. One that it does not take is lenient, if its start line can be told: sender
and receiver may well have understood each other.
"""

from __future__ import annotations

import re
from enum import IntEnum
from typing import Final, Protocol

import httptools

from wire.records import Framing, Mode

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"  # RFC 9110 section 5.6.2
_METHOD = re.compile(rb"(" + _TOKEN + rb"{1,64})[ \t]+\S")
#: In two steps: as one, a line of blanks would be tried from each of them.
_VERSION_AT_END = re.compile(rb"[ \t]HTTP/1\.\d[.\d]{0,8}[ \t]*\r*\n\Z")
_LONGEST_VERSION: Final = 64
#: More digits, or a NUL behind them, are none of the status to readers in use, which take any of these versions.
_STATUS_LINE = re.compile(rb"HTTP/(?:0\.9|1\.\d{1,2}|2\.0)[ \t]+([1-9]\d\d)(?=[ \t\r\n\0\d])[^\r\n]*\r*(?:\n|\Z)")
_VERSION_BEGINS = re.compile(rb"H(?:T(?:T(?:P(?:/(?:\d(?:\.)?)?)?)?)?)?\Z")
#: A request line that is not all there yet.
_REQUEST_PREFIX = re.compile(_TOKEN + rb"{1,32}(?:[ \t]+(?:\S[^\r\n]*)?)?\r?\Z")
_METHOD_PREFIX = re.compile(_TOKEN + rb"{1,32} [^\r]*\Z")
_SPACE_AND_CONTROLS: Final = bytes(range(33)) + b"\x7f"  # parsers in use ignore them around a coding
#: A field that frames the body, written so that one reader takes it and another does not: a blank before the colon, a
#: control character or a bare CR in the value (RFC 9110 section 5.5), a line that is folded, a line that ends with CR
#: alone; or a line of CRs, with which the head may end.
_DOUBTFUL_FIELD = re.compile(
    rb"[\r\n](?:content-length|transfer-encoding)"
    rb"(?:[\0-\x20]+:|:[^\n]*(?:\n[ \t]|[\0-\x08\x0b\x0c\x0e-\x1f\x7f]|\r[^\n]))"
    rb"|\r(?:content-length|transfer-encoding)|\n\r+\r\n"
)
#: Codings of a transfer (RFC 9112 section 7), but for chunked.
_OTHER_CODINGS: Final = (b"identity", b"gzip", b"x-gzip", b"compress", b"x-compress", b"deflate")
_CHUNKED_AND_MORE = re.compile(rb"chunked(?![0-9a-z_-])")
_NOBODY: Final = object()
_ABSENT: Final[list[bytes]] = []


class Kind(IntEnum):
    UNKNOWN = 0
    REQUEST = 1
    RESPONSE = 2


# Names of their own: on Python 3.11 looking a member up on its enumeration costs 200 ns, some 40 times an exchange.
UNKNOWN: Final = Kind.UNKNOWN
REQUEST: Final = Kind.REQUEST
RESPONSE: Final = Kind.RESPONSE
NONE: Final = Framing.NONE
LENGTH: Final = Framing.LENGTH
CHUNKED: Final = Framing.CHUNKED
CLOSE: Final = Framing.CLOSE
STRICT: Final = Mode.STRICT
LENIENT: Final = Mode.LENIENT
OPAQUE: Final = Mode.OPAQUE


class Message:
    """A message that is being read, or has been. Offsets are the stream's. Of equal fields, two are still two."""

    __slots__ = (
        "ack", "ambiguous", "block", "body_bytes", "complete", "end_ns", "end_offset", "framing", "gap", "head",
        "kept_bytes", "kind", "low", "method", "missing_bytes", "mode", "parts", "start_ns", "start_offset", "status",
        "trailers", "wire_bytes",
    )  # fmt: skip

    def __init__(
        self,
        kind: Kind,
        head: bytes,
        start_offset: int,
        start_ns: int,
        ack: int,  # how much of the other direction its sender had received when it began
        mode: Mode,
        end_offset: int,
        end_ns: int,
        wire_bytes: int,
        method: bytes = b"",  # of a request
        status: int = 0,  # of a response
        low: bytes = b"",  # the head in lower case, or only the end of it from the newline before the first field on
        block: bytes = b"",  # the head as it is from that newline on, where it is at hand
        framing: Framing = NONE,
        body_bytes: int = 0,
        kept_bytes: int = 0,
        complete: bool = False,
    ) -> None:
        self.kind = kind
        self.head = head
        self.start_offset = start_offset
        self.start_ns = start_ns
        self.ack = ack
        self.mode = mode
        self.end_offset = end_offset
        self.end_ns = end_ns
        self.wire_bytes = wire_bytes
        self.method = method
        self.status = status
        self.low = low
        self.block = block
        self.framing = framing
        self.body_bytes = body_bytes
        self.kept_bytes = kept_bytes
        self.complete = complete
        self.missing_bytes = 0
        self.trailers = b""
        self.gap = False
        self.ambiguous = False
        self.parts: list[bytes] = []


class Pair:
    """A request, what has been seen of its answer, and the answers before the answer."""

    __slots__ = ("after_loss", "aside", "behind_loss", "behind_one", "interim", "request", "response", "shed", "unseen")

    def __init__(
        self,
        request: Message | None,
        aside: bool = False,  # an answer that may be to one of several requests
        behind_loss: bool = False,  # requests directly before it were lost
        after_loss: bool = False,  # and it was sent before anything was received that may have answered them
        behind_one: bool = False,  # and one of them whole, for certain
        unseen: bool = False,  # its request was not seen, and so it is not known whether it has a body
    ) -> None:
        self.request = request
        self.response: Message | None = None
        self.interim: list[Message] = []
        self.shed = False  # there was no memory for it: it is read to its end, and dropped
        self.aside = aside
        self.behind_loss = behind_loss
        self.behind_one = behind_one
        self.after_loss = after_loss
        self.unseen = unseen

    def take(self, answer: Pair) -> None:
        """What was read apart is its answer."""
        self.response, self.shed = answer.response, self.shed or answer.shed
        self.interim = [*self.interim, *answer.interim]  # some may have come before


class PairSink(Protocol):
    def head(self) -> None:
        """One more message was recognised."""

    def pair(self, pair: Pair) -> None:
        """A request and its answer are over. `request` is None for an answer to nothing that was seen."""

    def junk(self, reason: str, count: int) -> None:
        """Bytes that belong to no message."""

    def keep(self, pair: Pair | None, count: int) -> bool:
        """Whether `count` more body bytes of this pair may be kept."""


def _begun(kind: Kind, head: bytes, offset: int, ts_ns: int, ack: int, mode: Mode) -> Message:
    return Message(kind, head, offset, ts_ns, ack, mode, offset, ts_ns, len(head))


def values_of(low_head: bytes, name: bytes) -> list[bytes]:
    """The values of a field in a head in lower case. `name` begins with the end of the line before."""
    at = low_head.find(name)
    if at < 0:
        return _ABSENT
    found: list[bytes] = []
    while at >= 0:
        start = at + len(name)
        end = low_head.find(b"\n", start)
        line = low_head[start : end if end >= 0 else len(low_head)].lstrip(b" \t")
        if line[:1] == b":":
            found.append(line[1:].strip())
        at = low_head.find(name, start)
    return found


def is_strict(kind: Kind, head: bytes) -> bool:
    """Whether llhttp takes it."""
    parser = httptools.HttpRequestParser(_NOBODY) if kind is REQUEST else httptools.HttpResponseParser(_NOBODY)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        return True
    except httptools.HttpParserError:
        return False
    return True


def message_of(kind: Kind, head: bytes, offset: int, ts_ns: int, ack: int) -> Message | None:
    """The message that a whole head begins, or None when it is no HTTP/1. An unknown kind is told by the start line."""
    if kind is UNKNOWN:
        kind = RESPONSE if head.startswith(b"HTTP/") else REQUEST
    strict = is_strict(kind, head)
    if kind is REQUEST:
        line = head[: head.index(b"\n") + 1]
        if strict and b" HTTP/1." in line:
            message = _begun(kind, head, offset, ts_ns, ack, STRICT)
            message.method = line[: line.index(b" ")]
            return message
        method = _method_of(line)
        if not method or method == b"PRI":
            return None
        message = _begun(kind, head, offset, ts_ns, ack, LENIENT)
        message.method = method
        return message
    status = _STATUS_LINE.match(head)
    if not status:
        return None
    message = _begun(kind, head, offset, ts_ns, ack, STRICT if strict else LENIENT)
    message.status = int(status.group(1))
    return message


def _method_of(line: bytes) -> bytes:
    """The method of a request line, its end with it; empty where it is none."""
    found = _METHOD.match(line)
    at = line.rfind(b"HTTP/1.", max(0, len(line) - _LONGEST_VERSION))
    if found is None or at < found.end() or not _VERSION_AT_END.match(line, at - 1) or b"\r" in line[:at]:
        return b""
    return found.group(1)


def promising(kind: Kind, data: bytes, at: int) -> bool:
    """Whether the bytes from `at` on, which hold no whole head, may be the beginning of one."""
    line_end = data.find(b"\n", at)
    if kind is not REQUEST:
        if _VERSION_BEGINS.match(data[at : at + 7]):
            return line_end < 0 or bool(_STATUS_LINE.match(data, at))
        if kind is RESPONSE:
            return False
    if line_end < 0:
        if len(data) - at < 64:
            return bool(_REQUEST_PREFIX.match(data, at))
        return bool(_METHOD_PREFIX.match(data, at)) or bool(_REQUEST_PREFIX.match(data, at))
    return bool(_method_of(data[at : line_end + 1]))


def frame(message: Message) -> int:
    """Set how the body ends, as far as the head alone can tell (RFC 9112 section 6.3); its length, if it has one."""
    low = message.low = message.head.lower()
    codings = values_of(low, b"\ntransfer-encoding")
    lengths = values_of(low, b"\ncontent-length")
    if message.mode is LENIENT and _DOUBTFUL_FIELD.search(low):
        message.ambiguous = True
    length = 0
    if len(lengths) == 1 and lengths[0].isdigit() and len(lengths[0]) <= 18:
        length = int(lengths[0])
    elif lengths:
        numbers = {part.strip() for value in lengths for part in value.split(b",")}
        number = next(iter(numbers))
        if number.isdigit() and len(number) > 18:  # zeros in front, as which some readers take for too much
            message.ambiguous = True
            number = number.lstrip(b"0").rjust(1, b"0")
        if len(numbers) > 1 or not number.isdigit() or len(number) > 18:
            message.ambiguous = True
            message.mode = OPAQUE
            number = lengths[0].split(b",")[0].strip()
        length = int(number) if number.isdigit() and len(number) <= 18 else -1
    request = message.kind is REQUEST
    if codings:
        message.ambiguous = message.ambiguous or bool(lengths)
        names = _names(codings if request or message.mode is STRICT else _codings(message))
        last = names[-1]
        doubtful = names.count(b"chunked") > 1 or (len(names) > 1 and last != b"chunked")
        if request and (doubtful or b"HTTP/1.0" in message.head[: message.head.find(b"\n")]):
            message.ambiguous = True  # RFC 9112 sections 6.1 and 7.1: faulty, and read in different ways
        if last == b"chunked":
            message.framing = CHUNKED
        elif not request and hints_chunked(message):
            message.framing = CHUNKED  # unless the body shows that it is not
            message.ambiguous = True
            message.mode = LENIENT if message.mode is STRICT else message.mode
        else:
            message.framing = NONE if request else CLOSE
            message.ambiguous = message.ambiguous or last != b"identity"
            message.mode = OPAQUE if request else message.mode
        return 0
    if lengths and length >= 0:
        message.framing = LENGTH
        return length
    if not request:
        message.framing = CLOSE
    return 0


def _names(codings: list[bytes]) -> list[bytes]:
    return [name.strip(_SPACE_AND_CONTROLS) for name in b",".join(codings).split(b",")]


def _codings(message: Message) -> list[bytes]:
    """The values of Transfer-Encoding, those that go on in a next line in full (RFC 9112 section 5.2)."""
    if message.mode is STRICT:
        return values_of(message.low, b"\ntransfer-encoding")
    lines: list[bytes] = []
    for line in message.low.split(b"\n"):
        if line[:1] in (b" ", b"\t") and lines and b":" in lines[-1]:
            lines[-1] = lines[-1].rstrip() + b" " + line.strip()
        else:
            lines.append(line)
    return values_of(b"\n".join(lines), b"\ntransfer-encoding")


def hints_chunked(message: Message) -> bool:
    """Whether chunked is named, but not last or not alone, and what is last is no coding: some readers take it so."""
    names = _names(_codings(message))
    return (
        names[-1] != b"chunked"
        and names[-1] not in _OTHER_CODINGS
        and any(_CHUNKED_AND_MORE.match(name) for name in names)
    )
