"""Leaves out requests that open something other than an exchange: tunnels and upgrades."""

from __future__ import annotations

from collections.abc import Callable

from cleanse.settings import CleanseSettings
from wire.head import field
from wire.records import Exchange, Framing


def rule(settings: CleanseSettings) -> Callable[[Exchange], str | None] | None:
    return _reason


def _reason(exchange: Exchange) -> str | None:
    if exchange.request.head.startswith(b"CONNECT "):
        return "unreplayable"
    if exchange.response is not None and exchange.response.status == 101:
        return "unreplayable"
    if exchange.request.framing is Framing.CHUNKED:
        found = field(exchange.request.head, b"transfer-encoding") or b""
        if any(coding.strip().lower() not in (b"chunked", b"identity", b"") for coding in found.split(b",")):
            return "unreplayable"  # coded for its transfer, and the field that says so is of one connection only
    return None if started_ns(exchange) else "no_time"


def started_ns(exchange: Exchange) -> int:
    """When the request began, or the first later time that was seen; 0 = none was."""
    return exchange.request_start_ns or exchange.request_end_ns or exchange.response_start_ns
