"""A recording beside a server's access log: what the server served that the recording lacks, and the other way round.

Loss is judged by the server's word, not by the recorder's own counters; those only say why it was likely lost. Requests
are matched as multisets of (method, target, status), in the order of time within a tolerance: a log has times of ends,
often of seconds. Targets of the log are masked with the recording's key before they are compared.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec

from capture.bpf import Network, networks
from capture.entry import NOBODY, Entry
from livefire.losses import Loss
from livefire.matching import Served, end_of, match, pairs, start_of
from mask.tokens import is_token
from wire import head as heads
from wire.records import Exchange, Fault, Manifest

_SECOND: Final = 1_000_000_000
_NO_HOST: Final = NOBODY.rpartition(":")[0]
#: Reasons of what lies outside of what both could see: told, and no difference.
_ASKED: Final = frozenset(
    ("stress", "not_sampled", "not_selected", "not_method", "not_path", "not_header", "not_cookie")
)
_OUTSIDE: Final = frozenset(("before_recording", "after_recording", "between_recordings", "edge", "filtered"))
SCOPE: Final = _ASKED | _OUTSIDE | {"before_log", "after_log"}

_QUARTER: Final = 900 * _SECOND
_MOST_QUARTERS: Final = 4 * 14  # zones are no further apart from UTC
_TRIED: Final = 1000  # lines of the log
_TRIED_OF_KEY: Final = 200
_LIKELY: Final = {name: rank for rank, name in enumerate(("blind", "kernel", "shed", "no_room", "gap"))}

#: nginx: the client closed (499), it closed itself without a word (444); ALB: the client closed (460).
_NO_ANSWER: Final = frozenset((444, 460, 499))
_ELSEWHERE: Final = -1  # as a status: answers pass where they cannot be seen (a gateway's mirror)


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
    requests_only: int = 0  # of the recorded ones: matched without a status, as there is none

    @property
    def differences(self) -> list[Found]:
        return [one for one in self.found if one.reason not in SCOPE]


def of_entry(entry: Entry, head: bytes, name: str) -> Served:
    """`head`: the request's, masked as the recording is."""
    end = entry.response_end_ns or entry.request_start_ns
    wide = _SECOND - 1 if "times_of_seconds" in entry.notes else 1_000_000
    status = entry.response.status if entry.response is not None else 0
    host, _, port = entry.server.rpartition(":")
    key = (heads.method_of(head), _target(head), status)
    return Served(
        key, end, end + wide, entry.request_start_ns, name, entry.client,
        "" if host == _NO_HOST else host.strip("[]"), "" if port == "0" else port,
        entry.protocol,
    )  # fmt: skip


def of_exchange(exchange: Exchange) -> Served | None:
    """None for an answer whose request was not seen."""
    head = exchange.request.head
    if not head:
        return None
    end = exchange.response_end_ns or exchange.response_start_ns or exchange.request_end_ns
    unseen = 0 if Fault.UNFINISHED in exchange.faults else _ELSEWHERE
    status = exchange.response.status if exchange.response is not None else unseen
    key = (heads.method_of(head), _target(head), status)
    return Served(key, end, end, exchange.request_start_ns or end, exchange.exchange_id.hex(), exchange.server)


def is_tunnel(served: Served) -> bool:
    """Importers leave it out of a log, so that no recorded one could match."""
    return served.key[0] == b"CONNECT"


def _target(head: bytes) -> bytes:
    """In origin-form: who wrote the log may have logged it so."""
    target = heads.target_of(head)
    path = heads.path_of(target)
    query = heads.query_of(target)
    return (path + b"?" + query if b"?" in target else path) if path else target


class Span(msgspec.Struct, frozen=True):
    """What the recorder could see: from when to when, and of whom. Empty: of all."""

    first_ns: int
    last_ns: int
    ports: frozenset[str] = frozenset()
    hosts: frozenset[str] = frozenset()
    not_hosts: frozenset[str] = frozenset()
    servers: frozenset[str] = frozenset()  # addresses of which something was recorded
    share: float = 1.0  # of production that passes where it was made


def span_of(
    manifest: Manifest, recorded: Sequence[Served], *, in_full: bool, began_ns: int = 0, stopped_ns: int = 0
) -> Span:
    """A live recording begins when its file does, and ends when it was stopped; an import with its first request and
    its last. `in_full`: it lasted as long as was asked for, where `stopped_ns` is not told."""
    first = min((served.start_ns for served in recorded), default=manifest.created_ns)
    last = max((served.last_ns for served in recorded), default=manifest.created_ns)
    settings: dict[str, Any] = manifest.settings
    if "for_ns" in settings:  # it is live
        began = began_ns or manifest.created_ns
        first = min(first, began)
        last = max(last, stopped_ns or began + (int(settings["for_ns"] or 0) if in_full else 0))

    def names(key: str) -> frozenset[str]:
        value = settings.get(key)
        return frozenset(map(str, value)) if isinstance(value, list | tuple) else frozenset()

    servers = frozenset(_address(served.peer) for served in recorded if served.key[2] != _ELSEWHERE)
    share = settings.get("scale", 1.0)
    return Span(first, last, names("ports"), names("hosts"), names("not_hosts"), servers,
                share if isinstance(share, float) else 1.0)  # fmt: skip


def _address(text: str) -> str:
    """Of `ip:port`."""
    return text.rpartition(":")[0].strip("[]")


def reconcile(
    logged: Sequence[Served], recorded: Sequence[Served], spans: Sequence[Span], lost: Sequence[Loss], tolerance_ns: int
) -> Result:
    """Match both; say of the rest why. `spans`: of each recording."""
    rec = [served for served in recorded if served.key[2] != _ELSEWHERE]
    asked = [served for served in recorded if served.key[2] == _ELSEWHERE]
    log, asked, matched = _match_asked(logged, asked, tolerance_ns)
    # A log has times of ends; Apache's are of the begins, and what is left may be that.
    for at in (end_of, start_of):
        log, rec, count = match(log, rec, tolerance_ns, at, lambda served: served.key)
        matched += count
    # Who asked went before there was an answer: the recording has none either, or what was under way to it.
    left = [one for one in log if one.key[2] in _NO_ANSWER]
    _, rec, gone_before = pairs(left, rec, tolerance_ns, lambda served: served.key[:2])
    matched += len(gone_before)
    both = {id(one) for one, _ in gone_before}
    log = [one for one in log if id(one) not in both]
    log, rec, other = pairs(log, rec, tolerance_ns, lambda served: served.key[:2])
    found = [Found("log", one, "unanswered" if not two.key[2] else "other_status") for one, two in other]
    hidden = [served for served in rec if _holds_tokens(served.key[1])]
    rec = [served for served in rec if not _holds_tokens(served.key[1])]
    log, hidden, shaped = pairs(
        log, hidden, tolerance_ns, lambda served: (served.key[0], _shape(served.key[1]), served.key[2])
    )
    rec += hidden
    found += [Found("log", one, "masked") for one, _ in shaped]
    # What was under way as the recording ended has an end in the log alone, however much later.
    stopped = max(span.last_ns for span in spans)
    late = [served for served in log if served.last_ns > stopped >= served.start_ns - tolerance_ns]
    open_ = [served for served in rec if not served.key[2]]
    _, _, ended = pairs(late, open_, 1 << 62, lambda served: served.key[:2])
    found += [Found("log", one, "edge") for one, _ in ended]
    over = {id(served) for pair in ended for served in pair}
    log, rec = [one for one in log if id(one) not in over], [one for one in rec if id(one) not in over]
    # What may have been under way as it began or ended needs no reason: it is to use none up.
    log.sort(key=lambda one: (_at_an_edge(Found("log", one, "unknown"), spans, tolerance_ns), one.first_ns))
    budget = [loss.count for loss in lost]
    found += [Found("log", one, _why_not_recorded(one, spans, lost, budget, tolerance_ns)) for one in log]
    # A log is in the order of its ends, so what ended before its first line is in the file before.
    first = min((served.last_ns for served in logged), default=0)
    last = max((served.first_ns for served in logged), default=0)
    rec += asked
    gone = {served.name for served in rec}
    servers = {served.peer for served in recorded if served.name not in gone}
    found += [Found("recording", one, _why_not_logged(one, first, last, servers)) for one in rec]
    for one in found:
        if one.side == "log" and _at_an_edge(one, spans, tolerance_ns):
            one.reason = "edge"
    found.sort(key=lambda one: one.served.first_ns)
    alone = sum(served.key[2] == _ELSEWHERE for served in recorded)
    return Result(len(logged), len(recorded), matched, found, alone)


def _match_asked(
    logged: Sequence[Served], asked: list[Served], tolerance_ns: int
) -> tuple[list[Served], list[Served], int]:
    """Requests alone: they have no status, and came while the server was at it."""
    if not asked:
        return list(logged), asked, 0
    wide = [msgspec.structs.replace(one, first_ns=min(one.start_ns, one.first_ns)) for one in logged]
    whole = {id(one): served for one, served in zip(wide, logged, strict=True)}
    log, asked, both = pairs(wide, asked, tolerance_ns, lambda served: served.key[:2])
    return [whole[id(one)] for one in log], asked, len(both)


def clock_apart_ns(logged: Sequence[Served], recorded: Sequence[Served], tolerance_ns: int) -> int:
    """By how many whole quarters of an hour the log's clock is ahead, when with that most would match; else 0."""
    log = [msgspec.structs.replace(served, start_ns=served.first_ns) for served in logged[-_TRIED:]]
    found: Counter[int] = Counter()
    times: dict[Any, list[int]] = defaultdict(list)
    for served in recorded:
        if len(of_key := times[served.key]) < _TRIED_OF_KEY:
            of_key.append(served.last_ns)
    for served in log:
        near = {round((served.first_ns - at) / _QUARTER) for at in times.get(served.key, ())}
        found.update(n for n in near if 0 < abs(n) <= _MOST_QUARTERS)
    for quarters, _ in found.most_common(3):
        moved = [
            msgspec.structs.replace(
                served, first_ns=served.first_ns - quarters * _QUARTER, last_ns=served.last_ns - quarters * _QUARTER
            )
            for served in log
        ]
        if match(moved, recorded, tolerance_ns, end_of, lambda served: served.key)[2] * 2 > len(log):
            return quarters * _QUARTER
    return 0


def _holds_tokens(target: bytes) -> bool:
    return any(is_token(part.decode("latin-1")) for part in re.split(rb"[/?&=;]", target) if len(part) >= 8)


def _shape(target: bytes) -> bytes:
    """The path without what masking may change, and without the query."""
    path = target.partition(b"?")[0]
    return b"/".join(b"*" if len(part) >= 6 and not part.isalpha() else part for part in path.split(b"/"))


def _why_outside(one: Served, span: Span, tolerance_ns: int) -> str:
    """Why one recording was not to have it; "" when it was."""
    if one.last_ns < span.first_ns:
        return "before_recording"
    if one.start_ns > span.last_ns + tolerance_ns or one.first_ns > span.last_ns + tolerance_ns:
        return "after_recording"
    if one.port and span.ports and one.port not in span.ports:
        return "filtered"
    client = _address(one.peer)
    if span.not_hosts and (_lies_in(client, span.not_hosts) or _lies_in(one.server, span.not_hosts)):
        return "filtered"
    # --host names a client or a server. Of a server that the log does not tell, what was recorded is looked at.
    servers = (one.server,) if one.server else span.servers
    if span.hosts and not any(_lies_in(address, span.hosts) for address in (client, *servers)):
        return "filtered"
    return ""


def _why_not_recorded(
    one: Served, spans: Sequence[Span], lost: Sequence[Loss], budget: list[int], tolerance_ns: int
) -> str:
    """A loss explains as many requests as it was things, and no more: `budget` is what is left of each."""
    outside = [_why_outside(one, span, tolerance_ns) for span in spans]
    if all(outside):
        when = {why for why in outside if why != "filtered"}
        return "filtered" if "filtered" in outside else "between_recordings" if len(when) > 1 else outside[0]
    within = [span for span, why in zip(spans, outside, strict=True) if not why]
    servers = frozenset().union(*(span.servers for span in within))
    if one.server and servers and one.server not in servers:
        return "other_server"
    near = [
        at
        for at, loss in enumerate(lost)
        if budget[at] > 0
        and loss.first_ns - tolerance_ns <= one.last_ns
        and one.start_ns <= loss.last_ns + tolerance_ns
    ]
    if not near:
        if any(span.share >= 1 for span in within):
            return "unknown" if one.protocol == "http/1" else "not_http1"
        return "other_host"
    best = min(near, key=lambda at: (lost[at].reason in _ASKED, _LIKELY.get(lost[at].reason, len(_LIKELY))))
    if lost[best].reason != "blind":
        budget[best] -= 1
    return lost[best].reason


def _at_an_edge(found: Found, spans: Sequence[Span], tolerance_ns: int) -> bool:
    return any(_at_the_edge(found, span, tolerance_ns) for span in spans)


def _at_the_edge(found: Found, span: Span, tolerance_ns: int) -> bool:
    """Whether it was under way as the recording began or ended, or came after: nobody can say that it is missing."""
    served = found.served
    if found.reason == "unpaired_response":
        return served.first_ns <= span.first_ns + tolerance_ns
    ends = span.last_ns < served.last_ns and served.start_ns <= span.last_ns + tolerance_ns
    if found.reason == "unanswered":
        return ends
    # Of a line with seconds only, the second in which the recording began or ended may have been the other part.
    begins = min(served.start_ns, served.first_ns) < span.first_ns <= served.last_ns
    return found.reason in ("unknown", "not_http1", "other_host") and (begins or ends)


def _lies_in(address: str, texts: frozenset[str]) -> bool:
    try:
        return any(ipaddress.ip_address(address) in network for network in _networks(texts))
    except ValueError:
        return False


@lru_cache(8)
def _networks(texts: frozenset[str]) -> list[Network]:
    return networks(tuple(texts))


def _why_not_logged(one: Served, first_ns: int, last_ns: int, servers: set[str]) -> str:
    if one.last_ns <= first_ns:
        return "before_log"
    if one.last_ns >= last_ns:
        return "after_log"
    if servers and one.peer not in servers:
        return "other_server"
    return "unknown" if one.key[2] else "unanswered"
