"""The process that a gateway mirrors its requests to: answers each at once, and hands their bytes over.

nginx holds the next request of a connection back until the mirrored one is answered, and a shadow that is slow fills
Envoy's pools. So nothing here waits for the recorder: what is whole is answered 200, and when the recorder falls
behind whole connections are shed from the recording, counted, and answered on. What is no HTTP is answered 400 and
closed: a gateway ignores what its mirror says.

    python -m capture.mirror     as `capture.proxy`: settings on stdin, frames on stdout
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Final, cast

import httptools

from capture.handover import CLIENT_END, FROM_CLIENT, OPENED, SERVER_END, SHED
from capture.proxy import Pair, Proxy, main, peer

_OK: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
_LAST: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_BAD: Final = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
#: Of heads, trailers and framing without a byte of a body between them: the parser keeps a field until its end.
_MAX_HEAD: Final = 1 << 20
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Mirrored(asyncio.Protocol):
    """One connection of a gateway. The parser only tells where requests end: what is recorded is the bytes."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._number = 0
        self._shed = False
        self._over = False
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._waits = False  # for a 100 (RFC 9110 section 10.1.1)
        self._inside = False
        self._head_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._proxy.open.add(self)
        self._begin()

    def _begin(self) -> None:
        assert self._transport is not None
        self._shed = False
        self._number = self._proxy.next_number()
        names = f"{peer(self._transport)}\0{peer(self._transport, 'sockname')}".encode()
        if not self._proxy.hand_over.offer(OPENED, self._number, self._proxy.now_ns(), names):
            self._begin_shedding(known=False)

    def data_received(self, data: bytes) -> None:
        totals = self._proxy.totals
        if self._shed and not self._inside and self._proxy.hand_over.has_room:
            self._begin()  # gateways keep connections for hours: go on with its next request, as one more connection
        totals.passed_bytes += len(data)
        if not self._shed and not self._proxy.hand_over.offer(FROM_CLIENT, self._number, self._proxy.now_ns(), data):
            self._begin_shedding()
        if self._shed:
            totals.shed_bytes += len(data)
        assert self._transport is not None
        self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._end(_LAST)
        except httptools.HttpParserError:
            self._end(_BAD)
        if self._head_bytes > _MAX_HEAD:
            self._end(_BAD)

    def _begin_shedding(self, *, known: bool = True) -> None:
        self._shed = True
        self._proxy.totals.shed_connections += 1
        if known:  # to the recorder; of others a recorder that hangs would be told without bound
            self._proxy.hand_over.offer(SHED, self._number, self._proxy.now_ns())

    def _end(self, last: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(last)
            self._transport.close()

    # -- what the parser tells

    def on_message_begin(self) -> None:
        self._inside, self._waits = True, False

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"expect" and value.strip().lower() == b"100-continue":
            self._waits = True

    def on_headers_complete(self) -> None:
        if self._waits and self._transport is not None:
            self._transport.write(_CONTINUE)

    def on_body(self, data: bytes) -> None:
        self._head_bytes = 0

    def on_message_complete(self) -> None:
        self._inside, self._head_bytes = False, 0
        if self._transport is None or self._transport.is_closing():
            return
        if self._parser.should_keep_alive():
            self._transport.write(_OK)
        else:
            self._end(_LAST)

    # -- a gateway that does not read its answers

    def pause_writing(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    # -- the end

    def connection_lost(self, exc: Exception | None) -> None:
        if self._over:
            return
        self._over = True
        self._proxy.open.discard(self)
        if not self._shed:
            for kind in (CLIENT_END, SERVER_END):
                self._proxy.hand_over.offer(kind, self._number, self._proxy.now_ns())

    def busy(self, now_ns: int) -> bool:
        """Whether a request has begun and is not whole."""
        return self._inside

    def abandon(self) -> None:
        if self._transport is not None:
            self._transport.close()


class MirrorServer(Proxy):
    """Listens as the proxy does; there is nothing behind it."""

    def _factory(self, pair: Pair) -> Callable[[], asyncio.Protocol]:
        return lambda: Mirrored(self)


if __name__ == "__main__":
    sys.exit(main(MirrorServer))
