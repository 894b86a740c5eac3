"""A pair of messages as the record that travels."""

from __future__ import annotations

from capture.message import LENIENT, OPAQUE, STRICT, Message
from capture.pair import Pair
from capture.reassemble import Stream
from wire.ids import exchange_id
from wire.records import Exchange, Fault, Request, Response

_ORPHAN_OFFSET = 1 << 63  # an answer without a request has its place in the server's stream
_RANK = {STRICT: 0, LENIENT: 1, OPAQUE: 2}


def exchange_of(
    pair: Pair,
    *,
    session: bytes,
    connection: bytes,
    client: str,
    server: str,
    client_stream: Stream,
    server_stream: Stream,
    midstream: bool,
    interface: str,
    host: str,
) -> Exchange:
    request, response = pair.request, pair.response
    faults: list[Fault] = []
    if (request is not None and request.gap) or (response is not None and response.gap):
        faults.append(Fault.GAP)
    if midstream:
        faults.append(Fault.MIDSTREAM)
    if request is None or not request.complete or response is None or not response.complete:
        faults.append(Fault.UNFINISHED)
    if _ambiguous(request, client_stream) or _ambiguous(response, server_stream):
        faults.append(Fault.AMBIGUOUS)
    if _cut(request) or _cut(response):
        faults.append(Fault.TRUNCATED)
    mode = request.mode if request is not None else STRICT
    if response is not None:
        if response.mode is not mode and _RANK[response.mode] > _RANK[mode]:
            mode = response.mode
        if request is not None and (response.start_ns < request.end_ns or 0 <= response.ack < request.end_offset):
            faults.append(Fault.LATE)
    if request is not None:
        offset = request.start_offset
        sent = Request(
            request.head, b"".join(request.parts), request.body_bytes, request.framing, request.missing_bytes,
            request.body_bytes - request.kept_bytes, request.trailers,
        )  # fmt: skip
    else:
        offset = _ORPHAN_OFFSET + (response.start_offset if response is not None else 0)
        sent = Request(b"")
    got = None
    if response is not None:
        got = Response(
            response.status, response.head, b"".join(response.parts), response.body_bytes, response.framing,
            response.missing_bytes, response.body_bytes - response.kept_bytes, response.trailers,
            tuple(message.head for message in pair.interim),
        )  # fmt: skip
    return Exchange(
        exchange_id(connection, offset),
        session,
        connection,
        client,
        server,
        sent,
        got,
        request.start_ns if request is not None else 0,
        request.end_ns if request is not None else 0,
        response.start_ns if response is not None else 0,
        response.end_ns if response is not None else 0,
        mode,
        interface,
        "http/1",
        tuple(faults),
        host,
    )


def _ambiguous(message: Message | None, stream: Stream) -> bool:
    if message is None:
        return False
    return message.ambiguous or (
        bool(stream.conflicts) and stream.conflicting(message.start_offset, message.end_offset)
    )


def _cut(message: Message | None) -> bool:
    return message is not None and message.body_bytes > message.kept_bytes
