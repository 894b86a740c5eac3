"""Leaves out static assets, where that is asked for: a cache answers them, and they say little about a service."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from cleanse.settings import CleanseSettings
from wire import head as heads
from wire.records import Exchange

_ASSET: Final = re.compile(
    rb".*\.(?:avif|bmp|css|eot|gif|ico|jpe?g|js|map|mjs|mp4|otf|png|svg|ttf|webm|webp|woff2?)\Z", re.IGNORECASE
)


def rule(settings: CleanseSettings) -> Callable[[Exchange], str | None] | None:
    if not settings.drop_static:
        return None

    def reason(exchange: Exchange) -> str | None:
        head = exchange.request.head
        if heads.method_of(head) not in (b"GET", b"HEAD"):
            return None
        return "static" if _ASSET.match(heads.path_of(heads.target_of(head))) else None

    return reason
