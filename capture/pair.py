"""Requests and their answers. No I/O, no clock.

Answers come in the order of the requests (RFC 9112 section 9.3.2). What an answer means depends on its request: one
to HEAD has no body, one to CONNECT opens a tunnel. Where bytes were lost on the way, counting would pair all that
follows with the wrong request; so two facts of TCP are used instead:

- an answer cannot begin before its sender has received the beginning of the request;
- a client that sent its next request after it had received what is lost, was not waiting any more for the answer
  that was in it.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

import msgspec

from capture.http1 import Reader
from capture.message import NONE, REQUEST, Message


class Pair(msgspec.Struct, eq=False):
    """A request, what has been seen of its answer, and the answers before the answer."""

    request: Message | None
    response: Message | None = None
    interim: list[Message] = []
    shed: bool = False  # there was no memory for it: it is read to its end, and dropped


class PairSink(Protocol):
    def head(self) -> None:
        """One more message was recognised."""

    def pair(self, pair: Pair) -> None:
        """A request and its answer are over. `request` is None for an answer to nothing that was seen."""

    def junk(self, reason: str, count: int) -> None:
        """Bytes that belong to no message."""

    def keep(self, pair: Pair | None, count: int) -> bool:
        """Whether `count` more body bytes of this pair may be kept."""


class Pairer:
    """The sink of both readers of a connection."""

    __slots__ = ("_max_open", "_sink", "lost", "open", "orphans", "request_reader", "response_reader", "tunnel")

    def __init__(self, sink: PairSink, max_open: int) -> None:
        self.open: deque[Pair] = deque()
        self.tunnel = False
        self._sink = sink
        self._max_open = max_open
        self.request_reader: Reader | None = None
        self.response_reader: Reader | None = None
        # Answers whose request was not seen, while they are read: one a direction, for both may send answers.
        self.orphans: dict[Reader, Pair] = {}
        self.lost = False  # answers may have been lost since the last one

    # -- from the readers

    def head(self, reader: Reader, message: Message) -> None:
        if message.kind is REQUEST:
            self.request_reader = reader
            if len(self.open) >= self._max_open:
                self._emit_unanswered()
            self.open.append(Pair(message))
            self._sink.head()
            return
        self.response_reader = reader
        self._sink.head()
        pair = self._asked_by(message)
        if pair is None:
            pair = self.orphans[reader] = Pair(None)
        status = message.status
        if status < 200 and status != 101:
            reader.expect(NONE)
            return
        pair.response = message
        method = pair.request.method if pair.request is not None else b""
        if method == b"HEAD" or status in (101, 204, 304) or (method == b"CONNECT" and 200 <= status < 300):
            reader.expect(NONE)

    def _asked_by(self, answer: Message) -> Pair | None:
        if self.lost:
            self._skip_lost(answer)
        for pair in self.open:
            if pair.response is not None:
                continue
            request = pair.request
            assert request is not None
            if 0 <= answer.ack <= request.start_offset:
                return None  # its sender had not seen this request: the one that it answers is not here
            return pair
        return None

    def _skip_lost(self, answer: Message) -> None:
        """Requests whose answers were in what is lost, as what their client sent next shows."""
        self.lost = False
        while self.open:
            first = self.open[0]
            request = first.request
            if first.response is not None or request is None:
                return
            following = self.open[1].request if len(self.open) > 1 else None
            sent_next = following is not None and request.ack < following.ack <= answer.start_offset
            # Bytes between this request and the next one that is known: a request was lost, too, and it is as likely
            # the one that is answered. No pair is better than a wrong one.
            until = min(answer.ack, following.start_offset) if following is not None else answer.ack
            if not sent_next and not (request.complete and until > request.end_offset):
                return
            self._emit_first()

    def done(self, reader: Reader, message: Message) -> None:
        if message.kind is REQUEST:
            self._emit_finished()
            return
        if not message.complete:
            self.lost = True
        orphan = self.orphans.pop(reader, None)
        if orphan is not None:
            if message is not orphan.response:
                orphan.interim.append(message)
            self._sink.pair(orphan)
            return
        if 100 <= message.status < 200 and message.status != 101:
            for pair in self.open:
                if pair.response is None:
                    pair.interim.append(message)
                    return
        opens = message.status == 101
        for pair in self.open:
            if pair.response is message:
                opens = opens or bool(
                    pair.request and pair.request.method == b"CONNECT" and 200 <= message.status < 300
                )
        if opens:
            self.tunnel = True
            for side in (self.request_reader, self.response_reader):
                if side is not None:
                    side.open_tunnel()
        self._emit_finished()

    def junk(self, reader: Reader, reason: str, count: int) -> None:
        if reader is not self.request_reader and reason != "blank":
            self.lost = True
        self._sink.junk(reason, count)

    def lost_answers(self, reader: Reader) -> None:
        """Bytes of this direction were lost."""
        if reader is not self.request_reader:
            self.lost = True

    def keep(self, message: Message, count: int) -> bool:
        return self._sink.keep(self.pair_of(message), count)

    def cut_short(self, message: Message) -> bool:
        if message.kind is REQUEST:  # the body was not sent because the answer was final (RFC 9110 section 10.1.1)
            pair = self.pair_of(message)
            return pair is not None and pair.response is not None
        # The client asked again after it had received some of this body: it knew that it was over.
        waiting = [pair for pair in self.open if pair.response is None]
        return bool(waiting) and waiting[0].request is not None and waiting[0].request.ack > message.start_offset

    # -- results

    def pair_of(self, message: Message) -> Pair | None:
        if message.kind is REQUEST:
            return self.open[-1] if self.open and self.open[-1].request is message else None
        for pair in (*self.orphans.values(), *self.open):
            if pair.response is message:
                return pair
        return None

    def _emit_finished(self) -> None:
        request_reader, response_reader = self.request_reader, self.response_reader
        while self.open:
            pair = self.open[0]
            response = pair.response
            if response is None or (response_reader is not None and response_reader.message is response):
                return
            if request_reader is not None and request_reader.message is pair.request:
                return
            self.open.popleft()
            self._sink.pair(pair)

    def _emit_first(self) -> None:
        pair = self.open.popleft()
        self._sink.pair(pair)

    def _emit_unanswered(self) -> None:
        """Make room: the oldest request whose answer has not begun."""
        for index, pair in enumerate(self.open):
            if pair.response is None:
                del self.open[index]
                self._sink.pair(pair)
                return

    def no_more_answers(self) -> None:
        """The server's direction is over: requests that are whole wait for nothing."""
        reader = self.request_reader
        while self.open and not (reader is not None and reader.message is self.open[0].request):
            self._emit_first()

    def finish(self) -> None:
        """The connection is over: what is open goes as it is. Both readers have been ended."""
        while self.open:
            self._emit_first()

    def messages(self) -> list[Message]:
        """All messages that wait here, for the account."""
        found: list[Message] = []
        for pair in (*self.open, *self.orphans.values()):
            found.extend(m for m in (pair.request, pair.response, *pair.interim) if m is not None)
        return found
