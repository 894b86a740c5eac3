"""What a recording lost: in one line, and when, from the growth of its account, batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, groupby
from pathlib import Path
from typing import Final

import msgspec

from bus.logfile import LogReader
from livefire.tables import counted, size
from wire import codec
from wire.account import UNREAD, Account, Increment
from wire.codec import RecordType

#: Drops of packets that may have held a request; those of messages count all.
_PACKETS: Final = ("kernel", "cut", "ring", "fragment", "max_cpu")
_LEAST_BYTES: Final = 64  # of a request and its answer, in what a proxy shed, or nobody could read


class Loss(msgspec.Struct, frozen=True):
    """Between these times something was lost, or not wanted. `count`: how many requests that can have been."""

    first_ns: int
    last_ns: int
    reason: str
    count: int


def lost_line(account: Account) -> str:
    """What passed and is not in the recording, and was to be; "" where there was nothing. What was shed to keep to a
    bound is told with what recording cost."""
    found = [
        f"{count:,} packets ({reason})"
        for reason, count in sorted(account.ledger("packets").drops.items())
        if reason in _PACKETS and reason != "max_cpu"
    ]
    of_bytes = account.ledger("bytes").drops
    found += [
        f"{size(of_bytes[reason])} ({reason})" for reason in ("shed", "snaplen", "bad_head") if of_bytes.get(reason)
    ]
    if room := account.ledger("messages").drops.get("no_room", 0):
        found.append(f"{room:,} messages (no_room)")
    if gaps := account.notes.get("gaps", 0):
        found.append(f"{size(account.notes.get('gap_bytes', 0))} in {counted(gaps, 'gap')}")
    return f"lost: {', '.join(found)}; livefire show --account tells more" if found else ""


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
        # Manifests and ends have times, too: when they were written, or of the last exchange.
        if header.last_ns and header.type is RecordType.EXCHANGE:
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
        elif name == "bytes" and (unread := ledger.drops.get("bad_head", 0)):
            yield "bad_head", -(-unread // _LEAST_BYTES)
    if shed := grown.notes.get(UNREAD, 0):
        yield "shed", -(-shed // _LEAST_BYTES)
    if gaps := grown.notes.get("gaps", 0):
        yield "gap", max(gaps, grown.notes.get("gap_bytes", 0) // _LEAST_BYTES)
    if count := grown.notes.get("blind", 0):
        yield "blind", count
