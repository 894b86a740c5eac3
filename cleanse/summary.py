"""What became of a recording that was cleansed, for people."""

from __future__ import annotations

import msgspec

from cleanse.sieve import LEDGER
from wire.account import Account
from wire.records import Flows, RouteTable


class CleanseResult(msgspec.Struct, frozen=True):
    account: Account  # ledger "messages"
    routes: RouteTable
    flows: Flows
    exchanges: int
    sessions: int
    first_ns: int  # epoch ns at which offset 0 is
    last_offset_ns: int
    doubts: tuple[str, ...] = ()  # what is wrong with the raw recording, in one line each


def summary_lines(result: CleanseResult) -> list[str]:
    """What was kept and what was left out, for people."""
    ledger = result.account.ledger(LEDGER)
    routes = len(result.routes.routes)
    lines = [
        f"kept {result.exchanges:,} of {_count(ledger.seen, 'exchange')} in {_count(result.sessions, 'session')}, "
        f"{_count(routes, 'route')}, {_count(len(result.flows.flows), 'flow')}"
    ]
    dropped = sorted((ledger.intentional | ledger.drops).items(), key=lambda item: (-item[1], item[0]))
    if dropped:
        lines.append("left out: " + ", ".join(f"{count:,} {reason}" for reason, count in dropped))
    if damaged := result.account.notes.get("unreadable_batches", 0):
        lines.append(f"the recording is damaged in {_count(damaged, 'place')}")
    return lines


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}" + ("" if n == 1 else "s")
