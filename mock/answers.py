"""Recorded answers, as the mock keeps them: read from a recording, ready to be sent again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from bus.logfile import LogReader
from bus.ports import Bus, BusError, Message
from bus.topic import TopicReader
from wire import codec, topics
from wire.codec import RecordType
from wire.head import Field, field, fields_of, response_head
from wire.records import Exchange, Fault, Mode, Stamped

# RFC 9110 section 7.6.1. Content-Length is made anew for the stored body, Date by the server.
_NOT_SENT = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"}
    | {b"content-length", b"date"}
)
_UNUSABLE_FAULTS = (Fault.GAP, Fault.AMBIGUOUS, Fault.TRUNCATED, Fault.UNFINISHED)
# What `Baseline.body` holds at most (wire/records.py).
_BASELINE_BODY_BYTES = 65_536


class Answer(msgspec.Struct, frozen=True):
    """One recorded request with its answer."""

    request_head: bytes
    request_body: bytes
    status: int
    reason: str
    fields: tuple[tuple[str, str], ...]  # without hop-by-hop fields, Content-Length and Date
    body: bytes
    head_length: str | None  # the Content-Length that an answer to HEAD announced
    latency_ns: int  # to the first byte; 0 = unknown


def messages_of_file(path: Path) -> Iterator[Message]:
    """The messages of a recording in a file. Raises BusError for a file that is no recording."""
    with LogReader(path) as reader:
        while messages := reader.read():
            yield from messages


def messages_on_bus(bus: Bus, name: str) -> Iterator[Message]:
    """What a recording on a bus holds now, of all who recorded it. Closes the bus. Raises BusError where nothing is."""
    reader = TopicReader(bus, topics.RAW)
    try:
        found = False
        while messages := reader.poll():
            found = True
            yield from messages
        if not found:
            raise BusError(f"{name}: no recording of this name on the bus")
    finally:
        reader.close()
        bus.close()


def read_answers(
    messages: Iterable[Message], name: str, servers: frozenset[str], unusable: Counter[str]
) -> Iterator[Answer]:
    """The answers of one recording (topic raw or clean), in its order.

    What cannot be served is counted in `unusable`: other_server, no_answer, informational, opaque, incomplete,
    not_a_batch. Raises BusError for what is no recording; `name` is what it is called there.
    """
    for message in messages:
        try:
            batch = codec.decode(message.data)
        except codec.CodecError:
            unusable["not_a_batch"] += 1
            continue
        if batch.header.type in (RecordType.MANIFEST, RecordType.END, RecordType.ACCOUNT):
            continue
        for record in batch.records:
            if not isinstance(record, Exchange | Stamped):
                raise BusError(f"{name}: holds {type(record).__name__} records, a mock needs exchanges")
            reason = _why_not(record, servers)
            if reason:
                unusable[reason] += 1
            else:
                yield _answer(record)


def _why_not(record: Exchange | Stamped, servers: frozenset[str]) -> str:
    if servers:
        host = (field(record.request.head, b"host") or b"").decode("latin-1").lower()
        if host not in servers and not (isinstance(record, Exchange) and record.server in servers):
            return "other_server"
    status = _status(record)
    if status == 0:
        return "no_answer"
    if status < 200:
        return "informational"
    if record.request.missing_bytes or record.request.truncated_bytes:
        return "incomplete"
    if isinstance(record, Stamped):
        baseline = record.baseline
        cut = len(baseline.body) == _BASELINE_BODY_BYTES and baseline.body_bytes > len(baseline.body)
        absent = not baseline.body and baseline.body_bytes != 0  # a log tells no bodies
        return "incomplete" if cut or absent else ""
    assert record.response is not None
    if record.mode is Mode.OPAQUE:
        return "opaque"
    if record.response.missing_bytes or record.response.truncated_bytes:
        return "incomplete"
    return "incomplete" if any(fault in _UNUSABLE_FAULTS for fault in record.faults) else ""


def _status(record: Exchange | Stamped) -> int:
    if isinstance(record, Stamped):
        return record.baseline.status
    return record.response.status if record.response else 0


def _answer(record: Exchange | Stamped) -> Answer:
    if isinstance(record, Stamped):
        head, body, latency_ns = record.baseline.head, record.baseline.body, record.baseline.latency_ns
    else:
        assert record.response is not None
        head, body = record.response.head, record.response.body
        known = record.request_start_ns and record.response_start_ns
        latency_ns = max(record.response_start_ns - record.request_start_ns, 0) if known else 0
    parts = response_head(head)
    length = field(head, b"content-length") if record.request.head.startswith(b"HEAD ") else None
    return Answer(
        request_head=record.request.head,
        request_body=record.request.body,
        status=_status(record),
        reason=_text(parts.reason.strip()),
        fields=tuple(_sendable(fields_of(head.partition(b"\n")[2]))),
        body=body,
        head_length=_text(length) if length and length.isdigit() else None,
        latency_ns=latency_ns,
    )


def _sendable(fields: list[Field]) -> Iterator[tuple[str, str]]:
    # A field that Connection names is hop-by-hop too.
    named = {
        word.strip().lower() for name, value in fields if name.lower() == b"connection" for word in value.split(b",")
    }
    for name, value in fields:
        if name.lower() not in _NOT_SENT and name.lower() not in named:
            yield _text(name), _text(value)


def _text(raw: bytes) -> str:
    # A control character would end the field, or make the server refuse to send it.
    return "".join(c for c in raw.decode("utf-8", "replace") if c >= " " and c != "\x7f")
