"""Leaves out exchanges that the end of a connection, or of the recording, cut off."""

from __future__ import annotations

from collections.abc import Callable

from cleanse.settings import CleanseSettings
from wire.records import Exchange, Fault


def rule(settings: CleanseSettings) -> Callable[[Exchange], str | None] | None:
    return lambda exchange: "unfinished" if Fault.UNFINISHED in exchange.faults else None
