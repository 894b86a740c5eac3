"""The conductor's side of a run: announces steps, renews the lease, hears beats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from bus.ports import Bus
from bus.topic import TopicReader
from replay.settings import LEASE_NS
from wire import topics
from wire.codec import RecordType
from wire.records import Action, Beat, Control, End, Lease, Manifest

#: Its partition of the control topic: whoever holds it conducts the run.
CONDUCTOR: Final = "conductor"


class Conductor:
    """One for each run. `renew` is called every 0.5 s; when nobody calls it any more, load stops by itself."""

    def __init__(
        self, bus: Bus, run_id: str, clock: Callable[[], int], *, lease_ns: int = LEASE_NS, name: str = CONDUCTOR,
        restamp: bool = False,
    ) -> None:  # fmt: skip
        """`clock` gives unix ns. `restamp`: beats get the time at which they are heard, by our clock, as those of other
        machines may differ. Raises BusError when the run has a conductor already."""
        self._run_id, self._clock, self._lease_ns, self._name = run_id, clock, lease_ns, name
        self._writer = bus.writer(
            topics.CONTROL, name, Manifest(topics.CONTROL, name, run_id, clock(), "livefire conductor")
        )
        self._beats = TopicReader(bus, topics.BEATS)
        self._restamp = restamp
        self._latest: dict[str, Beat] = {}
        self._sequence = 0
        self._count = 0

    def step(self, index: int, load: float, effective_ns: int, until_ns: int = 0, reason: str = "") -> None:
        """From `effective_ns` on the load is `load` times the recording's rate, of all workers together.

        Announce it at least `settings.LEAD_NS` ahead: nearer ones take effect where the workers stand.
        The first step's effective time is when the recording's first exchange is due.
        """
        self._control(Action.STEP, effective_ns, index, load, reason, until_ns)

    def hold(self, reason: str = "") -> None:
        """Stay on the step in force; what was announced for later is forgotten."""
        self._control(Action.HOLD, self._clock(), reason=reason)

    def stop(self, reason: str = "") -> None:
        """Nothing leaves after now; what is open is given up after a grace."""
        self._control(Action.STOP, self._clock(), reason=reason)

    def end(self, effective_ns: int = 0, reason: str = "") -> None:
        """No shot is due after `effective_ns` (0 = now); what is open is finished."""
        self._control(Action.END, effective_ns or self._clock(), reason=reason)

    def renew(self) -> int:
        """Renew the lease; when it will run out."""
        now = self._clock()
        self._sequence += 1
        lease = Lease(self._run_id, self._sequence, now, now + self._lease_ns)
        self._writer.write_records((lease,), first_ns=now, last_ns=now)
        self._count += 1
        return lease.expires_ns

    def beats(self) -> dict[str, Beat]:
        """The latest beat of each worker."""
        for _, batch in self._beats.batches():
            if batch.header.type == RecordType.BEAT:
                for beat in batch.records:
                    if self._restamp:
                        beat = msgspec.structs.replace(beat, at_ns=self._clock())
                    self._latest[beat.worker] = beat
        return dict(self._latest)

    def close(self, reason: str = "done") -> None:
        now = self._clock()
        self._writer.end(End(self._run_id, self._name, self._count, now, now, reason))
        self._beats.close()

    def _control(
        self, action: Action, effective_ns: int, step: int = -1, load: float = 0.0, reason: str = "", until_ns: int = 0
    ) -> None:
        now = self._clock()
        self._sequence += 1
        control = Control(self._run_id, self._sequence, action, effective_ns, step, load, reason, now, until_ns)
        self._writer.write_records((control,), first_ns=now, last_ns=now)
        self._count += 1
