"""Which exchanges stay, and the count of them: the same for a file and for a stream of batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cleanse.rules import Rules
from cleanse.rules.unreplayable import started_ns
from cleanse.settings import CleanseSettings
from wire.account import Account, Ledger
from wire.records import Exchange

LEDGER: Final = "messages"


class Sieve:
    """The rules and the span of time. Keeps nothing between batches."""

    def __init__(self, settings: CleanseSettings, from_ns: int | None = None, until_ns: int | None = None) -> None:
        """Only what began at or after `from_ns` and not after `until_ns` (epoch ns) stays. Raises ConfigError.

        `asks`: whether anything was asked for; else every exchange that is sound stays.
        """
        self._rules = Rules(settings)
        self._from_ns = from_ns
        self._until_ns = until_ns
        self.asks = self._rules.asks or from_ns is not None or until_ns is not None

    def keep(self, batch: Sequence[Exchange], ledger: Ledger) -> list[Exchange]:
        """Those of the batch that stay, counted as seen and in flight; the others as dropped, by reason."""
        kept: list[Exchange] = []
        for exchange in batch:
            found = self.reason(exchange)
            if found is None:
                kept.append(exchange)
            else:
                ledger.drop(found[0], intentional=found[1])
        ledger.seen += len(batch)
        ledger.in_flight += len(kept)
        return kept

    def reason(self, exchange: Exchange) -> tuple[str, bool] | None:
        """(why it is left out, whether that was asked for); None to keep it."""
        return self._outside(exchange) or self._rules.reason(exchange)

    def asked(self, exchange: Exchange) -> tuple[str, bool] | None:
        """The same of an exchange that is sound (`cleanse.plain`)."""
        return self._outside(exchange) or self._rules.asked(exchange)

    def _outside(self, exchange: Exchange) -> tuple[str, bool] | None:
        if self._from_ns is not None or self._until_ns is not None:
            start = started_ns(exchange)
            if self._from_ns is not None and 0 < start < self._from_ns:
                return "earlier", True
            if self._until_ns is not None and start > self._until_ns:
                return "later", True
        return None


def lose(account: Account, count: int) -> None:
    """Count the exchanges of a batch that could not even be read; 0 where not even their number could."""
    account.note("unreadable_batches")
    ledger = account.ledger(LEDGER)
    ledger.seen += count
    if count:
        ledger.drop("unreadable", count)
