"""What can be set of the aggregation."""

from __future__ import annotations

import msgspec

from wire.config import ConfigError, duration_ns


class AnalyticsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`batches` is how many batches of a partition one poll takes at most: it bounds memory and the time of a poll."""

    batches: int = 256
    settle_ns: int = 1_000_000_000  # how long after its time an outcome may still be on its way to the file
    every: str = "5s"
    over: str = "5s"

    def __post_init__(self) -> None:
        if self.batches < 1:
            raise ConfigError(f"analytics.batches is {self.batches}: at least 1")
        seconds(self.every, "every")
        seconds(self.over, "over")


def seconds(text: str, name: str) -> int:
    """'5s' -> 5. Panes are seconds, so windows are whole seconds. Raises ConfigError."""
    span = duration_ns(text)
    if span < 1_000_000_000 or span % 1_000_000_000:
        raise ConfigError(f"--{name} {text}: windows are whole seconds, 1s or more")
    return span // 1_000_000_000
