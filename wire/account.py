"""Accounts: what a stage saw, and what became of it, exactly.

Each ledger holds `seen = emitted + sum(drops) + in_flight`. A stage counts on an `Account`, and takes
the growth since the last batch with `take()`, which is written in the same frame as the records that it
counts: a killed process leaves both or neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec


class Ledger(msgspec.Struct):
    """One balance. Counts are of the ledger's own unit (packets, bytes, messages, shots)."""

    seen: int = 0
    emitted: int = 0
    in_flight: int = 0  # a gauge: the latest value holds
    drops: dict[str, int] = msgspec.field(default_factory=dict)
    intentional: dict[str, int] = msgspec.field(default_factory=dict)  # drops that were asked for

    def drop(self, reason: str, count: int = 1, *, intentional: bool = False) -> None:
        side = self.intentional if intentional else self.drops
        side[reason] = side.get(reason, 0) + count

    @property
    def dropped(self) -> int:
        return sum(self.drops.values()) + sum(self.intentional.values())

    @property
    def difference(self) -> int:
        """0 when the ledger balances; positive when something seen is unaccounted for."""
        return self.seen - self.emitted - self.dropped - self.in_flight

    def add(self, other: Ledger) -> None:
        """Add what was counted since; gauges are replaced."""
        self.seen += other.seen
        self.emitted += other.emitted
        self.in_flight = other.in_flight
        for mine, theirs in ((self.drops, other.drops), (self.intentional, other.intentional)):
            for reason, count in theirs.items():
                mine[reason] = mine.get(reason, 0) + count


#: Drops of capture that are given up at random, by hash or by the moment: for want of room, or to keep to a bound.
SHED = frozenset({"no_room", "shed", "max_cpu", "max_memory", "max_rate"})


#: A note of capture: bytes of connections that a proxy or a service shed unread; drops of the ledger `bytes`, too.
UNREAD = "shed_unread_bytes"
SHEDDING = ("messages", "packets", "bytes")  # ledgers of capture that tell of it


def kept_and_shed(ledgers: Mapping[str, Ledger], notes: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """By ledger of `SHEDDING`: what was recorded, or read, and what was shed. Packets and bytes are shed unread."""
    found: dict[str, tuple[int, int]] = {}
    for name in ("messages", "packets"):
        if (ledger := ledgers.get(name)) is not None:
            found[name] = ledger.emitted, sum(count for reason, count in ledger.drops.items() if reason in SHED)
    if (ledger := ledgers.get("bytes")) is not None and (unread := notes.get(UNREAD, 0)):
        found["bytes"] = ledger.seen - unread, unread
    return found


def kept_share(counts: Mapping[str, tuple[int, int]]) -> float:
    """Which share of what was to be recorded is there, of `kept_and_shed`: part of a recording's scale. What was shed
    unread is taken to have held as many messages, for its size, as what was read."""
    share = 1.0
    for kept, shed in counts.values():
        share *= kept / (kept + shed) if kept > 0 else 1.0
    return share


class Account:
    """The ledgers of one stage, and notes that are counted but balance nothing (e.g. "gap_bytes")."""

    def __init__(self, ledgers: Mapping[str, Ledger] | None = None, notes: Mapping[str, int] | None = None) -> None:
        self.ledgers: dict[str, Ledger] = dict(ledgers or {})
        self.notes: dict[str, int] = dict(notes or {})
        self._taken: dict[str, Ledger] = {}
        self._taken_notes: dict[str, int] = {}

    def ledger(self, name: str) -> Ledger:
        """The ledger of that name, made when it is first asked for."""
        found = self.ledgers.get(name)
        if found is None:
            found = self.ledgers[name] = Ledger()
        return found

    def note(self, name: str, count: int = 1) -> None:
        self.notes[name] = self.notes.get(name, 0) + count

    @property
    def balanced(self) -> bool:
        return all(ledger.difference == 0 for ledger in self.ledgers.values())

    def add(self, increment: Increment) -> None:
        for name, ledger in increment.ledgers.items():
            self.ledger(name).add(ledger)
        for name, count in increment.notes.items():
            self.note(name, count)

    def merge(self, other: Account) -> None:
        """Add a part that goes on beside this one (another partition, another worker): gauges are summed, too."""
        for name, ledger in other.ledgers.items():
            mine = self.ledger(name)
            in_flight = mine.in_flight + ledger.in_flight
            mine.add(ledger)
            mine.in_flight = in_flight
        for name, count in other.notes.items():
            self.note(name, count)

    @classmethod
    def total(cls, increments: Iterable[Increment]) -> Account:
        """The account of one writer, of its increments in order. Those of several writers are merged instead."""
        account = cls()
        for increment in increments:
            account.add(increment)
        return account

    def take(self) -> Increment:
        """What was counted since the last `take`; gauges as they stand."""
        grown: dict[str, Ledger] = {}
        for name, now in self.ledgers.items():
            was = self._taken.get(name, _NOTHING)
            grown[name] = Ledger(
                seen=now.seen - was.seen,
                emitted=now.emitted - was.emitted,
                in_flight=now.in_flight,
                drops=_growth(now.drops, was.drops),
                intentional=_growth(now.intentional, was.intentional),
            )
            self._taken[name] = Ledger(now.seen, now.emitted, now.in_flight, dict(now.drops), dict(now.intentional))
        notes = _growth(self.notes, self._taken_notes)
        self._taken_notes = dict(self.notes)
        return Increment(grown, notes)

    def put_back(self, increment: Increment) -> None:
        """Undo a `take` whose batch could not be written: the growth goes with the next one."""
        for name, ledger in increment.ledgers.items():
            was = self._taken[name]
            was.seen -= ledger.seen
            was.emitted -= ledger.emitted
            for mine, theirs in ((was.drops, ledger.drops), (was.intentional, ledger.intentional)):
                for reason, count in theirs.items():
                    mine[reason] -= count
        for name, count in increment.notes.items():
            self._taken_notes[name] -= count

    def as_json(self) -> dict[str, object]:
        """What `livefire show --account --json` prints."""
        return {
            "balanced": self.balanced,
            "ledgers": {
                name: {
                    "seen": ledger.seen,
                    "emitted": ledger.emitted,
                    "in_flight": ledger.in_flight,
                    "drops": dict(sorted(ledger.drops.items())),
                    "intentional": dict(sorted(ledger.intentional.items())),
                    "difference": ledger.difference,
                }
                for name, ledger in sorted(self.ledgers.items())
            },
            "notes": dict(sorted(self.notes.items())),
        }


class Increment(msgspec.Struct, array_like=True):
    """What travels in a batch: ledgers' growth since the batch before."""

    ledgers: dict[str, Ledger] = msgspec.field(default_factory=dict)
    notes: dict[str, int] = msgspec.field(default_factory=dict)


_NOTHING = Ledger()


def _growth(now: Mapping[str, int], was: Mapping[str, int]) -> dict[str, int]:
    return {reason: count - was.get(reason, 0) for reason, count in now.items() if count != was.get(reason, 0)}
