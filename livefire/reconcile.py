"""A recording beside a server's access log: what the server served that the recording lacks, and the other way round.

Loss is judged by the server's word, not by the recorder's own counters; those only say why it was likely lost. Requests
are matched as multisets of (method, target, status), in the order of time within a tolerance: a log has times of ends,
often of seconds. Targets of the log are masked with the recording's key before they are compared.
"""

from __future__ import annotations

import ipaddress
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import chain, groupby
from pathlib import Path
from typing import Any, Final

import msgspec

from bus.logfile import LogReader
from capture.bpf import Network, networks
from capture.entry import Entry
from mask.tokens import is_token
from wire import codec
from wire import head as heads
from wire.account import Increment
from wire.records import Exchange, Manifest

_SECOND: Final = 1_000_000_000
#: Reasons of what lies outside of what both could see: told, and no difference.
_ASKED: Final = frozenset(
    ("stress", "not_sampled", "not_selected", "not_method", "not_path", "not_header", "not_cookie")
)
SCOPE: Final = _ASKED | {"before_recording", "after_recording", "edge", "filtered", "before_log", "after_log"}
#: Drops of packets that may have held a request; those of messages count all.
_PACKETS: Final = ("kernel", "cut", "ring", "fragment")

_LIKELY: Final = {name: rank for rank, name in enumerate(("blind", "kernel", "shed", "no_room", "gap"))}

Key = tuple[bytes, bytes, int]  # method, target, status (0: none was seen)


class Served(msgspec.Struct, frozen=True):
    """A request of the log, or of the recording."""

    key: Key
    first_ns: int  # when it may have ended, from .. to; a recording's own times are exact
    last_ns: int
    start_ns: int
    name: str  # where it is: "access.log:17", or the exchange's id
    peer: str = ""  # the client of the log's line, the server of the recording's exchange
    port: str = ""  # the server's, where the log tells


class Loss(msgspec.Struct, frozen=True):
    """Between these times something was lost, or not wanted. `count`: how many requests that can have been."""

    first_ns: int
    last_ns: int
    reason: str
    count: int


class Found(msgspec.Struct):
    """What one side has and the other lacks, with the likely reason."""

    side: str  # "log" or "recording": who has it
    served: Served
    reason: str


class Result(msgspec.Struct):
    logged: int
    recorded: int
    matched: int
    found: list[Found]

    @property
    def differences(self) -> list[Found]:
        return [one for one in self.found if one.reason not in SCOPE]


def of_entry(entry: Entry, head: bytes, name: str) -> Served:
    """`head`: the request's, masked as the recording is."""
    end = entry.response_end_ns or entry.request_start_ns
    wide = _SECOND - 1 if "times_of_seconds" in entry.notes else 1_000_000
    status = entry.response.status if entry.response is not None else 0
    port = entry.server.rpartition(":")[2]
    key = (heads.method_of(head), _target(head), status)
    return Served(key, end, end + wide, entry.request_start_ns, name, entry.client, "" if port == "0" else port)


def of_exchange(exchange: Exchange) -> Served | None:
    """None for an answer whose request was not seen."""
    head = exchange.request.head
    if not head:
        return None
    end = exchange.response_end_ns or exchange.response_start_ns or exchange.request_end_ns
    key = (heads.method_of(head), _target(head), exchange.response.status if exchange.response is not None else 0)
    return Served(key, end, end, exchange.request_start_ns or end, exchange.exchange_id.hex(), exchange.server)


def _target(head: bytes) -> bytes:
    """In origin-form: who wrote the log may have logged it so."""
    target = heads.target_of(head)
    path = heads.path_of(target)
    query = heads.query_of(target)
    return (path + b"?" + query if b"?" in target else path) if path else target


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
    for note in ("blind", "gaps"):
        if count := grown.notes.get(note, 0):
            yield note.removesuffix("s"), count


class Span(msgspec.Struct, frozen=True):
    """What the recorder could see: from when to when, and of whom. Empty: of all."""

    first_ns: int
    last_ns: int
    ports: frozenset[str] = frozenset()
    hosts: frozenset[str] = frozenset()
    not_hosts: frozenset[str] = frozenset()


def span_of(manifest: Manifest, recorded: Sequence[Served], *, in_full: bool) -> Span:
    """A live recording begins when its file does; an import with its first request. `in_full`: it lasted as long as was
    asked for."""
    first = min((served.start_ns for served in recorded), default=manifest.created_ns)
    last = max((served.last_ns for served in recorded), default=manifest.created_ns)
    settings: dict[str, Any] = manifest.settings
    if "for_ns" in settings:  # it is live
        first = min(first, manifest.created_ns)
        last = max(last, manifest.created_ns + (int(settings["for_ns"] or 0) if in_full else 0))

    def names(key: str) -> frozenset[str]:
        value = settings.get(key)
        return frozenset(map(str, value)) if isinstance(value, list | tuple) else frozenset()

    return Span(first, last, names("ports"), names("hosts"), names("not_hosts"))


def reconcile(
    logged: Sequence[Served], recorded: Sequence[Served], span: Span, lost: Sequence[Loss], tolerance_ns: int
) -> Result:
    """Match both; say of the rest why."""
    log, rec = list(logged), list(recorded)
    matched = 0
    # A log has times of ends; Apache's are of the begins, and what is left may be that.
    for at in (_end, _start):
        log, rec, count = _match(log, rec, tolerance_ns, at, lambda served: served.key)
        matched += count
    log, rec, other = _pairs(log, rec, tolerance_ns, lambda served: served.key[:2])
    found = [Found("log", one, "unanswered" if not two.key[2] else "other_status") for one, two in other]
    hidden = [served for served in rec if _holds_tokens(served.key[1])]
    rec = [served for served in rec if not _holds_tokens(served.key[1])]
    log, hidden, shaped = _pairs(
        log, hidden, tolerance_ns, lambda served: (served.key[0], _shape(served.key[1]), served.key[2])
    )
    rec += hidden
    found += [Found("log", one, "masked") for one, _ in shaped]
    budget = [loss.count for loss in lost]
    found += [Found("log", one, _why_not_recorded(one, span, lost, budget, tolerance_ns)) for one in log]
    first = min((served.first_ns for served in logged), default=0)
    last = max((served.last_ns for served in logged), default=0)
    gone = {served.name for served in rec}
    servers = {served.peer for served in recorded if served.name not in gone}
    found += [Found("recording", one, _why_not_logged(one, first, last, servers, tolerance_ns)) for one in rec]
    for one in found:
        if one.side == "log" and _at_the_edge(one, span, tolerance_ns):
            one.reason = "edge"
    found.sort(key=lambda one: one.served.first_ns)
    return Result(len(logged), len(recorded), matched, found)


def _end(served: Served) -> tuple[int, int]:
    return served.first_ns, served.last_ns


def _start(served: Served) -> tuple[int, int]:
    return served.start_ns, served.start_ns


def _match(
    log: Iterable[Served],
    rec: Iterable[Served],
    tolerance_ns: int,
    at: Callable[[Served], tuple[int, int]],
    key: Callable[[Served], Any],
) -> tuple[list[Served], list[Served], int]:
    left_log, left_rec, pairs = _matched(log, rec, tolerance_ns, at, key)
    return left_log, left_rec, len(pairs)


def _pairs(
    log: Iterable[Served], rec: Iterable[Served], tolerance_ns: int, key: Callable[[Served], Any]
) -> tuple[list[Served], list[Served], list[tuple[Served, Served]]]:
    return _matched(log, rec, tolerance_ns, _end, key)


def _matched(
    log: Iterable[Served],
    rec: Iterable[Served],
    tolerance_ns: int,
    at: Callable[[Served], tuple[int, int]],
    key: Callable[[Served], Any],
) -> tuple[list[Served], list[Served], list[tuple[Served, Served]]]:
    """What is left of both, and the pairs: of each key in the order of time, which pairs as many as can be."""
    groups: dict[Any, tuple[list[Served], list[Served]]] = defaultdict(lambda: ([], []))
    for side, many in enumerate((log, rec)):
        for served in many:
            groups[key(served)][side].append(served)
    left_log: list[Served] = []
    left_rec: list[Served] = []
    pairs: list[tuple[Served, Served]] = []
    for ones, others in groups.values():
        ones.sort(key=_end)
        others.sort(key=lambda served: at(served)[0])
        i = j = 0
        while i < len(ones) and j < len(others):
            moment = at(others[j])[0]
            if ones[i].last_ns + tolerance_ns < moment:
                left_log.append(ones[i])
                i += 1
            elif moment < ones[i].first_ns - tolerance_ns:
                left_rec.append(others[j])
                j += 1
            else:
                pairs.append((ones[i], others[j]))
                i, j = i + 1, j + 1
        left_log += ones[i:]
        left_rec += others[j:]
    return left_log, left_rec, pairs


def _holds_tokens(target: bytes) -> bool:
    return any(is_token(part.decode("latin-1")) for part in re.split(rb"[/?&=;]", target) if len(part) >= 8)


def _shape(target: bytes) -> bytes:
    """The path without what masking may change, and without the query."""
    path = target.partition(b"?")[0]
    return b"/".join(b"*" if len(part) >= 6 and not part.isalpha() else part for part in path.split(b"/"))


def _why_not_recorded(one: Served, span: Span, lost: Sequence[Loss], budget: list[int], tolerance_ns: int) -> str:
    """A loss explains as many requests as it was things, and no more: `budget` is what is left of each."""
    if one.last_ns < span.first_ns:
        return "before_recording"
    if one.start_ns > span.last_ns + tolerance_ns or one.first_ns > span.last_ns + tolerance_ns:
        return "after_recording"
    client = one.peer.rpartition(":")[0].strip("[]")
    if one.port and span.ports and one.port not in span.ports:
        return "filtered"
    if span.not_hosts and _lies_in(client, span.not_hosts):
        return "filtered"
    near = [
        at
        for at, loss in enumerate(lost)
        if budget[at] > 0
        and loss.first_ns - tolerance_ns <= one.last_ns
        and one.start_ns <= loss.last_ns + tolerance_ns
    ]
    if not near:
        return "unknown"
    best = min(near, key=lambda at: (lost[at].reason in _ASKED, _LIKELY.get(lost[at].reason, len(_LIKELY))))
    if lost[best].reason != "blind":
        budget[best] -= 1
    return lost[best].reason


def _at_the_edge(found: Found, span: Span, tolerance_ns: int) -> bool:
    """Whether it was under way as the recording began or ended, or came after: nobody can say that it is missing."""
    if found.reason == "unpaired_response":
        return found.served.first_ns <= span.first_ns + tolerance_ns
    if found.reason == "unanswered":
        return found.served.last_ns > span.last_ns
    return found.reason == "unknown" and found.served.first_ns > span.last_ns


def _lies_in(address: str, texts: frozenset[str]) -> bool:
    try:
        return any(ipaddress.ip_address(address) in network for network in _networks(texts))
    except ValueError:
        return False


@lru_cache(8)
def _networks(texts: frozenset[str]) -> list[Network]:
    return networks(tuple(texts))


def _why_not_logged(one: Served, first_ns: int, last_ns: int, servers: set[str], tolerance_ns: int) -> str:
    if one.last_ns < first_ns - tolerance_ns:
        return "before_log"
    if one.last_ns > last_ns + tolerance_ns:
        return "after_log"
    if servers and one.peer not in servers:
        return "other_server"
    return "unknown" if one.key[2] else "unanswered"
