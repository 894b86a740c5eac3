"""What a recorder hears on its bus: that it is to stop.

In a thread of its own, with a connection of its own: a bus that is away, or slow, must not keep the packets waiting.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Final

from bus.ports import Bus, BusError
from bus.topic import TopicReader
from wire import topics
from wire.codec import RecordType
from wire.ids import ulid_ms
from wire.records import Action

EVERY_S: Final = 0.3
#: A speaker's partition ends in a ULID; one that is this much older than the listening is not even opened.
_OLD_MS: Final = 600_000


def named(recording: str) -> str:
    """How `Control.run_id` names a recording; "*" is every run and every recording."""
    return f"recording:{recording}"


class StopHeard:
    """Asked by the record loop: whether `livefire stop` told this recording to end since listening began."""

    def __init__(self, open_fleet: Callable[[], Bus], recording: str, since_ns: int) -> None:
        """`open_fleet` opens the bus in the scope `fleet`; called by the thread, and again when it was lost."""
        self._open = open_fleet
        self._wanted = (named(recording), "*")
        self._since_ns = since_ns
        self._over = threading.Event()
        self.reason = ""
        self.heard = False
        self._thread = threading.Thread(target=self._run, name="hearing", daemon=True)
        self._thread.start()

    def __call__(self) -> bool:
        return self.heard

    def close(self) -> None:
        self._over.set()
        self._thread.join(2.0)

    def _run(self) -> None:
        while not self._over.is_set() and not self.heard:
            try:
                bus = self._open()
            except BusError:
                self._over.wait(EVERY_S)
                continue
            try:
                reader = TopicReader(bus, topics.CONTROL, accept=self._recent)
                try:
                    while not self._over.is_set() and not self.heard:
                        self._listen(reader)
                        self._over.wait(EVERY_S)
                finally:
                    reader.close()
            except BusError:
                self._over.wait(EVERY_S)
            finally:
                bus.close()

    def _listen(self, reader: TopicReader) -> None:
        for _, batch in reader.batches():
            if batch.header.type is not RecordType.CONTROL:
                continue
            for control in batch.records:
                told = control.action is Action.STOP and control.run_id in self._wanted
                if told and control.issued_ns >= self._since_ns:
                    self.reason, self.heard = control.reason, True

    def _recent(self, partition: str) -> bool:
        try:
            return ulid_ms(re.split("[-:]", partition)[-1]) > self._since_ns // 1_000_000 - _OLD_MS
        except ValueError:
            return True
