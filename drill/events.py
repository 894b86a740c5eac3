"""What a drill tells while it runs."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any

import msgspec


class EventKind(StrEnum):
    NOTE = "note"
    ARITHMETIC = "arithmetic"
    CANARY = "canary"
    ISOLATION = "isolation"
    STARTED = "started"
    STEP = "step"
    WINDOW = "window"
    DECISION = "decision"
    STOPPED = "stopped"
    RESULT = "result"


class Event(msgspec.Struct, frozen=True):
    """`text` is one line for people, `detail` the same for programs. `at_ns` is unix time."""

    kind: EventKind
    at_ns: int
    text: str
    detail: dict[str, Any] = {}


OnEvent = Callable[[Event], None]
