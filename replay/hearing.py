"""What is said to all runs and all workers at once: the control topic of the scope `fleet`.

Many have spoken there before, and those who listen begin now. What was there when listening began counts only if it was
said since `since_ns`; what comes later counts whatever clocks say, as it was certainly said after.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from bus.ports import Bus
from bus.topic import TopicReader
from wire import topics
from wire.codec import RecordType
from wire.ids import ulid_ms
from wire.records import Action, Control

FLEET: Final = topics.FLEET
#: How long a worker that stands by writes its beats into one partition.
TURN_NS: Final = 3600 * 1_000_000_000
#: Speakers name their partition with a ULID; one that is this much older than the listening is not even opened.
_OLD_MS: Final = 600_000


class FleetControl:
    """Hears every partition of the fleet's control topic. A speaker's partition is named `<what>-<ULID>`."""

    def __init__(self, bus: Bus, since_ns: int) -> None:
        self._since_ns = since_ns
        self._before = True  # still reading what was there when listening began
        self._reader = TopicReader(bus, topics.CONTROL, accept=self._counts)

    def _counts(self, partition: str) -> bool:
        return not self._before or made_ms(partition) > self._since_ns // 1_000_000 - _OLD_MS

    def poll(self) -> Iterator[Control]:
        """What is new. Raises BusAway; what was not handed out by then comes next time."""
        for _, batch in self._reader.batches():
            if batch.header.type is RecordType.CONTROL:
                for control in batch.records:
                    if not self._before or control.issued_ns >= self._since_ns:
                        yield control
        self._before = False

    def stop_of(self, run_id: str) -> Control | None:
        """The first new stop that is for this run, or for all."""
        found = None
        for control in self.poll():
            if found is None and control.action is Action.STOP and control.run_id in (run_id, "*"):
                found = control
        return found

    def close(self) -> None:
        self._reader.close()


def made_ms(partition: str) -> int:
    """When a partition of the fleet's was made: its name ends in a ULID, behind - or :. The far future for another."""
    try:
        return ulid_ms(re.split("[-:]", partition)[-1])
    except ValueError:
        return 1 << 62


def may_beat(partition: str, now_ns: int) -> bool:
    """Whether a worker may still write its beats there: it turns to a new one each `TURN_NS`."""
    return made_ms(partition) > (now_ns - 3 * TURN_NS) // 1_000_000


def began_ns(run_id: str) -> int:
    """When a run began, as its id says; 0 for an id that is no ULID."""
    try:
        return ulid_ms(run_id) * 1_000_000
    except ValueError:
        return 0
