"""What waits to be written: in order, weighed exactly, taken and put back by the portion."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from capture.ledgers import Ledgers
from capture.ready import RECORD_BYTES, Ready
from wire.records import Exchange, Request, Response

_SIZES = st.sampled_from([0, 10, 300, 4000, 15_000, 17_000, 200_000])


def exchange(number: int, size: int, answered: bool) -> Exchange:
    answer = Response(200, b"HTTP/1.1 200 OK\r\n\r\n", bytes(size)) if answered else None
    return Exchange(b"%d" % number, b"s", b"c", "a", "b", Request(b"GET / HTTP/1.1\r\n\r\n"), answer, 1, 1, 1, 1)


def memory_of(e: Exchange) -> int:
    own = RECORD_BYTES + len(e.request.head) + len(e.request.body)
    return own + (len(e.response.head) + len(e.response.body) if e.response is not None else 0)


class Waiting(RuleBasedStateMachine):
    """Beside a plain list of (exchange, messages, wire bytes, memory bytes)."""

    def __init__(self) -> None:
        super().__init__()
        self.ledgers = Ledgers()
        self.ready = Ready(self.ledgers)
        self.model: list[tuple[Exchange, int, int, int]] = []
        self.taken: list[tuple[Exchange, int, int, int]] = []
        self.emitted = [0, 0]
        self.dropped = [0, 0]
        self.count = 0

    @rule(size=_SIZES, answered=st.booleans(), told=st.booleans())
    def add(self, size: int, answered: bool, told: bool) -> None:
        self.count += 1
        one = exchange(self.count, size, answered)
        messages, wire_bytes, memory = 1 + answered, size + 40, RECORD_BYTES + size + 40 if told else memory_of(one)
        self.ready.add(one, messages, wire_bytes, memory if told else 0)
        self.model.append((one, messages, wire_bytes, memory))

    @rule(most=st.sampled_from([0, 1, 20_000, 65_536, 300_000]))
    def take(self, most: int) -> None:
        found = self.ready.take(most)
        self.taken, self.model = self.model[: len(found)], self.model[len(found) :]
        assert found == [item[0] for item in self.taken]
        assert found or not self.model, "at least one"
        total = sum(item[3] for item in self.taken)
        assert not most or total <= most or total - self.taken[0][3] <= 16_384, "at most so much, or one portion"
        assert most or not self.model, "0: all of them"
        self.emitted = [
            have + sum(item[at] for item in self.taken) for have, at in zip(self.emitted, (1, 2), strict=True)
        ]

    @rule()
    def put_back(self) -> None:
        self.ready.put_back()
        self.model = self.taken + self.model
        self.emitted = [
            have - sum(item[at] for item in self.taken) for have, at in zip(self.emitted, (1, 2), strict=True)
        ]
        self.taken = []

    @rule()
    def shed(self) -> None:
        assert self.ready.shed("no_room") == len(self.model)
        self.dropped = [
            have + sum(item[at] for item in self.model) for have, at in zip(self.dropped, (1, 2), strict=True)
        ]
        self.model = []

    @invariant()
    def weighed(self) -> None:
        ready = self.ready
        assert len(ready) == len(self.model)
        weights = [sum(item[at] for item in self.model) for at in (1, 2, 3)]
        assert [ready.messages, ready.wire_bytes, ready.memory_bytes] == weights
        assert [self.ledgers.messages.emitted, self.ledgers.bytes.emitted] == self.emitted
        assert [sum(ledger.drops.values()) for ledger in (self.ledgers.messages, self.ledgers.bytes)] == self.dropped


TestWaiting = Waiting.TestCase
TestWaiting.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
