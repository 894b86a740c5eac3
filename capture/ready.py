"""Exchanges that are complete and wait to be taken, with what they weigh in the account.

They are in flight until they are taken: an exchange counts as emitted in the same step that hands it to who writes
it, so a batch and its counts can be one frame, and can be undone together.
"""

from __future__ import annotations

from collections import deque

from capture.ledgers import Ledgers
from wire.records import Exchange

_RECORD_BYTES = 512  # of an exchange besides heads and bodies, roughly


class Ready:
    __slots__ = ("_ledgers", "_taken", "_waiting", "memory_bytes", "messages", "wire_bytes")

    def __init__(self, ledgers: Ledgers) -> None:
        self._ledgers = ledgers
        self._waiting: deque[tuple[Exchange, int, int, int]] = deque()  # exchange, messages, wire bytes, memory bytes
        self._taken: list[tuple[Exchange, int, int, int]] = []
        self.messages = 0
        self.wire_bytes = 0
        self.memory_bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, exchange: Exchange, messages: int, wire_bytes: int) -> None:
        request, response = exchange.request, exchange.response
        memory = _RECORD_BYTES + len(request.head) + len(request.body)
        if response is not None:
            memory += len(response.head) + len(response.body)
        self._waiting.append((exchange, messages, wire_bytes, memory))
        self.messages += messages
        self.wire_bytes += wire_bytes
        self.memory_bytes += memory

    def take(self, max_bytes: int = 0) -> list[Exchange]:
        """The oldest ones, at least one and at most about `max_bytes` of them (0: all), counted as emitted."""
        taken: list[tuple[Exchange, int, int, int]] = []
        total = messages = wire_bytes = 0
        waiting = self._waiting
        while waiting and (not taken or not max_bytes or total + waiting[0][3] <= max_bytes):
            item = waiting.popleft()
            taken.append(item)
            messages += item[1]
            wire_bytes += item[2]
            total += item[3]
        self._taken = taken
        self._weigh(-messages, -wire_bytes, -total)
        self._ledgers.messages.emitted += messages
        self._ledgers.bytes.emitted += wire_bytes
        return [item[0] for item in taken]

    def put_back(self) -> None:
        """Undo the last `take`: it could not be written."""
        for item in reversed(self._taken):
            self._waiting.appendleft(item)
            self._weigh(item[1], item[2], item[3])
            self._ledgers.messages.emitted -= item[1]
            self._ledgers.bytes.emitted -= item[2]
        self._taken = []

    def shed(self, reason: str) -> int:
        """Give up all that wait; how many they were."""
        count = len(self._waiting)
        self._ledgers.drop_messages(reason, self.messages)
        self._ledgers.drop_bytes(reason, self.wire_bytes)
        self._waiting.clear()
        self.messages = self.wire_bytes = self.memory_bytes = 0
        return count

    def _weigh(self, messages: int, wire_bytes: int, memory: int) -> None:
        self.messages += messages
        self.wire_bytes += wire_bytes
        self.memory_bytes += memory
