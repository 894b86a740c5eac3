"""GoReplay's files: `.gor`, of every version, plain or gzipped, in one piece or in chunks `_0`, `_1` ...; and what its
messages in Kafka share with them: the header line, and how halves find each other.

A record is `<type> <id> <ts_ns> [<latency_ns>]`, a newline, the raw HTTP message, and behind it a line of three
monkeys, which the last one may lack. Type 1 is a request, 2 the answer that production gave, 3 one to a replayed
request. Ids are not unique: of several with one id, an answer goes with the latest request before it.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from capture.assembler import Assembler
from capture.lines import Input

REQUEST, ANSWER, REPLAYED = 1, 2, 3
SEPARATOR: Final = b"\n\xf0\x9f\x90\xb5\xf0\x9f\x99\x88\xf0\x9f\x99\x89\n"
_MAX_WAITING_BYTES: Final = 512 << 20
_MAX_RECORD: Final = 128 << 20
_SERVER: Final = "0.0.0.0:0"  # what the messages do not tell
_SINCE_1973: Final = 10**17  # ns: a time, not a latency
_HEADER: Final = re.compile(rb"[123] [0-9A-Za-z_-]+ \d+(?: \d+)?(?: \d+)?(?:\r?\n|\Z)")
_CUT_HEADER: Final = re.compile(rb"(?:[123](?: [0-9A-Za-z_-]*(?: \d*){0,3})?)?\r?\Z")
_MAX_HEADER: Final = 256
_MAX_START: Final = 256 << 10  # of a record, in which the end of its head is looked for
_HEAD: Final = re.compile(rb"1 ([^ \n]+) [^\n]*\n[\r\n]*HEAD ")
_MAX_HEADS: Final = 1024
_BEGIN: Final = re.compile(rb"[\r\n]*")  # blank lines before a start line are none of its head's (RFC 9112 section 2.2)
_BLANK: Final = re.compile(rb"\n\r?\n")  # also after lines that end in LF alone, as the reader of messages takes it
_BODILESS: Final = re.compile(rb"HTTP/\S+[ \t]+(?:1\d\d|204|304)\b")
_LENGTH: Final = re.compile(rb"\ncontent-length[ \t]*:[ \t]*(\d{1,12})[ \t]*\r?\n", re.IGNORECASE)
_CHUNK: Final = re.compile(r"(.*_)(\d+)((?:\.[A-Za-z]\w*)*)\Z")


class Part(NamedTuple):
    """One message: half of an exchange."""

    kind: int  # 1 request, 2 answer, 3 answer to a replayed request
    id: bytes
    ts_ns: int
    payload: bytes  # raw HTTP; empty: an answer whose status was not kept


class Unreadable(Exception):
    """A message that is none of GoReplay's. The text says why."""


def decode(value: bytes) -> Part:
    """One record: header line and payload. Raises Unreadable."""
    line, newline, payload = value.partition(b"\n")
    words = line.split()
    if not newline or not 3 <= len(words) <= 5:
        raise Unreadable("its first line is not: type id time [latency]")
    at = number_of(words[2])
    if len(words) > 3 and at < _SINCE_1973 <= (other := number_of(words[3])):
        at = other  # one version had time and latency the other way round
    return Part(kind_of(words[0]), words[1], at, payload)


_plain = decode


def kind_of(word: bytes | str | int) -> int:
    if (kind := number_of(word)) not in (REQUEST, ANSWER, REPLAYED):
        raise Unreadable(f"type {kind} is not 1, 2 or 3")
    return kind


def number_of(word: bytes | str | int) -> int:
    try:
        number = int(word)
    except ValueError:
        raise Unreadable("a field of its first line is not a number") from None
    if abs(number) >> 63:
        raise Unreadable("a number of more than 63 bits")
    return number


def is_gor(start: bytes) -> bool:
    """Whether a file begins like one of GoReplay's."""
    return _HEADER.match(start) is not None


def in_order(paths: Sequence[Path | str]) -> list[Path | str]:
    """Chunks of one file (`x_2.gor`, `x_10.gor`) by their number; other files stay where they are."""
    found = [_CHUNK.match(str(path)) for path in paths]
    if not all(found) or len({(m[1], m[3]) for m in found if m}) != 1:
        return list(paths)
    return sorted(paths, key=lambda path: int(_CHUNK.match(str(path))[2]))  # type: ignore[index]


def records(file: Input) -> Iterator[bytes]:
    """The records of a file, without separators; b"" stands for one that is longer than a record can be.

    A separator counts where a header line or the end of the file comes behind it. Inside a body even such a one does
    not, if Content-Length tells that the body goes on, to just before another one. What stands behind the first one
    that counts says nothing of the record before it, which may lack the end of its head.
    """
    buffer, first, look = b"", 0, 0  # where the record begins; where its separator is looked for
    base = count = 0  # where in the file the buffer begins; how many records came before
    ended = over = False
    heads: deque[bytes] = deque(maxlen=_MAX_HEADS)  # ids of requests whose answers tell lengths of bodies they lack
    while True:
        near = _separator(buffer, look, ended)
        at = near if over or near < 0 else _behind_body(buffer, first, near, ended, heads)
        if at >= 0:
            if not over:
                yield buffer[first:at]
                count += 1
                if match := _HEAD.match(buffer, first):
                    heads.append(match[1])
            first = look = min(at + len(SEPARATOR), len(buffer))
            over = False
            continue
        if ended:
            break
        look = near if near >= 0 else max(look, len(buffer) - len(SEPARATOR) - _MAX_HEADER)
        if near < 0 and len(buffer) - first > _MAX_RECORD:
            if not over:
                yield b""
                count += 1
            over, first = True, look
        chunk = file.read(1 << 20)
        ended = not chunk
        buffer, base = buffer[first:] + chunk, base + first
        look, first = look - first, 0
    if not over and (rest := _without_separator(buffer[first:])).strip():
        if why := _cut(rest):
            file.cut = True
            file.said.append(
                f"{file.name}: is cut off in record {count + 1}, which begins at byte {base + first}: {why}"
            )
        yield rest


def _without_separator(rest: bytes) -> bytes:
    """The last record, behind which a file may end in its separator: what is there of it is of no body, unless
    Content-Length says so."""
    for size in range(len(SEPARATOR), 1, -1):
        if rest.endswith(SEPARATOR[:size]):
            return rest if _body_end(rest, 0, len(rest)) > len(rest) - size else rest[:-size]
    return rest


def _separator(buffer: bytes, look: int, ended: bool) -> int:
    """Where the first separator from `look` on is that counts by what is behind it; -1 where there is none yet."""
    at = buffer.find(SEPARATOR, look)
    while at >= 0 and not _counts(buffer, at + len(SEPARATOR), ended):
        at = buffer.find(SEPARATOR, at + len(SEPARATOR) - 1)  # one may begin with the newline of the one before it
    return at


def _counts(buffer: bytes, behind: int, ended: bool) -> bool:
    """Whether a record begins at `behind`, or the file ends there, or in that record's header line."""
    if len(buffer) - behind >= _MAX_HEADER or (not ended and b"\n" in buffer[behind:]):
        return _HEADER.match(buffer, behind) is not None
    return ended and (_HEADER.match(buffer, behind) or _CUT_HEADER.match(buffer, behind)) is not None


def _behind_body(buffer: bytes, first: int, near: int, ended: bool, heads: Container[bytes]) -> int:
    """Where the record at `first` ends: at `near`, the first separator that counts, or where Content-Length tells,
    beyond it; -1 where more of the file is needed to tell."""
    end = _body_end(buffer, first, near)
    if not near < end < first + _MAX_RECORD:
        return near
    kind, *more = buffer[first : first + _MAX_HEADER].split(b" ", 2)
    if kind != b"1" and more and more[0] in heads:
        return near
    behind = end + len(SEPARATOR)
    if ended and near + len(SEPARATOR) < end <= len(buffer) < behind and SEPARATOR.startswith(buffer[end:]):
        return end  # the last record, which may lack its separator
    if buffer.startswith(SEPARATOR, end) and _counts(buffer, behind, ended):
        return end
    return near if ended or len(buffer) >= behind + _MAX_HEADER else -1


def _cut(record: bytes) -> str:
    """Why the last record, behind which there may be no separator, is not whole; "" when it is or nothing says so."""
    if not _HEADER.match(record) or b"\n" not in record:
        return "its first line is not whole" if len(record) < _MAX_HEADER else ""
    if not _BLANK.search(record, record.find(b"\n") + 1):
        head = record.partition(b"\n")[2]
        return "its head is not whole" if head or record[:1] != b"2" else ""
    lacks = _body_end(record, 0, len(record)) - len(record)
    return f"its body lacks {lacks} bytes" if lacks > 0 else ""


def _body_end(buffer: bytes, first: int, most: int) -> int:
    """Where Content-Length says that the record at `first` ends, whose head ends before `most`; -1 where it does not
    say, or where the answer is one that has no body."""
    line = buffer.find(b"\n", first, min(most, first + _MAX_HEADER))
    head = _BEGIN.match(buffer, line + 1, most).end() if line >= 0 else -1  # type: ignore[union-attr]
    blank = _BLANK.search(buffer, head, min(most, head + _MAX_START)) if line >= 0 else None
    match = _LENGTH.search(buffer, head, blank.end()) if blank is not None else None
    if blank is None or match is None or _BODILESS.match(buffer, head):
        return -1
    return blank.end() + int(match[1])


class Pairs:
    """Puts requests and answers together, in whatever order they come. Bounded: beyond it the oldest go alone."""

    def __init__(self, max_bytes: int = _MAX_WAITING_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._waiting: dict[tuple[bytes, int], list[Part]] = {}
        self._order: deque[Part] = deque()
        self._gone: set[int] = set()  # of those in the order, by identity: already paired

    def add(self, part: Part) -> Iterator[tuple[Part | None, Part | None]]:
        """What is complete with it: (request, answer); one of them is None for what had to go alone."""
        other = self._match(part)
        if other is not None:
            yield (part, other) if part.kind == REQUEST else (other, part)
            return
        self._waiting.setdefault((part.id, part.kind), []).append(part)
        self._order.append(part)
        self._bytes += len(part.payload) + 200
        while self._bytes > self._max_bytes and (alone := self._oldest()) is not None:
            yield alone

    def rest(self) -> Iterator[tuple[Part | None, Part | None]]:
        """What has found nothing, in the order in which it came."""
        while (alone := self._oldest()) is not None:
            yield alone

    def _match(self, part: Part) -> Part | None:
        key = (part.id, ANSWER if part.kind == REQUEST else REQUEST)
        fit = [
            other
            for other in self._waiting.get(key, ())
            if (other.ts_ns >= part.ts_ns if part.kind == REQUEST else other.ts_ns <= part.ts_ns)
        ]
        if not fit:
            return None
        found = min(fit, key=lambda other: abs(other.ts_ns - part.ts_ns))
        self._take(key, found)
        self._gone.add(id(found))
        return found

    def _take(self, key: tuple[bytes, int], part: Part) -> None:
        waiting = self._waiting[key]
        del waiting[next(n for n, other in enumerate(waiting) if other is part)]
        if not waiting:
            del self._waiting[key]
        self._bytes -= len(part.payload) + 200

    def _oldest(self) -> tuple[Part | None, Part | None] | None:
        while self._order:
            part = self._order.popleft()
            if id(part) in self._gone:
                self._gone.discard(id(part))
                continue
            self._take((part.id, part.kind), part)
            return (part, None) if part.kind == REQUEST else (None, part)
        return None


def feed(values: Iterable[bytes], assembler: Assembler, decode: Callable[[bytes], Part] = decode) -> Iterator[int]:
    """Hand all messages to the assembler, each pair as a connection of its own; how many so far, after each.

    The account's ledger `goreplay` counts messages: emitted, `unreadable`, `too_large`, `replayed` (type 3,
    not wanted), `unpaired_answer`, `no_status` (JSON answers of which GoReplay kept none).
    """
    pairs, connections = Pairs(), 0
    ledger = assembler.account.ledger("goreplay")

    def hand_on(request: Part | None, answer: Part | None) -> None:
        nonlocal connections
        ledger.in_flight -= (request is not None) + (answer is not None)
        if request is None:
            ledger.drop("unpaired_answer")
            return
        connections += 1
        channel = assembler.connection_opened(f"0.0.0.0:{connections % 65535 + 1}", _SERVER, request.ts_ns)
        channel.data(True, request.payload, request.ts_ns)
        channel.closed(True, request.ts_ns)
        end_ns = request.ts_ns
        ledger.emitted += 1
        if answer is not None and answer.payload:
            end_ns = answer.ts_ns
            channel.data(False, answer.payload, end_ns)
            ledger.emitted += 1
        elif answer is not None:
            ledger.drop("no_status")
        channel.closed(False, end_ns)

    for count, value in enumerate(values, 1):
        ledger.seen += 1
        if not value and decode is _plain:
            ledger.drop("too_large")
            yield count
            continue
        try:
            part = decode(value)
        except Unreadable:
            ledger.drop("unreadable")
        else:
            if part.kind == REPLAYED:
                ledger.drop("replayed", intentional=True)
            else:
                ledger.in_flight += 1
                for pair in pairs.add(part):
                    hand_on(*pair)
        if not count % 512:
            assembler.expire(assembler.now_ns)
        yield count
    for pair in pairs.rest():
        hand_on(*pair)
