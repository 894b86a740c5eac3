"""Leaves out our own stress traffic: firing it again would make a recording of a drill, not of production."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from cleanse.settings import CleanseSettings
from livefire_shadow.marker import HEADER
from wire.records import Exchange

_MARKED: Final = re.compile(rb"\n" + re.escape(HEADER.encode()) + rb"[ \t]*:", re.IGNORECASE)


def rule(settings: CleanseSettings) -> Callable[[Exchange], str | None] | None:
    return lambda exchange: "stress" if _MARKED.search(exchange.request.head) else None
