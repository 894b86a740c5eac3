"""Exchanges that are complete and wait to be taken, with what they weigh in the account.

They are in flight until they are taken: an exchange counts as emitted in the same step that hands it to who writes
it, so a batch and its counts can be one frame, and can be undone together. They are weighed and taken by the portion:
one by one would cost a tenth of what recording an exchange does.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

from capture.ledgers import Ledgers
from wire.records import Exchange

RECORD_BYTES: Final = 512  # of an exchange besides heads and bodies, roughly
_PORTION_BYTES: Final = 16 << 10


class _Portion(NamedTuple):
    exchanges: list[Exchange]
    messages: int
    wire_bytes: int
    memory_bytes: int


class Ready:
    __slots__ = (
        "_ledgers", "_memory_before", "_messages_before", "_open", "_taken", "_waiting", "_wire_before",
        "memory_bytes", "messages", "wire_bytes",
    )  # fmt: skip

    def __init__(self, ledgers: Ledgers) -> None:
        self._ledgers = ledgers
        self._waiting: deque[_Portion] = deque()
        self._open: list[Exchange] = []  # the portion that grows
        self._messages_before = self._wire_before = self._memory_before = 0  # what the others weigh
        self._taken: list[_Portion] = []
        self.messages = 0
        self.wire_bytes = 0
        self.memory_bytes = 0

    def __len__(self) -> int:
        return sum(len(portion.exchanges) for portion in self._waiting) + len(self._open)

    def add(self, exchange: Exchange, messages: int, wire_bytes: int, memory_bytes: int = 0) -> None:
        """`memory_bytes`: what it takes while it waits, where that is known."""
        memory = memory_bytes or _memory_of(exchange)
        if self.memory_bytes + memory - self._memory_before > _PORTION_BYTES:  # a large one has its own
            self._shut()
        self._open.append(exchange)
        self.messages += messages
        self.wire_bytes += wire_bytes
        self.memory_bytes += memory

    def _shut(self) -> None:
        if self._open:
            self._waiting.append(
                _Portion(
                    self._open,
                    self.messages - self._messages_before,
                    self.wire_bytes - self._wire_before,
                    self.memory_bytes - self._memory_before,
                )
            )
            self._open = []
            self._note_before()

    def _note_before(self) -> None:
        self._messages_before, self._wire_before, self._memory_before = (
            self.messages, self.wire_bytes, self.memory_bytes,
        )  # fmt: skip

    def take(self, max_bytes: int = 0) -> list[Exchange]:
        """The oldest ones, at least one and at most about `max_bytes` of them (0: all), counted as emitted."""
        self._shut()
        exchanges: list[Exchange] = []
        self._taken = []
        total = 0
        waiting = self._waiting
        while waiting and (not exchanges or not max_bytes or total + waiting[0].memory_bytes <= max_bytes):
            portion = waiting.popleft()
            self._taken.append(portion)
            exchanges += portion.exchanges
            total += portion.memory_bytes
            self._emit(portion, 1)
        self._note_before()
        return exchanges

    def put_back(self) -> None:
        """Undo the last `take`: it could not be written."""
        self._shut()
        for portion in reversed(self._taken):
            self._waiting.appendleft(portion)
            self._emit(portion, -1)
        self._taken = []
        self._note_before()

    def shed(self, reason: str) -> int:
        """Give up all that wait; how many they were."""
        count = len(self)
        self._ledgers.drop_messages(reason, self.messages)
        self._ledgers.drop_bytes(reason, self.wire_bytes)
        self._waiting.clear()
        self._open = []
        self.messages = self.wire_bytes = self.memory_bytes = 0
        self._note_before()
        return count

    def _emit(self, portion: _Portion, sign: int) -> None:
        self.messages -= sign * portion.messages
        self.wire_bytes -= sign * portion.wire_bytes
        self.memory_bytes -= sign * portion.memory_bytes
        self._ledgers.messages.emitted += sign * portion.messages
        self._ledgers.bytes.emitted += sign * portion.wire_bytes


def _memory_of(exchange: Exchange) -> int:
    request, response = exchange.request, exchange.response
    memory = RECORD_BYTES + len(request.head) + len(request.body)
    return memory if response is None else memory + len(response.head) + len(response.body)
