"""Rules: which exchanges are left out, and why. One rule a file; the list below is all there are, in their order.

A rule is a pure function of one exchange: a reason, or None to keep it. The first reason counts.
"""

from __future__ import annotations

from collections.abc import Callable

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


class Rules:
    """The rules that the settings turn on, made once. Raises ConfigError for settings that cannot be meant."""

    def __init__(self, settings: CleanseSettings) -> None:
        made = ((make(settings), intentional) for make, intentional in RULES)
        self._rules = [(rule, intentional) for rule, intentional in made if rule is not None]

    def reason(self, exchange: Exchange) -> tuple[str, bool] | None:
        """(why it is left out, whether that was asked for); None to keep it."""
        for rule, intentional in self._rules:
            found = rule(exchange)
            if found is not None:
                return found, intentional
        return None
