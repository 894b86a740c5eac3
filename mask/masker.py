"""Masks exchanges, before they are written anywhere."""

from __future__ import annotations

import msgspec

from mask.bodies import Bodies
from mask.heads import Heads
from mask.settings import MaskSettings
from mask.values import Values
from wire import head as heads
from wire.records import Exchange, Fault, Mode, Request, Response


class Masker:
    """One thread's masker. Its memory is bounded: some thousands of recent lines, values and tokens."""

    def __init__(self, key: bytes, settings: MaskSettings | None = None) -> None:
        """`key`: at least 16 bytes, else ValueError. Recordings that are replayed together have the same."""
        settings = settings or MaskSettings()
        self.counts: dict[str, int] = {}
        """What was masked: lines (`target`, `header`, `cookie`, `malformed_line`), bodies by kind (`json`, `form`,
        `multipart`, `text`), bodies replaced whole (`gap`, `undecodable`, `opaque`)."""
        self.values = Values(key, settings)
        self._heads = Heads(self.values, settings, self.counts)
        self._bodies = Bodies(self.values, self._heads, settings, self.counts)

    def exchange(self, e: Exchange) -> Exchange:
        """The exchange as it may be written. Lengths and times that were seen stay; Content-Length follows its body."""
        response = e.response
        opaque = e.mode is Mode.OPAQUE or e.request.head.startswith(b"CONNECT ")
        opaque = opaque or (response is not None and response.status == 101)
        unfinished = Fault.UNFINISHED in e.faults
        request = self._request(e.request, opaque, unfinished and response is None)
        answer = self._response(response, opaque, unfinished) if response is not None else None
        if request is e.request and answer is response:
            return e
        return msgspec.structs.replace(e, request=request, response=answer)

    def _request(self, request: Request, opaque: bool, unfinished: bool) -> Request:
        head = self._heads.head(request.head)
        body = self._body(request, opaque, unfinished)
        trailers = self._heads.fields(request.trailers) if request.trailers else request.trailers
        if head is request.head and body is request.body and trailers is request.trailers:
            return request
        if body is not request.body:
            head = _with_length(head, len(body) - len(request.body))
        return msgspec.structs.replace(request, head=head, body=body, trailers=trailers)

    def _response(self, response: Response, opaque: bool, unfinished: bool) -> Response:
        head = self._heads.head(response.head)
        body = self._body(response, opaque, unfinished)
        trailers = self._heads.fields(response.trailers) if response.trailers else response.trailers
        interim = tuple(self._heads.head(one) for one in response.interim) if response.interim else response.interim
        if (
            head is response.head
            and body is response.body
            and trailers is response.trailers
            and interim == response.interim
        ):
            return response
        if body is not response.body:
            head = _with_length(head, len(body) - len(response.body))
        return msgspec.structs.replace(response, head=head, body=body, trailers=trailers, interim=interim)

    def _body(self, message: Request | Response, opaque: bool, unfinished: bool) -> bytes:
        body = message.body
        if not body:
            return body
        if opaque:
            return self._bodies.filler(body, "opaque")
        cut = message.truncated_bytes > 0 or unfinished
        return self._bodies.body(message.head, body, cut=cut, holes=message.missing_bytes > 0)


def _with_length(head: bytes, growth: int) -> bytes:
    """Content-Length grown by as much as the stored body grew: right for whole bodies and for cut ones."""
    if growth == 0:
        return head
    value = heads.field(head, b"content-length")
    if value is None or not value.isdigit():
        return head
    return heads.with_fields(head, {b"content-length": b"%d" % max(0, int(value) + growth)})
