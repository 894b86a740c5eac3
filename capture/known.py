"""What heads mean that are plain: strict, with a length that is announced or none at all.

What a block of header fields means is remembered, within bounds: clients and servers repeat them. Where they hardly
ever repeat, nothing is looked up for a while.
"""

from __future__ import annotations

from typing import Final

from capture.message import Kind, is_strict

MAX_CACHED: Final = 512
_REST: Final = 8 * MAX_CACHED  # heads for which nothing is looked up, after a time in which that was of no use
MAX_CACHED_LENGTH: Final = 4096
_END: Final = b"\r\n\r\n"


class Told:
    """What a block of fields means."""

    __slots__ = ("block", "length", "low")

    def __init__(self, length: int, low: bytes, block: bytes) -> None:
        self.length = length  # that is announced, -1 where none is
        self.low = low  # the block in lower case, from the newline before it
        self.block = block  # and as it is


Facts = Told | None  # None: not plain
_UNSEEN: Final = Told(-2, b"", b"")


class KnownHeads:
    """What blocks of fields mean, of those seen lately. Where they hardly ever repeat, it rests."""

    __slots__ = ("_last", "_max_head", "facts", "rest", "used")

    def __init__(self, max_head: int) -> None:
        self._max_head = max_head
        self._last = Told(-1, b"", b"\0")  # of the head before: often it comes again, and comparing is cheaper
        self.facts: dict[bytes, Facts] = {}
        self.used = 0
        self.rest = 0

    def learn(self, block: bytes, facts: Facts) -> Facts:
        if len(block) <= MAX_CACHED_LENGTH:
            if len(self.facts) >= MAX_CACHED:
                if self.used < 2 * MAX_CACHED:  # each was used once when it was learned
                    self.rest = _REST
                self.used = 0
                self.facts.clear()
            self.facts[block] = facts
        return facts

    def head(self, kind: Kind, data: bytes, at: int, size: int) -> tuple[int, Told] | None:
        """Where the head ends that `data` begins with, its fields at `at` (a newline), and what they mean, if they are
        plain, and it is whole and no longer than allowed."""
        end = size
        facts: Facts = _UNSEEN
        last = self._last
        if data.startswith(last.block, at):
            end = at + len(last.block)
            if end > self._max_head:
                return None
            self.used += 1
            return end, last
        if self.rest:
            end = data.find(_END, at - 1) + 4
            if end < 4:
                return None
            self.rest -= 1
            facts = _facts_of(kind, data[:end], data[at:end])
        elif data.endswith(_END):
            facts = self.facts.get(data[at:], _UNSEEN)
        if facts is _UNSEEN:
            end = data.find(_END, at - 1) + 4
            if end < 4:
                return None
            fields = data[at:end]
            facts = self.facts.get(fields, _UNSEEN)
            if facts is _UNSEEN:
                facts = self.learn(fields, _facts_of(kind, data[:end], fields))
        if facts is None or end > self._max_head:
            return None
        self.used += 1
        self._last = facts
        return end, facts


def _facts_of(kind: Kind, head: bytes, block: bytes) -> Facts:
    """What the fields mean, for which `is_strict` and `frame` of the general path stand."""
    low = block.lower()
    if low.find(b"\ntransfer-encoding") >= 0 or not is_strict(kind, head):
        return None
    at = low.find(b"\ncontent-length:")
    if at < 0:
        return Told(-1, low, block) if low.find(b"\ncontent-length") < 0 else None
    value = low[at + 16 : low.find(b"\r", at)].strip(b" \t")
    if not value.isdigit() or len(value) > 18 or low.find(b"\ncontent-length", at + 16) >= 0:
        return None
    return Told(int(value), low, block)
