"""Requests and their answers. No I/O, no clock.

Answers come in the order of the requests (RFC 9112 section 9.3.2). What an answer means depends on its request: one
to HEAD has no body, one to CONNECT opens a tunnel. Where bytes were lost on the way, counting would pair all that
follows with the wrong request; so two facts of TCP are used instead:

- an answer cannot begin before its sender has received the beginning of the request (where all requests were seen, it
  is to the first that waits all the same: there is none other that it could be to);
- a client that asked again after it had received what is lost was not waiting any more for the answer in that.

What follows a loss of answers may begin inside of one (bodies hold HTTP, too): a request that waited then has a `gap`.

Of requests that were sent one behind the other without waiting, these facts tell nothing. There answers after a loss
are laid aside until they, with the least that can have been lost, are as many as the requests: then each has its place,
if no requests were lost among these or behind them. Or until the client closes, having received all: then the last
answer is to the last request, where nothing was lost behind that, and so backwards to where requests were lost. Or, of
one alone, until it asks again. Else they stay unpaired: no pair is better than a wrong one.

A request whose end two readers could see at two places makes all that follows it doubtful, too, until one follows
that was sent after its answer had come: what looked like a request may have been its body.
"""

from __future__ import annotations

from capture.http1 import Reader
from capture.losses import Losses, came_first, heads, unbroken
from capture.message import CLOSE, NONE, REQUEST, Message, Pair, PairSink

_MAX_OWED = 1 << 20
_MAY_BEGIN = ("bad_chunk", "unfinished_head", "tunnel")  # bytes in which an answer may begin all the same


class Pairer:
    """The sink of both readers of a connection."""

    __slots__ = (
        "_apart", "_aside", "_asked_too", "_doubtful", "_max_open", "_may_count", "_owes", "_sink", "_trusted_from",
        "_uncounted", "_unseen", "losses", "lost", "open", "orphans", "owed", "request_reader", "response_reader",
        "tunnel",
    )  # fmt: skip

    def __init__(self, sink: PairSink, max_open: int, *, midstream: bool = False) -> None:
        self.open: list[Pair] = []  # short, and an empty deque would take 600 bytes
        self.tunnel = False
        self._sink = sink
        self._max_open = max_open
        self.request_reader: Reader | None = None
        self._asked_too: Reader | None = None  # the other direction, where both send requests
        self.response_reader: Reader | None = None
        # Answers whose request was not seen, while they are read: one a direction, for both may send answers.
        self.orphans: dict[Reader, Pair] = {}
        self.lost = midstream  # answers may have been lost since the last one
        self.owed = bytearray()  # answers to come to requests that had to make room; 1 for HEAD
        self.losses = Losses()
        self._uncounted = False  # requests were lost before one that is open: there are more answers than requests
        self._owes = self._may_count = False  # that is certain; it is so if one more answer comes
        self._apart = False  # it is not known which request the next answer is to
        self._aside: list[Pair | None] = []  # then: answers in their order; None where one is known to be lost
        self._doubtful: Message | None = None  # the last request that was ambiguous
        self._trusted_from = -1  # the offset of its answer
        self._unseen = midstream  # there may have been requests that were not seen

    @property
    def sure(self) -> bool:
        """Whether the next answer is to the first request that waits, and nothing else depends on it."""
        return not (
            self.lost or self.owed or self._apart or self._doubtful or (self.losses.rolling and not self._whole)
        )

    @property
    def doubts(self) -> bool:
        """Whether the next request may be part of one before, or others before it were lost."""
        return self._doubtful is not None or self.losses.since >= 0

    @property
    def _whole(self) -> bool:  # as far as is known
        return self.losses.answers_to < 0 and not self._unseen

    # -- from the readers

    def head(self, reader: Reader, message: Message) -> None:
        if message.kind is REQUEST:
            if reader is not self.request_reader:
                self._asked_too, self.request_reader = self.request_reader, reader
            if len(self.open) >= self._max_open:
                self._make_room()
            if message.ambiguous or (self._doubtful is not None and not 0 <= self._trusted_from < message.ack):
                message.ambiguous = True
                self._doubtful, self._trusted_from = message, -1
            else:
                self._doubtful = None
            self.open.append(self.losses.placed(reader, message))
            self._sink.head()
            return
        self.response_reader = reader
        self.losses.answers_to = max(self.losses.answers_to, reader.lost_to)
        self._sink.head()
        behind_loss = self.lost
        self._settle_first(message.start_offset)
        if behind_loss:
            self._skip_lost(message)
        waiting = [pair for pair in self.open if pair.response is None]
        if not self._apart:
            self.losses.notice(waiting, message.start_offset)
        if self.losses.owed_before(waiting):
            # Sent before anything was received that may have answered those: the first answers are to them.
            self._apart = self._uncounted = self._owes = True
        elif self.losses.uncounted(waiting) or (self.losses.rolling and not self._whole):
            self._apart = self._uncounted = True
        elif self.losses.may_be_owed_before(waiting):
            self._apart = self._uncounted = self._may_count = True
        pair = self.orphans.get(reader)  # interim answers came before: this one is theirs
        owed = bool(self.owed) and not self._apart and pair is None
        if pair is None and not owed and not self._apart:
            pair = self._asked_by(message)
            if pair is not None and pair.request is not None and 0 <= pair.request.ack < self.losses.answers_to:
                message.gap = True  # it may begin in what is lost, and this be part of its body
        if pair is None:
            unseen = not owed and not self._apart
            pair = self.orphans[reader] = Pair(None, aside=self._apart, behind_loss=behind_loss, unseen=unseen)
        status = message.status
        if status < 200 and status != 101:
            reader.expect(NONE)
            return
        pair.response = message
        method = pair.request.method if pair.request is not None else b""
        if owed:
            method = b"HEAD" if self.owed.pop(0) else b""
        elif pair.aside and False not in heads(self.open):
            method = b"HEAD"
        if pair.request is not None and pair.request is self._doubtful:
            self._trusted_from = message.start_offset
        if method == b"HEAD" or status in (101, 204, 304) or (method == b"CONNECT" and 200 <= status < 300):
            reader.expect(NONE)

    def _asked_by(self, answer: Message) -> Pair | None:
        for pair in self.open:
            if pair.response is not None:
                continue
            request = pair.request
            assert request is not None
            if (self._unseen or self.losses.answers_to >= 0) and came_first(answer, request):
                return None  # its sender had not seen this request: the one that it answers is not here
            return pair
        return None

    def _skip_lost(self, answer: Message) -> None:
        """Requests whose answers were in what is lost, as what their client sent next shows."""
        self.lost = False
        if self._apart:
            return
        if not self.owed:
            self._skip_certain(answer)
            waiting = next((pair.request for pair in self.open if pair.response is None), None)
            if waiting is not None and 0 <= self.losses.answers_to <= waiting.ack:
                self._aside.clear()  # its client had received what is lost when it asked
                return
        # Asked before the answer was sent, as far as that can be told.
        asked = [p.request for p in self.open if p.response is None and p.request is not None]
        count = sum(1 for request in asked if answer.ack < 0 or request.start_offset < answer.ack)
        self._apart = count > 1 or bool(self.owed)
        if not self._apart:
            self._aside.clear()

    def _skip_certain(self, answer: Message) -> None:
        while self.open and self.losses.passed_over(self.open[0], self.open[1] if len(self.open) > 1 else None, answer):
            self._sink.pair(self.open.pop(0))

    def done(self, reader: Reader, message: Message) -> None:
        if message.kind is REQUEST:
            self._emit_finished()
            return
        self.losses.answered(message, known=reader not in self.orphans)
        orphan = self.orphans.pop(reader, None)
        if orphan is not None:
            final = message is orphan.response
            if final and orphan.unseen and (message.body_bytes or message.gap):
                self.lost = True  # it may have been to HEAD: what was read as its body is the next answers then
            if not final:
                orphan.interim.append(message)
            if final and orphan.aside and self._apart:
                self._aside.append(orphan)
                self._settle()
            elif final or not orphan.aside:
                self._sink.pair(orphan)
            else:
                self.orphans[reader] = orphan  # its answer follows
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

    def junk(self, reader: Reader, reason: str, begin: int, end: int) -> None:
        if reason != "blank":
            if reader is not self.request_reader:
                self.lost = True
                self._may_count = False
                if self.request_reader is not None:
                    if reason not in _MAY_BEGIN:
                        self.losses.unread(self.open, begin, end)
                    self.losses.answers_to = max(self.losses.answers_to, reader.next)
            self._unseen = self._unseen or reader is not self.response_reader
            asks = reader is not self.response_reader and self.request_reader in (None, reader)
            if reason == "bad_head" and asks:  # it is answered, too
                self.lost_answers(reader, head=True, whole=False)
        self._sink.junk(reason, end - begin)

    def lost_answers(self, reader: Reader, *, head: bool, whole: bool) -> None:
        """Bytes were lost, and with them where messages begin; `head`: and the head of one, `whole`: from its first."""
        reader.lost_to, reader.lost_one = reader.next, reader.lost_one or whole
        if reader is not self.response_reader:  # or not known yet: it may be either
            self._unseen = True
            self.losses.since = self.response_reader.next if self.response_reader is not None else 0
        if reader is self.request_reader or self.request_reader is self.response_reader:  # both are not known
            return
        if not self._apart:
            self.losses.notice([pair for pair in self.open if pair.response is None], self.losses.answered_to)
        self.lost = True
        self._settle_first()
        interim = self.orphans.pop(reader, None)
        if interim is not None:  # their answer is in what is lost
            self._sink.pair(interim)
        if head and (self._apart or not self._aside):
            self._aside.append(None)

    def _settle(self, *, over: bool = False) -> None:
        """Pair what was laid aside, as far as it is certain; `over`: also give up where it is not."""
        self._settle_first()
        if not self._apart:
            return
        waiting = [pair for pair in self.open if pair.response is None]
        asked: list[Pair | None] = [*([None] * len(self.owed)), *waiting]
        aside = self._aside
        behind = max((i for i, pair in enumerate(waiting) if pair.behind_loss), default=0)
        counted = not self._uncounted or (over and self._may_count and None not in aside)
        last_seen = self.request_reader is None or self.request_reader.lost_to < 0
        if len(aside) == len(asked) and counted and last_seen and not behind:
            tail = aside
        elif over and last_seen and self.losses.is_to_last(aside, waiting, seen=not self._unseen):
            tail = unbroken(aside)
            tail = tail[max(0, len(tail) - len(waiting) + behind) :]
        elif over or len(aside) > (self._max_open if self._uncounted else len(asked)):
            tail = []
        else:
            return
        self._forget(len(aside) - len(tail))
        last = None
        for pair, found in zip(asked[len(asked) - len(tail) :], tail, strict=True):
            if found is None:
                continue
            if pair is None or found.response is None:
                self._sink.pair(found)
                continue
            pair.take(found)
            last = pair
        # Those before it have no answer, nor has any, where nothing is certain: what comes is not theirs.
        while self.open and self.open[0] is not last and (last is not None or not tail):
            if self._being_read(self.open[0].request):
                break
            self._sink.pair(self.open.pop(0))
        self._emit_finished()

    def _settle_first(self, begins: int = -1) -> None:
        """Pair those that were sent together first, as far as that is certain, if all answers to them have been."""
        while self._apart and self._aside:
            waiting, aside = [pair for pair in self.open if pair.response is None], self._aside
            count, tail, rest = self.losses.settled(aside, waiting, begins, self._owes)
            if not count:
                return
            self._forget(0)
            for pair in waiting[: count - len(tail)]:
                self.open.remove(pair)
                self._sink.pair(pair)
            for pair, found in zip(waiting[count - len(tail) : count], tail, strict=True):
                if found is not None:
                    pair.take(found)
            for found in aside:
                if found is not None and not any(found is one for one in (*tail, *rest)):
                    self._sink.pair(found)
            self._aside = rest
            self._apart = self._uncounted = self._may_count = bool(self._aside)
            self._emit_finished()

    def _forget(self, unpaired: int) -> None:
        """What was laid aside, of which the first so many are to nothing that is known."""
        aside, self._aside, self._may_count, self._owes = self._aside, [], False, False
        self._apart = self._uncounted = False
        self.owed.clear()
        for found in aside[:unpaired]:
            if found is not None:
                self._sink.pair(found)

    def _being_read(self, request: Message | None) -> bool:
        readers = (self.request_reader, self._asked_too)
        return request is not None and any(reader is not None and reader.message is request for reader in readers)

    def keep(self, message: Message, count: int) -> bool:
        return self._sink.keep(self.pair_of(message), count)

    def cut_short(self, message: Message) -> bool:
        if message.kind is REQUEST:  # the body was not sent because the answer was final (RFC 9110 section 10.1.1)
            pair = self.pair_of(message)
            return pair is not None and pair.response is not None
        # The client asked again after it had received some of this: it knew that it was over. What its head says that
        # follows, and does not, is the body of an answer to a HEAD that is lost.
        asked = self.pair_of(message)
        if message.framing is not CLOSE and (asked is None or asked.request is not None):
            return False
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
            self.open.pop(0)
            self._sink.pair(pair)

    def _make_room(self) -> None:
        """The oldest request whose answer has not begun goes; its answer, which comes before all others, is owed."""
        if self._apart:
            self._settle(over=True)
        for index, pair in enumerate(self.open):
            if pair.response is None and not self._being_read(pair.request):
                del self.open[index]
                if len(self.owed) < _MAX_OWED:
                    self.owed.append(pair.request is not None and pair.request.method == b"HEAD")
                self._sink.pair(pair)
                return

    def no_more_answers(self) -> None:
        """The server's direction is over: requests that are whole wait for nothing."""
        if self._apart:
            self._settle(over=True)
        reader = self.request_reader
        while self.open and not (reader is not None and reader.message is self.open[0].request):
            self._sink.pair(self.open.pop(0))

    def finish(self) -> None:
        """The connection is over: what is open goes as it is. Both readers have been ended."""
        self._may_count &= not self.losses.together  # or there may be more answers than the capture has
        if self._apart:
            self._settle(over=True)
        for orphan in self.orphans.values():
            self._sink.pair(orphan)
        self.orphans.clear()
        while self.open:
            self._sink.pair(self.open.pop(0))

    def release(self) -> None:
        """Nobody asks for it any more: those who read for it know it, and so it lets go of them."""
        self.request_reader = self.response_reader = self._asked_too = None
        self.orphans.clear()

    def messages(self) -> list[Message]:
        """All messages that wait here, for the account."""
        pairs = self.open
        if self.orphans or self._aside:
            pairs = [*pairs, *self.orphans.values(), *(pair for pair in self._aside if pair is not None)]
        return [m for pair in pairs for m in (pair.request, pair.response, *pair.interim) if m is not None]
