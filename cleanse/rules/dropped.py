"""Leaves out what the `drop` list names."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable

from cleanse.rules.servers import matcher
from cleanse.settings import CleanseSettings, Drop
from wire import head as heads
from wire.config import ConfigError
from wire.records import Exchange

Test = Callable[[Exchange], bool]


def rule(settings: CleanseSettings) -> Callable[[Exchange], str | None] | None:
    drops = [(drop.name, _tests(drop)) for drop in settings.drop]

    def reason(exchange: Exchange) -> str | None:
        for name, tests in drops:
            if all(test(exchange) for test in tests):
                return name
        return None

    return reason if drops else None


def _tests(drop: Drop) -> list[Test]:
    tests: list[Test] = []
    if drop.method is not None:
        method = drop.method.upper().encode()
        tests.append(lambda exchange: heads.method_of(exchange.request.head) == method)
    if drop.server is not None:
        wanted = matcher((drop.server,))
        tests.append(lambda exchange: wanted(exchange.server))
    if drop.status is not None:
        statuses = _statuses(drop)
        tests.append(lambda exchange: (exchange.response.status if exchange.response else 0) in statuses)
    if drop.path is not None:
        pattern = re.compile(fnmatch.translate(drop.path).encode())
        tests.append(lambda exchange: pattern.match(heads.path_of(heads.target_of(exchange.request.head))) is not None)
    if not tests:
        raise ConfigError(f"drop {drop.name!r} would drop everything: give it a method, path, status or server")
    return tests


def _statuses(drop: Drop) -> range:
    text = str(drop.status).lower()
    if re.fullmatch(r"[1-9]\d\d|0", text):
        return range(int(text), int(text) + 1)
    if re.fullmatch(r"[1-5]xx", text):
        return range(int(text[0]) * 100, int(text[0]) * 100 + 100)
    raise ConfigError(f"drop {drop.name!r}: status {drop.status!r} is neither as 404 nor as 5xx (0 = no answer)")
