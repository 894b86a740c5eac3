"""What packets that are missing leave unknown: which requests may have others before them that are not here.

No I/O, no clock. Offsets are those of the streams, `ack` how much of the other direction a sender had received. Readers
say where lost heads end (`lost_to`), and whether one was lost whole (`lost_one`).

Requests that were lost before one that is here had been answered when that was sent, or the next answers are to them.
What tells is an answer that was sent when its sender had not yet received the last of what was lost: who asks when it
has received that, and nothing behind it, waits for an answer to what was lost, too. Where the answers up to there are
lost as well, nothing tells; then it shows when the client asks again: two answers to what seems to be one request.

That supposes a client that asks again when it has all answers. One that does not shows it (`rolling`): it asks having
received a part of them, or an answer comes that was sent before the request that it would be to had come.
"""

from __future__ import annotations

from typing import Final

from capture.http1 import Reader
from capture.message import CLOSE, Message, Pair

NO_REQUEST: Final = 4  # bytes behind a request that are none: a FIN counts as one, an empty line has two


class Losses:
    """Of one connection."""

    __slots__ = (
        "_answer_ack", "_answer_known", "answered_to", "answers_to",
        "asked", "asked_at", "received", "rolling", "since", "together",
    )  # fmt: skip

    def __init__(self) -> None:
        self.since = -1  # up to where had been answered, as far as that is known, when the last of them came
        self.answers_to = -1  # offset of the end of the last answers that were lost: the next begins there, or later
        self.received = -1  # offset of the end of what the client had received when it closed, before the server did
        self.asked = -1  # and of what it had sent
        self.asked_at = -1  # what had been received when the last request was sent
        self.answered_to = self._answer_ack = -1  # the end of the last answer, and what its sender had received
        self._answer_known = False  # it is to a request that is here
        self.together = False  # the client has asked before it had an answer
        self.rolling = False  # the client asks again before it has all answers, when it has some

    def placed(self, reader: Reader, request: Message) -> Pair:
        """A request, with what is known of those that were lost before it."""
        behind = reader.lost_to >= 0
        received = max(self.since, reader.met_ack, self.asked_at if behind else -1)
        after, self.asked_at = 0 <= request.ack <= received, request.ack
        reader.lost_to = self.since = -1
        one, reader.lost_one = behind and reader.lost_one, False
        return Pair(request, behind_loss=behind, after_loss=after, behind_one=one)

    def answered(self, answer: Message, *, known: bool) -> None:
        self.answered_to, self._answer_ack, self._answer_known = answer.end_offset, answer.ack, known

    def unread(self, waiting: list[Pair], begin: int, end: int) -> None:
        """Bytes of answers that could not be read: no answer begins there, so who asks having received a part of them
        has not waited for all."""
        acks = [pair.request.ack for pair in waiting if pair.request is not None]
        self.rolling = self.rolling or any(begin <= ack < end for ack in acks)

    def notice(self, waiting: list[Pair], answered: int) -> None:
        """What waits when all that had been answered up to this offset is known."""
        first = waiting[0].request if waiting else None
        if first is not None and not self.rolling:
            acks = [pair.request.ack for pair in waiting if pair.request is not None]
            self.together = self.together or acks.count(first.ack) > 1
            self.rolling = any(first.ack < ack <= answered for ack in acks)

    def owed_before(self, waiting: list[Pair]) -> bool:
        """Whether the next answer is to a request that was lost before the first that waits."""
        first = waiting[0] if waiting else None
        return first is not None and (first.after_loss or (first.behind_loss and self._came_late(first)))

    def passed_over(self, first: Pair, following: Pair | None, answer: Message) -> bool:
        """Whether the answer to the first was in what is lost before this one, to whichever that is."""
        request, later = first.request, following.request if following is not None else None
        if request is None or first.response is not None:
            return False
        if following is not None and later is not None and request.ack < later.ack <= answer.start_offset:
            return following.behind_loss or not came_first(answer, later)  # or that did not wait for what is lost
        # Bytes between this request and the next one that is known: a request was lost, too, and it is as likely the
        # one that is answered. No pair is better than a wrong one.
        until = min(answer.ack, later.start_offset) if later is not None else answer.ack
        return request.complete and until > request.end_offset + NO_REQUEST

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
        return (pair.behind_one and self._answer_known) or 0 <= self._answer_ack < request.start_offset

    def _lost_in_both(self, waiting: list[Pair]) -> bool:
        """Whether answers were lost, too, after the requests were, and the first that waits was sent with others: how
        many of those that are lost had been answered cannot be told."""
        first, second = (*waiting, None)[:2]
        if first is None or second is None or first.request is None or second.request is None:
            return False
        return self.answers_to >= 0 and first.request.ack == second.request.ack

    def is_to_last(self, aside: list[Pair | None], waiting: list[Pair], *, seen: bool) -> bool:
        """Whether the last answer of all is to the last request: its client had all of it when it closed, and had not
        received any of it when it asked. `seen`: all requests that were sent."""
        answer = aside[-1].response if aside and aside[-1] is not None else None
        if answer is None or answer.end_offset != self.received:
            return False
        if answer.framing is CLOSE and not seen:
            return False  # what is to a HEAD that is lost may hold those that follow
        if len(heads(waiting)) > 1:
            return False
        last = waiting[-1].request if waiting else None
        if last is not None and self.asked > last.end_offset + NO_REQUEST:
            return False  # there was another one, which is lost
        return last is None or last.ack <= answer.start_offset

    def settled(
        self, aside: list[Pair | None], waiting: list[Pair], begins: int, owed: bool
    ) -> tuple[int, list[Pair | None], list[Pair | None]]:
        """How many requests were sent together first, if all answers to them have been: their client asked again, or
        closed, when it had those; which of the answers are to the last of them, as far as that is certain; and what has
        been laid aside of the answers to others. `begins` is where the next answer does; `owed`: an answer to another
        comes before theirs."""
        if not waiting or self.rolling:
            return 0, [], aside
        count, tail, rest = self._first_group(aside, waiting, begins, owed)
        asked, answers = waiting[count - len(tail) : count], [*tail, *rest[:1]]
        if count < len(waiting) and not waiting[count].behind_loss:
            asked.append(waiting[count])
        pairs = zip(answers, asked, strict=False)
        if count and any(came_first(found.response, pair.request) for found, pair in pairs if found is not None):
            self.rolling = True
        return (0, [], aside) if self.rolling else (count, tail, rest)

    def _first_group(
        self, aside: list[Pair | None], waiting: list[Pair], begins: int, owed: bool
    ) -> tuple[int, list[Pair | None], list[Pair | None]]:
        """The last answer is to the last of them, if the following request is the next one. Bytes between are at least
        one other, which is lost; if it had come before the last of two answers, they are to these two."""
        first, count = waiting[0].request, 1
        while count < len(waiting) and not _later(waiting[count], waiting[0]):
            count += 1
        following = waiting[count].request if count < len(waiting) else None
        if first is None or (following is None and count > 1):
            return 0, [], aside
        received, asked = (self.received, self.asked) if following is None else (following.ack, following.start_offset)
        answers = 0
        while answers < len(aside) and not _ends_behind(aside[answers], received):
            answers += 1
        found, rest = aside[:answers], aside[answers:]
        behind = rest[0].response if rest and rest[0] is not None else None
        if behind is not None and behind.start_offset < received:
            # It asked in the midst of an answer; or that is more than one, as the one to a HEAD is if it is read so.
            self.rolling = heads(waiting[:count]) == {False} and not any(pair.behind_loss for pair in waiting[:count])
            rest[0] = None
        elif (begins if behind is None else behind.start_offset) > received:
            rest = [None, *rest]  # what is lost goes on behind these
        last = found[-1].response if found and found[-1] is not None else None
        if last is None or last.end_offset != received:
            over = following is not None and (answers < len(aside) or received <= begins)
            return (count, [], rest) if over else (0, [], aside)
        begun = found[0].response if found[0] is not None else None
        if answers < count + owed and begun is not None and unbroken(found) == found:
            # There are fewer than were asked for, and nothing is lost between: it did not wait for all.
            self.rolling = begun.start_offset == first.ack
            if owed:
                return 0, [], aside
        request = waiting[count - 1].request
        if (
            request is None
            or last.framing is CLOSE
            or last.start_offset < request.ack
            or len(heads(waiting[:count])) > 1
        ):
            return count, [], rest  # what is to a HEAD that is lost, or one of these, may hold those that follow
        if request.end_offset + NO_REQUEST >= asked:
            kept = count - max((i for i in range(count) if waiting[i].behind_loss), default=0)
            tail = unbroken(found)
            return count, tail[max(0, len(tail) - kept) :], rest
        if count == 1 and answers == 2 and not owed and last.ack >= asked:
            return count, found[:1], rest
        return count, [], rest


def _ends_behind(found: Pair | None, offset: int) -> bool:
    return found is not None and found.response is not None and found.response.end_offset > offset


def came_first(answer: Message | None, request: Message | None) -> bool:
    """Whether it is known that an answer was sent before its sender had received the request."""
    return answer is not None and request is not None and 0 <= answer.ack <= request.start_offset


def heads(pairs: list[Pair]) -> set[bool]:
    """Whether requests are HEAD: where some are, and some not, it hangs on which is which where answers end."""
    return {pair.request is not None and pair.request.method == b"HEAD" for pair in pairs}


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
