"""Masks exchanges, before they are written anywhere."""

from __future__ import annotations

from msgspec.structs import replace

from mask.bodies import Bodies
from mask.heads import Block, Heads
from mask.settings import MaskSettings
from mask.values import Values
from wire import head as heads
from wire.records import Exchange, Fault, Mode, Request, Response


class Masker:
    """One thread's masker. Its memory is bounded: some thousands of recent lines, values and tokens."""

    def __init__(self, key: bytes, settings: MaskSettings | None = None) -> None:
        """`key`: at least 16 bytes, else ValueError. Recordings that are replayed together have the same."""
        settings = settings or MaskSettings()
        self._counts: dict[str, int] = {}
        self.values = Values(key, settings)
        self._heads = Heads(self.values, settings, self._counts)
        self._bodies = Bodies(self.values, self._heads, settings, self._counts)

    @property
    def counts(self) -> dict[str, int]:
        """What was masked so far: lines (`target`, `header`, `cookie`, `malformed_line`), bodies by kind (`json`,
        `form`, `multipart`, `text`), bodies replaced whole (`gap`, `undecodable`, `opaque`)."""
        self._heads.settle()
        return self._counts

    def exchange(self, e: Exchange, asked: bytes = b"", answered: bytes = b"") -> Exchange:
        """The exchange as it may be written. Lengths and times that were seen stay; Content-Length follows its body.

        `asked`, `answered`: the ends of both heads, from the newline before the first field on, if they are at hand."""
        request, response = e.request, e.response
        opaque = e.mode is Mode.OPAQUE or request.head.startswith(b"CONNECT ")
        unfinished = Fault.UNFINISHED in e.faults if e.faults else False
        new_request, new_response = request, response
        if response is not None:
            opaque = opaque or response.status == 101
            new_response = self._response(response, answered, opaque, unfinished)
        if request.head or request.body or request.trailers:
            new_request = self._request(request, asked, opaque, unfinished and response is None)
        if new_request is request and new_response is response:
            return e
        return replace(e, request=new_request, response=new_response)

    def message(self, head: bytes, block: bytes, body: bytes) -> tuple[bytes, bytes]:
        """Head and body of a message that is whole and strict, and opens no tunnel: the same as `exchange` makes of
        it. `block` is the end of its head, from the newline before the first field on."""
        new, fields = self._heads.masked(head, block)
        if body:
            written = self._bodies.body(head, fields, body)
            if written is not body:
                return _with_length(new, len(written) - len(body)), written
        return new, body

    def _request(self, request: Request, block: bytes, opaque: bool, unfinished: bool) -> Request:
        head, fields = self._heads.masked(request.head, block)
        old = body = request.body
        if old:
            body = self._body(request, fields, opaque, unfinished)
            if body is not old:
                head = _with_length(head, len(body) - len(old))
        trailers = self._heads.fields(request.trailers) if request.trailers else request.trailers
        if head is request.head and body is old and trailers is request.trailers:
            return request
        return replace(request, head=head, body=body, trailers=trailers)

    def _response(self, response: Response, block: bytes, opaque: bool, unfinished: bool) -> Response:
        head, fields = self._heads.masked(response.head, block)
        old = body = response.body
        if old:
            body = self._body(response, fields, opaque, unfinished)
            if body is not old:
                head = _with_length(head, len(body) - len(old))
        if response.trailers or response.interim:
            trailers = self._heads.fields(response.trailers) if response.trailers else response.trailers
            interim = tuple(self._heads.head(one) for one in response.interim)
            if trailers is not response.trailers or interim != response.interim:
                return replace(response, head=head, body=body, trailers=trailers, interim=interim)
        if head is response.head and body is old:
            return response
        return replace(response, head=head, body=body)

    def _body(self, message: Request | Response, fields: Block, opaque: bool, unfinished: bool) -> bytes:
        if opaque:
            return self._bodies.filler(message.body, "opaque")
        cut = message.truncated_bytes > 0 or unfinished
        return self._bodies.body(message.head, fields, message.body, cut=cut, holes=message.missing_bytes > 0)


def _with_length(head: bytes, growth: int) -> bytes:
    """Content-Length grown by as much as the stored body grew: right for whole bodies and for cut ones."""
    if growth == 0:
        return head
    value = heads.field(head, b"content-length")
    if value is None or not value.isdigit():
        return head
    return heads.with_fields(head, {b"content-length": b"%d" % max(0, int(value) + growth)})
