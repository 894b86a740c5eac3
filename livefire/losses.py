"""When a recording lost what: from the growth of its account, batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, groupby
from pathlib import Path
from typing import Final

import msgspec

from bus.logfile import LogReader
from wire import codec
from wire.account import UNREAD, Increment

#: Drops of packets that may have held a request; those of messages count all.
_PACKETS: Final = ("kernel", "cut", "ring", "fragment", "max_cpu")
_LEAST_BYTES: Final = 64  # of a request and its answer, in what a proxy shed unread


class Loss(msgspec.Struct, frozen=True):
    """Between these times something was lost, or not wanted. `count`: how many requests that can have been."""

    first_ns: int
    last_ns: int
    reason: str
    count: int


def losses(parts: Sequence[Path]) -> list[Loss]:
    """From the growth of the account, batch by batch: when was what lost. `parts`: the recording's files, in order."""
    return [loss for _, of_one in groupby(parts, _process_of) for loss in _losses(of_one)]


def _process_of(part: Path) -> str:
    """What the files of one recorder begin with."""
    return part.name.partition(".")[0]


def _losses(parts: Iterable[Path]) -> list[Loss]:
    found: list[Loss] = []
    open_: list[tuple[int, str, int]] = []
    before = 0
    for header in chain.from_iterable(map(_headers, parts)):
        open_ += [(before, reason, count) for reason, count in _lost(header.increment)]
        if header.last_ns:
            found += [Loss(start, header.last_ns, reason, count) for start, reason, count in open_]
            open_, before = [], max(before, header.first_ns)
    return found + [Loss(start, 1 << 63, reason, count) for start, reason, count in open_]


def _headers(part: Path) -> Iterator[codec.Header]:
    with LogReader(part) as reader:
        while messages := reader.read():
            for message in messages:
                with suppress(codec.CodecError):
                    yield codec.decode_header(message.data)


def _lost(grown: Increment) -> Iterator[tuple[str, int]]:
    for name, ledger in grown.ledgers.items():
        if name == "messages":
            yield from ledger.drops.items()
            # A request and its answer are two messages.
            yield from ((reason, (count + 1) // 2) for reason, count in ledger.intentional.items())
        elif name == "packets":
            yield from ((reason, count) for reason, count in ledger.drops.items() if reason in _PACKETS)
    if unread := grown.notes.get(UNREAD, 0):
        yield "shed", -(-unread // _LEAST_BYTES)
    for note in ("blind", "gaps"):
        if count := grown.notes.get(note, 0):
            yield note.removesuffix("s"), count
