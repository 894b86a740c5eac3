"""Leaves out requests whose body is longer than what was kept, or is not there at all: logs carry no bodies, so a POST
of theirs is never taken for an empty one. An answer that was cut is still a baseline."""

from __future__ import annotations

from collections.abc import Callable

from cleanse.settings import CleanseSettings
from wire.records import Exchange


def rule(settings: CleanseSettings) -> Callable[[Exchange], str | None] | None:
    return _reason


def _reason(exchange: Exchange) -> str | None:
    request = exchange.request
    if not request.truncated_bytes:
        return None
    return "truncated" if request.body or request.body_bytes > request.truncated_bytes > 0 else "no_body"
