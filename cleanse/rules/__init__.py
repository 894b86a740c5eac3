"""Rules: which exchanges are left out, and why. One rule a file; the list below is all there are, in their order.

A rule is a pure function of one exchange: a reason, or None to keep it. The first reason counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from cleanse.plain import sound
from cleanse.rules import ambiguous, dropped, gap, opaque, servers, static, stress, truncated, unfinished, unreplayable
from cleanse.settings import CleanseSettings
from wire.records import Exchange

Rule = Callable[[Exchange], str | None]

#: Each `rule(settings)` gives the rule, or None where the settings turn it off.
#: Whether its drops were asked for, or are losses, stands beside it.
RULES: tuple[tuple[Callable[[CleanseSettings], Rule | None], bool], ...] = (
    (servers.rule, True),
    (stress.rule, True),
    (dropped.rule, True),
    (static.rule, True),
    (ambiguous.rule, False),
    (opaque.rule, False),
    (gap.rule, False),
    (unfinished.rule, False),
    (truncated.rule, False),
    (unreplayable.rule, False),
)

#: Those for which `plain.sound` speaks: where it is true, none of them has a reason.
ALWAYS: Final = frozenset(
    make.rule for make in (stress, ambiguous, opaque, gap, unfinished, truncated, unreplayable)
)  # fmt: skip


class Rules:
    """The rules that the settings turn on, made once. Raises ConfigError for settings that cannot be meant."""

    def __init__(self, settings: CleanseSettings) -> None:
        made = [(make, make(settings), intentional) for make, intentional in RULES]
        self._rules = [(rule, intentional) for _, rule, intentional in made if rule is not None]
        self._asked = [(rule, intentional) for make, rule, intentional in made if rule and make not in ALWAYS]
        self.asks = bool(self._asked)  # whether the settings turn any rule on

    def reason(self, exchange: Exchange) -> tuple[str, bool] | None:
        """(why it is left out, whether that was asked for); None to keep it."""
        return self.asked(exchange) if sound(exchange) else self.of_all(exchange)

    def asked(self, exchange: Exchange) -> tuple[str, bool] | None:
        """The same of a sound exchange: by the rules alone that the settings turn on."""
        return _first(self._asked, exchange) if self._asked else None

    def of_all(self, exchange: Exchange) -> tuple[str, bool] | None:
        """What `reason` means: every rule asked in turn."""
        return _first(self._rules, exchange)


def _first(rules: Sequence[tuple[Rule, bool]], exchange: Exchange) -> tuple[str, bool] | None:
    for rule, intentional in rules:
        found = rule(exchange)
        if found is not None:
            return found, intentional
    return None
