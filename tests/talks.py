"""Conversations as they come about: a client and a server with delays, and a tap between them, so that packets cross.

What the capture of such a tap has not is chosen by who uses this: nothing is ever lost between the two themselves.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from pcap_build import ACK, FIN, PSH, Conversation, Packet

CLIENTS: Final = ("waits", "together", "under way")
"""How a client sends requests: each when it has the answer to the one before; some together, the next when it has all
answers (they may be some milliseconds apart); always some under way, another one for each answer."""


@dataclass
class Talk:
    """`kinds`: also HEAD, bodies, chunks, 204, 100 before an answer, empty lines, an answer that ends by FIN. Each
    answer has the number of its request in a field, X-N."""

    rng: random.Random
    client: str
    kinds: bool = False
    packets: list[Packet] = field(default_factory=list)
    data: list[int] = field(default_factory=list)
    """Which of the packets have bytes."""

    def __post_init__(self) -> None:
        rng = self.rng
        self.count = rng.randrange(2, 11)
        made = [self._exchange(number) for number in range(self.count)]
        self.requests, self.answers = [one[0] for one in made], [one[1] for one in made]
        self.ends = (
            list(itertools.accumulate(map(len, self.answers))),
            list(itertools.accumulate(map(len, self.requests))),
        )
        self._delay = [rng.choice([1, 5, 20]) for _ in range(2)]  # client to tap, tap to server
        self._mss = [rng.choice([40, 90, 1448]) for _ in range(2)]
        self._joins, self._closes = rng.random() < 0.5, rng.choice(["client", "server", "half", "nobody"])
        self._sent, self._got, self._busy = [0, 0], [0, 0], False
        self._asked = self._begun = self._served = self._answered = 0
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = itertools.count()
        self._tapped: list[tuple[float, int, int, int, int, bytes]] = []
        self._run()

    def _exchange(self, number: int) -> tuple[bytes, bytes]:
        rng, kinds = self.rng, self.kinds
        method = rng.choice([b"GET", b"GET", b"HEAD", b"POST"]) if kinds else b"GET"
        request = b"%s /%d HTTP/1.1\r\nHost: h\r\n" % (method, number)
        sent = b"x" * rng.choice([1, 50, 200]) if method == b"POST" else b""
        request += (b"Content-Length: %d\r\n\r\n" % len(sent) if sent else b"\r\n") + sent
        request += b"\r\n" if kinds and rng.random() < 0.1 else b""
        body = b"answer-%d " % number + b"y" * rng.choice([0, 0, 30, 150])
        head, kind = b"HTTP/1.1 200 OK\r\nX-N: %d\r\n" % number, rng.random() if kinds else 1.0
        shown = b"" if method == b"HEAD" else body
        if number == self.count - 1 and kind < 0.5 and shown:
            answer = head + b"Connection: close\r\n\r\n" + body
        elif kind < 0.15:
            answer = head.replace(b"200 OK", b"204 No Content") + b"\r\n"
        elif kind < 0.3:
            answer = head + b"Transfer-Encoding: chunked\r\n\r\n"
            answer += b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if shown else b""
        else:
            answer = head + b"Content-Length: %d\r\n\r\n" % len(body) + shown
        return request, b"HTTP/1.1 100 Continue\r\n\r\n" * (kinds and rng.random() < 0.06) + answer

    def _at(self, when: float, what: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), what))

    def _run(self) -> None:
        conversation = Conversation().open()
        base, first = tuple(conversation.seq), len(conversation.packets)
        self._at(1, self._ask)
        while self._events:
            when, _, what = heapq.heappop(self._events)
            what(when)
        self._tapped.sort(key=lambda packet: packet[0])
        for index, (_, side, sequence, ack, flags, data) in enumerate(self._tapped):
            conversation.raw(side, base[side] + sequence, base[1 - side] + ack, flags, data)
            if data:
                self.data.append(first + index)
        self.packets = conversation.packets

    def _emit(self, when: float, side: int, data: bytes, *, last: bool = False) -> None:
        parts = [data[at : at + self._mss[side]] for at in range(0, len(data), self._mss[side])] or [b""]
        for index, part in enumerate(parts):
            fin = last and index == len(parts) - 1
            at = when + index / 100 + self.rng.random() / 1000
            flags = ACK | (PSH if part else 0) | (FIN if fin else 0)
            self._tapped.append((at + self._delay[side], side, self._sent[side], self._got[side], flags, part))
            self._sent[side] += len(part) + fin
            self._at(at + sum(self._delay), self._receiver(1 - side, self._sent[side]))

    def _receiver(self, side: int, offset: int) -> Callable[[float], None]:
        def received(when: float) -> None:
            self._got[side] = max(self._got[side], offset)
            (self._serve if side else self._has_answers)(when)
            if self.rng.random() < 0.5:
                self._at(when + 0.04, lambda at: self._acknowledge(at, side))

        return received

    def _acknowledge(self, when: float, side: int) -> None:
        self._tapped.append((when + self._delay[side], side, self._sent[side], self._got[side], ACK, b""))

    # -- the client

    def _ask(self, when: float) -> None:
        count = {"waits": 1, "together": self.rng.choice([1, 2, 3, 4]), "under way": self.rng.choice([2, 3, 4])}
        parts = self.requests[self._asked : self._asked + count[self.client]]
        self._asked += len(parts)
        gap = self.rng.choice([0.02, 0.02, 4]) if self.client == "together" else 0.02
        if self.rng.random() < 0.5:
            parts, self._begun = [b"".join(parts)], self._begun + len(parts) - 1
        for index, part in enumerate(parts):
            self._at(when + index * gap, self._sender(part))

    def _sender(self, part: bytes) -> Callable[[float], None]:
        def send(when: float) -> None:
            self._begun += 1
            self._emit(when, 0, part, last=self._closes == "half" and self._begun == self.count)

        return send

    def _has_answers(self, when: float) -> None:
        before = self._answered
        while self._answered < self.count and self._got[0] >= self.ends[0][self._answered]:
            self._answered += 1
        if self._answered == before:
            return
        pause = when + self.rng.choice([0.05, 0.05, 3, 30])
        if self.client == "under way":
            for index in range(self._answered - before):
                if self._asked < self.count:
                    self._at(when + 0.05 + index / 100, self._sender(self.requests[self._asked]))
                    self._asked += 1
        elif self._answered == self._asked < self.count:
            self._at(pause, self._ask)
        if self._answered == self.count and self._closes in ("client", "server"):
            self._at(pause, lambda at: self._emit(at, self._closes == "server", b"", last=True))

    # -- the server

    def _serve(self, when: float) -> None:
        if not self._busy and self._served < self.count and self._got[1] >= self.ends[1][self._served]:
            self._busy = True
            self._at(when + self.rng.choice([0.1, 1, 1, 10]), self._answer)

    def _answer(self, when: float) -> None:
        count, self._busy = 1, False
        while self._joins and self._served + count < self.count and self.rng.random() < 0.7:
            if self._got[1] < self.ends[1][self._served + count]:
                break
            count += 1
        data = b"".join(self.answers[self._served : self._served + count])
        self._served += count
        over = self._served == self.count and b"Connection: close" in self.answers[-1]
        self._emit(when, 1, data, last=over)
        self._serve(when)
