"""Leaves out exchanges of which bytes were lost."""

from __future__ import annotations

from collections.abc import Callable

from cleanse.settings import CleanseSettings
from wire.records import Exchange, Fault


def rule(settings: CleanseSettings) -> Callable[[Exchange], str | None] | None:
    return _reason


def _reason(exchange: Exchange) -> str | None:
    response = exchange.response
    missing = exchange.request.missing_bytes + (response.missing_bytes if response is not None else 0)
    return "gap" if missing or Fault.GAP in exchange.faults else None
