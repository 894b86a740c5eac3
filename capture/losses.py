"""What packets that are missing leave unknown: which requests may have others before them that are not here.

No I/O, no clock. Offsets are those of the streams, `ack` how much of the other direction a sender had received.

Requests that were lost before one that is here had been answered when that was sent, or the next answers are to them.
What tells is an answer that was sent when its sender had not yet received the last of what was lost: who asks when it
has received that, and nothing behind it, waits for an answer to what was lost, too. Where the answers up to there are
lost as well, nothing tells; then it shows when the client asks again: two answers to what seems to be one request.
"""

from __future__ import annotations

from typing import Final

from capture.http1 import Reader
from capture.message import CLOSE, Message, Pair

NO_REQUEST: Final = 4  # bytes behind a request that are none: a FIN counts as one, an empty line has two


class Losses:
    """Of one connection."""

    __slots__ = (
        "_answer_ack", "_answer_known", "_before", "answered_to", "answers_to", "asked", "asked_at", "received",
        "rolling", "since",
    )  # fmt: skip

    def __init__(self) -> None:
        self.since = -1  # up to where had been answered, as far as that is known, when the last of them came
        self.answers_to = -1  # offset of the end of the last answers that were lost: the next begins there, or later
        self.received = -1  # offset of the end of what the client had received when it closed, before the server did
        self.asked = -1  # and of what it had sent
        self.asked_at = -1  # what had been received when the last request was sent
        self._before = -1  # what `since` was for the last request that is behind a loss
        self.answered_to = self._answer_ack = -1  # the end of the last answer, and what its sender had received
        self._answer_known = False  # it is to a request that is here
        self.rolling = False  # the client asks again before it has all answers, when it has some

    def placed(self, reader: Reader, request: Message) -> Pair:
        """A request, with what is known of those that were lost before it."""
        behind = reader.lost_to >= 0
        received = max(self.since, reader.met_ack, self.asked_at if behind else -1)
        after, self.asked_at = 0 <= request.ack <= received, request.ack
        self._before = self.since if behind else self._before
        reader.lost_to = self.since = -1
        one, reader.lost_one = behind and reader.lost_one, False
        return Pair(request, behind_loss=behind, after_loss=after, behind_one=one)

    def answered(self, answer: Message, *, known: bool) -> None:
        self.answered_to, self._answer_ack, self._answer_known = answer.end_offset, answer.ack, known

    def notice(self, waiting: list[Pair], answered: int) -> None:
        """What waits when all that had been answered up to this offset is known."""
        first = waiting[0].request if waiting else None
        if first is not None:
            later = (pair.request.ack for pair in waiting if pair.request is not None)
            self.rolling = self.rolling or any(first.ack < ack <= answered for ack in later)

    def owed_before(self, waiting: list[Pair]) -> bool:
        """Whether the next answer is to a request that was lost before the first that waits."""
        first = waiting[0] if waiting else None
        return first is not None and (first.after_loss or (first.behind_loss and self._came_late(first)))

    def uncounted(self, waiting: list[Pair]) -> bool:
        """Whether how many were lost before it, and had been answered, cannot be told."""
        return bool(waiting) and waiting[0].behind_loss and self._lost_in_both(waiting)

    def may_be_owed_before(self, waiting: list[Pair]) -> bool:
        """Whether it may be, for all that is known: if two answers come to what seems to be one request, it was."""
        request = waiting[0].request if waiting and waiting[0].behind_loss else None
        return request is not None and self.answers_to == request.ack

    def _came_late(self, pair: Pair) -> bool:
        """Whether what was lost before it had not come when the last answer was sent that its client had received; or
        that was to the request before what was lost."""
        request = pair.request
        if request is None or request.ack > self.answered_to:
            return False
        return (pair.behind_one and self._answer_known) or 0 <= self._answer_ack < request.start_offset - NO_REQUEST

    def _lost_in_both(self, waiting: list[Pair]) -> bool:
        """Whether answers were lost, too, after the requests were, and the first that waits was sent with others: how
        many of those that are lost had been answered cannot be told."""
        first, second = (*waiting, None)[:2]
        if first is None or second is None or first.request is None or second.request is None:
            return False
        return self.answers_to > self._before and first.request.ack == second.request.ack

    def is_to_last(self, aside: list[Pair | None], waiting: list[Pair], reader: Reader | None, *, seen: bool) -> bool:
        """Whether the last answer is to the last request: its client had all of it when it closed, and had not received
        any of it when it asked. `seen`: all requests that were sent."""
        answer = aside[-1].response if aside and aside[-1] is not None else None
        if answer is None or reader is None or not answer.end_offset == self.received == reader.next:
            return False
        if answer.framing is CLOSE and not seen:
            return False  # what is to a HEAD that is lost may hold those that follow
        if len({pair.request is not None and pair.request.method == b"HEAD" for pair in waiting}) > 1:
            return False  # where it ends hangs on which of them it is to
        last = waiting[-1].request if waiting else None
        if last is not None and last.complete and self.asked > last.end_offset + NO_REQUEST:
            return False  # there was another one, which is lost
        return last is None or last.ack <= answer.start_offset

    def settled(
        self, aside: list[Pair | None], waiting: list[Pair], begins: int, owed: bool
    ) -> tuple[int, list[Pair | None], list[Pair | None]]:
        """How many requests were sent together first, if all answers to them have been: their client asked again, or
        closed, when it had those; which of the answers are to the last of them, as far as that is certain; and what has
        been laid aside of the answers to others.

        The last answer is to the last of them, if the following request is the next one. Bytes between are at least one
        other, which is lost; if it had come before the last of two answers, they are to these two. `begins` is where
        the next answer does; `owed`: an answer to another comes before theirs."""
        first = waiting[0].request if waiting else None
        if first is None or self.rolling:
            return 0, [], aside
        count = 1
        while count < len(waiting) and not _later(waiting[count], waiting[0]):
            count += 1
        following = waiting[count].request if count < len(waiting) else None
        if following is None and count > 1:
            return 0, [], aside
        received, asked = (self.received, self.asked) if following is None else (following.ack, following.start_offset)
        answers = 0
        while answers < len(aside) and not _ends_behind(aside[answers], received):
            answers += 1
        rest, behind = aside[answers:], aside[answers] if answers < len(aside) else None
        if behind is not None and behind.response is not None:
            if behind.response.start_offset > received:
                rest = [None, *rest]  # what is lost goes on behind these
            elif behind.response.start_offset < received:
                rest[0] = None  # what looks like one answer is more than that, as the one to a HEAD would
        last = aside[answers - 1] if answers else None
        if last is None or last.response is None or last.response.end_offset != received:
            over = following is not None and (answers < len(aside) or received <= begins)
            return (count, [], rest) if over else (0, [], aside)
        found = aside[:answers]
        if owed and answers <= count and unbroken(found) == found:
            self.rolling = (
                found[0] is not None and found[0].response is not None and found[0].response.start_offset == first.ack
            )
            return 0, [], aside
        request = waiting[count - 1].request
        tail: list[Pair | None] = []
        if request is None or last.response.framing is CLOSE or last.response.start_offset < request.ack:
            pass  # what is to a HEAD that is lost may hold those that follow
        elif request.end_offset + NO_REQUEST >= asked:
            kept = count - max((i for i in range(count) if waiting[i].behind_loss), default=0)
            tail = unbroken(found)
            tail = tail[max(0, len(tail) - kept) :]
        elif count == 1 and answers == 2 and last.response.ack >= asked - NO_REQUEST:
            tail = found[:1]
        elif following is None:
            return 0, [], aside
        return count, tail, rest


def _ends_behind(found: Pair | None, offset: int) -> bool:
    return found is not None and found.response is not None and found.response.end_offset > offset


def _later(pair: Pair, first: Pair) -> bool:
    """Whether it was sent when its client had received more."""
    return pair.request is not None and first.request is not None and pair.request.ack > first.request.ack


def unbroken(aside: list[Pair | None]) -> list[Pair | None]:
    """The answers behind the last loss."""
    begin = 0
    for index, found in enumerate(aside):
        if found is None or found.behind_loss:
            begin = index + (found is None)
    return aside[begin:]
