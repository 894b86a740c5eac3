"""A pair of messages as the record that travels."""

from __future__ import annotations

from typing import Protocol

from capture.connection import Connection
from capture.message import LENIENT, OPAQUE, REQUEST, RESPONSE, STRICT, Message, Pair
from capture.reassemble import Stream
from capture.session import SessionFinder
from capture.side import Side
from wire.ids import ExchangeIds, connection_id
from wire.records import Exchange, Fault, Mode, Request, Response

_ORPHAN_OFFSET = 1 << 63  # an answer without a request has its place in the server's stream
_NO_FAULTS: tuple[Fault, ...] = ()
_RANK = {STRICT: 0, LENIENT: 1, OPAQUE: 2}


class Masker(Protocol):
    """What must not be written is taken out here; see `mask`."""

    @property
    def counts(self) -> dict[str, int]:
        """What was masked, by kind, so far."""

    def exchange(self, e: Exchange, asked: bytes = b"", answered: bytes = b"") -> Exchange: ...

    def message(self, head: bytes, block: bytes, body: bytes) -> tuple[bytes, bytes]: ...


class ExchangeMaker:
    """Makes the exchanges of one recording."""

    def __init__(self, recording_id: str, sessions: SessionFinder, host: str) -> None:
        self._recording_id = recording_id
        self._sessions = sessions
        self._host = host
        self.clock_offset_ns = 0  # added to all times: what the bus's clock is ahead of this machine's

    def _identified(self, connection: Connection, client: str, server: str) -> ExchangeIds:
        connection.id = connection_id(self._recording_id, client, server, connection.link, connection.first_seq)
        ids = connection.exchange_ids = ExchangeIds(connection.id)
        return ids

    def session(self, connection: Connection, pair: Pair) -> bytes:
        """The session that `exchange` is going to name."""
        request = pair.request
        first, second = connection.sides
        if second.reader.kind is REQUEST or (request is None and first.reader.kind is RESPONSE):
            first, second = second, first
        if connection.exchange_ids is None:
            self._identified(connection, first.address, second.address)
        if request is None:
            return self._sessions.of(b"", b"", first.address, connection.id)
        low = request.low
        if low is not connection.session_low or not low:
            connection.session = self._sessions.of(request.head, low, first.address, connection.id)
            connection.session_low = low
        return connection.session

    def exchange(self, connection: Connection, pair: Pair) -> Exchange:
        request, response = pair.request, pair.response
        first, second = connection.sides
        if second.reader.kind is REQUEST or (request is None and first.reader.kind is RESPONSE):
            first, second = second, first
        ids = connection.exchange_ids
        if ids is None:
            ids = self._identified(connection, first.address, second.address)
        if request is not None:
            offset = request.start_offset
            low = request.low
            sent = Request(
                request.head,
                b"".join(request.parts) if request.parts else b"",
                request.body_bytes,
                request.framing,
                request.missing_bytes,
                request.body_bytes - request.kept_bytes,
                request.trailers,
            )
            if low is connection.session_low and low:
                session = connection.session
            else:
                session = self._sessions.of(request.head, low, first.address, connection.id)
                connection.session, connection.session_low = session, low
        else:
            offset = _ORPHAN_OFFSET + (response.start_offset if response is not None else 0)
            sent = Request(b"")
            session = self._sessions.of(b"", b"", first.address, connection.id)
        got = None
        if response is not None:
            parts = response.parts
            got = Response(
                response.status,
                response.head,
                parts[0] if len(parts) == 1 else b"".join(parts),
                response.body_bytes,
                response.framing,
                response.missing_bytes,
                response.body_bytes - response.kept_bytes,
                response.trailers,
                tuple(message.head for message in pair.interim) if pair.interim else (),
            )
        ahead = self.clock_offset_ns
        mode, faults = STRICT, _NO_FAULTS
        if (
            request is None
            or response is None
            or not (request.complete and response.complete)
            or request.mode is not STRICT
            or response.mode is not STRICT
            or (request.gap or response.gap or connection.midstream or request.ambiguous or response.ambiguous)
            or (first.stream.conflicts or second.stream.conflicts)
            or request.body_bytes != request.kept_bytes
            or response.body_bytes != response.kept_bytes
            or response.start_ns < request.end_ns
            or 0 <= response.ack < request.end_offset
        ):
            mode = _mode(request, response)
            faults = _faults(
                request, response, connection.midstream, first.stream, second.stream, connection.requests_only
            )
        return Exchange(
            ids.at(offset),
            session,
            connection.id,
            first.address,
            second.address,
            sent,
            got,
            request.start_ns + ahead if request is not None else 0,
            request.end_ns + ahead if request is not None else 0,
            response.start_ns + ahead if response is not None else 0,
            response.end_ns + ahead if response is not None else 0,
            mode,
            first.interface or second.interface or "",
            "http/1",
            faults,
            self._host,
        )

    def plain(
        self,
        connection: Connection,
        asker: Side,
        answerer: Side,
        request: Message,
        response: Message,
        masker: Masker | None,
    ) -> Exchange:
        """The same, masked, of two messages that are whole and strict, kept whole, and in their order."""
        ids = connection.exchange_ids
        if ids is None:
            ids = self._identified(connection, asker.address, answerer.address)
        low = request.low
        if low is connection.session_low and low:
            session = connection.session
        else:
            session = self._sessions.of(request.head, low, asker.address, connection.id)
            connection.session, connection.session_low = session, low
        head, body = request.head, b"".join(request.parts)
        parts = response.parts
        answer, content = response.head, parts[0] if len(parts) == 1 else b"".join(parts)
        if masker is not None:
            head, body = masker.message(head, request.block, body)
            answer, content = masker.message(answer, response.block, content)
        ahead = self.clock_offset_ns
        return Exchange(
            ids.at(request.start_offset),
            session,
            connection.id,
            asker.address,
            answerer.address,
            Request(head, body, request.body_bytes, request.framing),
            Response(response.status, answer, content, response.body_bytes, response.framing),
            request.start_ns + ahead,
            request.end_ns + ahead,
            response.start_ns + ahead,
            response.end_ns + ahead,
            STRICT,
            asker.interface or answerer.interface or "",
            "http/1",
            _NO_FAULTS,
            self._host,
        )


def _mode(request: Message | None, response: Message | None) -> Mode:
    """The worse of both."""
    mode = request.mode if request is not None else STRICT
    if response is not None and response.mode is not mode and _RANK[response.mode] > _RANK[mode]:
        return response.mode
    return mode


def _faults(
    request: Message | None,
    response: Message | None,
    midstream: bool,
    client: Stream,
    server: Stream,
    requests_only: bool,
) -> tuple[Fault, ...]:
    faults: list[Fault] = []
    if (request is not None and request.gap) or (response is not None and response.gap):
        faults.append(Fault.GAP)
    if midstream:
        faults.append(Fault.MIDSTREAM)
    answered = response is not None and response.complete
    if request is None or not request.complete or not (answered or requests_only):
        faults.append(Fault.UNFINISHED)
    if _ambiguous(request, client) or _ambiguous(response, server):
        faults.append(Fault.AMBIGUOUS)
    if _cut(request) or _cut(response):
        faults.append(Fault.TRUNCATED)
    if request is not None and response is not None and _overlap(request, response):
        faults.append(Fault.LATE)
    return tuple(faults)


def _overlap(request: Message, response: Message) -> bool:
    return response.start_ns < request.end_ns or 0 <= response.ack < request.end_offset


def _ambiguous(message: Message | None, stream: Stream) -> bool:
    if message is None:
        return False
    return message.ambiguous or (
        bool(stream.conflicts) and stream.conflicting(message.start_offset, message.end_offset)
    )


def _cut(message: Message | None) -> bool:
    return message is not None and message.body_bytes > message.kept_bytes
