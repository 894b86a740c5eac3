"""What the conductor says, as a worker hears it: steps, hold, stop, end, and the lease.

The conductor's clock and ours were read at different moments, and somebody may have set the wall clock in between.
So a lease lasts no longer from when it is heard than it was given for, and a stop comes no later than it was meant.
"""

from __future__ import annotations

from typing import Final

from bus.ports import Bus
from bus.topic import TopicReader
from replay.hearing import FleetControl
from replay.settings import LEASE_NS
from replay.steps import Step, Timeline
from wire import topics
from wire.codec import RecordType
from wire.records import Action, Control

POLL_NS: Final = 20_000_000
#: Over a shared bus, where a look costs the broker and us a millisecond or two.
_SHARED_POLL_NS: Final = 50_000_000


class Orders:
    """Reads every partition of `control`, those that appear later too. Nothing said is ever unsaid."""

    def __init__(
        self, bus: Bus, run_id: str, timeline: Timeline, fleet: FleetControl | None = None, *, most_ns: int = LEASE_NS
    ) -> None:
        """`fleet`: where a stop of all runs is said, for a run that is not alone on its bus. `most_ns`: no lease lasts
        longer from when it is heard, whatever it says."""
        self._reader = TopicReader(bus, topics.CONTROL)
        self._fleet = fleet
        self._every_ns = POLL_NS if fleet is None else _SHARED_POLL_NS
        self._run_id = run_id
        self._most_ns = most_ns
        self._timeline = timeline
        self.lease_ns = 0
        self.stop_ns: int | None = None
        self.stop_reason = ""
        self.end_ns: int | None = None
        self.holding = False
        self._polled_ns = 0

    def poll(self, now_ns: int, made_ns: int) -> None:
        """Take in what is new. A step cannot take effect before `made_ns`: shots up to there are made already.

        Raises BusAway; what was not taken in by then comes with a later call.
        """
        if now_ns - self._polled_ns < self._every_ns:
            return
        self._polled_ns = now_ns
        if self._fleet is not None and (control := self._fleet.stop_of(self._run_id)) is not None:
            self._obey(control, now_ns, made_ns)
        for _, batch in self._reader.batches():
            if batch.header.type == RecordType.CONTROL:
                for control in batch.records:
                    if control.run_id in (self._run_id, "*"):
                        self._obey(control, now_ns, made_ns)
            elif batch.header.type == RecordType.LEASE:
                for lease in batch.records:
                    if lease.run_id == self._run_id:
                        heard = min(_no_later(lease.expires_ns, lease.issued_ns, now_ns), now_ns + self._most_ns)
                        self.lease_ns = max(self.lease_ns, heard)

    def _obey(self, control: Control, now_ns: int, made_ns: int) -> None:
        if control.action == Action.STEP:
            self._timeline.add(Step(max(control.effective_ns, made_ns), control.step, control.load))
            self.holding = False
        elif control.action == Action.HOLD:
            self._timeline.hold(max(control.effective_ns, made_ns))
            self.holding = True
        elif control.action == Action.STOP:
            stop_ns = _no_later(control.effective_ns, control.issued_ns, now_ns)
            if self.stop_ns is None or stop_ns < self.stop_ns:
                self.stop_ns, self.stop_reason = stop_ns, control.reason
        elif control.action == Action.END:
            self.end_ns = control.effective_ns if self.end_ns is None else min(self.end_ns, control.effective_ns)

    def close(self) -> None:
        self._reader.close()
        if self._fleet is not None:
            self._fleet.close()


def _no_later(ns: int, issued_ns: int, heard_ns: int) -> int:
    """A time of the conductor's clock, or, if that comes first, as long after it is heard as it lay ahead when said."""
    return min(ns, heard_ns + max(ns - issued_ns, 0)) if issued_ns else ns
