"""Raw recordings made of records, for tests that need exact ones."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bus.logfile import LogWriter
from wire.account import Increment
from wire.codec import RecordType
from wire.records import Exchange, Manifest


def write_raw(
    path: Path,
    exchanges: Sequence[Exchange],
    *,
    created_ns: int = 1,
    settings: dict[str, Any] | None = None,
    masked: bool = False,
    increments: Sequence[tuple[int, Increment]] = (),
    reason: str = "done",
    stopped_ns: int = 0,
) -> None:
    """One batch an exchange, so that losses have a place in time; `increments`: behind how many of them each stands."""
    manifest = Manifest("raw", "0", "R", created_ns, "tests", settings=settings or {}, masked=masked)
    with contextlib.closing(LogWriter(path, manifest)) as log:
        for number, exchange in enumerate([*exchanges, None]):
            for after, increment in increments:
                if after == number:
                    log.write_records((), RecordType.ACCOUNT, increment=increment)
            if exchange is not None:
                first, last = exchange.request_start_ns, exchange.request_start_ns
                log.write_records([exchange], RecordType.EXCHANGE, first_ns=first, last_ns=last)
        log.end(reason=reason, stopped_ns=stopped_ns)
