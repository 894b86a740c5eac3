"""Leaves out what could not be read as HTTP."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from cleanse.settings import CleanseSettings
from wire import head as heads
from wire.records import Exchange, Mode

_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")  # RFC 9110 section 5.6.2
_VERSION: Final = re.compile(rb"HTTP/\d(?:\.\d)?\Z")
_READABLE: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ [^\s]+ HTTP/\d(?:\.\d)?\r?\n")  # as nearly always


def rule(settings: CleanseSettings) -> Callable[[Exchange], str | None] | None:
    return _reason


def _reason(exchange: Exchange) -> str | None:
    if exchange.mode is Mode.OPAQUE:
        return "opaque"
    if _READABLE.match(exchange.request.head):
        return None
    parts = heads.request_head(exchange.request.head)
    readable = _TOKEN.match(parts.method) and parts.target and _VERSION.match(parts.version)
    return None if readable else "opaque"
