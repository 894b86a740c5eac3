"""Leaves out requests whose body is longer than what was kept. An answer that was cut is still a baseline."""

from __future__ import annotations

from collections.abc import Callable

from cleanse.settings import CleanseSettings
from wire.records import Exchange


def rule(settings: CleanseSettings) -> Callable[[Exchange], str | None] | None:
    return lambda exchange: "truncated" if exchange.request.truncated_bytes else None
