"""What became of the connections that were met, in one line of the printed account."""

from __future__ import annotations

from livefire.tables import counted
from wire.account import Account, Ledger

_START = "connections."
_HOW = {
    "closed": "closed",
    "reset": "reset",
    "idle": "idle for too long",
    "evicted": "let go for room",
    "replaced": "replaced by another of their addresses",
    "open": "open at the end",
}


def connections_line(account: Account) -> str:
    """'12 connections = 9 closed + 2 reset + 1 open at the end; 1 of them met in the middle'; "" where there was none.
    What is known of connections that a killed recorder had open is only that: `lost with a killed recorder`."""
    ledger = account.ledgers.get("connections")
    if ledger is None or not ledger.seen:
        return ""
    parts = [f"{account.notes[_START + how]:,} {text}" for how, text in _HOW.items() if account.notes.get(_START + how)]
    if ledger.drops.get("crash"):
        parts.append(f"{ledger.drops['crash']:,} lost with a killed recorder")
    if ledger.in_flight > 0:
        parts.append(f"{ledger.in_flight:,} still open")
    line = f"{counted(ledger.seen, 'connection')}{_before(ledger)} = {' + '.join(parts)}"
    middle = account.notes.get(_START + "midstream", 0)
    return f"{line}; {middle:,} of them met in the middle" if middle else line


def _before(ledger: Ledger) -> str:
    """A ring of time removes files: what was counted as begun in them may end in those that are left."""
    return f" and {-ledger.in_flight:,} of files that were removed" if ledger.in_flight < 0 else ""


def is_told(note: str) -> bool:
    """Whether `connections_line` tells of it."""
    return note.startswith(_START)
