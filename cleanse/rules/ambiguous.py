"""Leaves out what two readers could read in two ways: it is never sent to anybody again."""

from __future__ import annotations

from collections.abc import Callable

from cleanse.settings import CleanseSettings
from wire import head as heads
from wire.records import Exchange, Fault


def rule(settings: CleanseSettings) -> Callable[[Exchange], str | None] | None:
    return _reason


def _reason(exchange: Exchange) -> str | None:
    if Fault.AMBIGUOUS in exchange.faults:
        return "ambiguous"
    # Capture flags these; files that others made are checked again (RFC 9112 section 6.3, request smuggling).
    low = exchange.request.head.lower()
    if low.count(b"content-length") < 2 and b"transfer-encoding" not in low:
        return None
    fields = [(name.lower(), value) for name, value in heads.fields_of(low.partition(b"\n")[2])]
    lengths = {value for name, value in fields if name == b"content-length"}
    chunked = any(name == b"transfer-encoding" for name, _ in fields)
    return "ambiguous" if len(lengths) > 1 or (lengths and chunked) else None
