"""The workers of a run on other machines: asked over the bus, watched by their beats. Their side: `replay.standing`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from bus.ports import Bus, BusAway
from bus.topic import TopicReader
from replay.away import Away
from replay.hearing import FLEET, may_beat
from replay.settings import SECOND_NS, WorkerSettings
from wire import topics
from wire.codec import RecordType
from wire.config import ConfigError
from wire.records import Action, Beat, Control, End, Manifest

#: A worker that stands by beats every 0.5 s; one that has not for this long is gone.
SILENT_NS: Final = 6 * SECOND_NS
#: A plan that was not heard by then is stale.
PLAN_NS: Final = 20 * SECOND_NS
_TICK_S: Final = 0.05


class BusFleet:
    """Like `drill.fleet.Fleet`, of workers that stand by. Use as a context manager: whatever happens, none goes on."""

    def __init__(self, bus: Bus, address: str, run_id: str, now: Callable[[], int]) -> None:
        """`bus` is of the scope `fleet`."""
        self._bus, self._address, self._run_id, self._now = bus, address, run_id, now
        self._reader = TopicReader(bus, topics.BEATS, self._may_beat, since_ns=now())  # they have beaten for weeks
        self._latest: dict[str, tuple[int, Beat]] = {}  # when it was heard
        self._away = Away(now)
        self._away_ns = 0  # when the bus was away last
        self._planned: dict[str, WorkerSettings] = {}
        self.names: tuple[str, ...] = ()
        name = f"plan-{run_id}"
        self._writer = bus.writer(topics.CONTROL, name, Manifest(topics.CONTROL, name, FLEET, now(), "livefire drill"))
        self._name = name
        self._sequence = 0
        self._closed = False

    def _may_beat(self, partition: str) -> bool:
        return may_beat(partition, self._now())

    def ask(self, count: int, patience_ns: int) -> None:
        """Choose so many idle workers. Raises ConfigError when there are fewer."""
        self._poll()  # what was said before: nobody knows whether they are there yet
        self._latest.clear()
        deadline = self._now() + patience_ns
        while len(idle := self._idle()) < count and self._now() < deadline:
            time.sleep(_TICK_S)
            self._poll()
        if len(idle) < count:
            if self._away.since_ns:
                raise BusAway(self._away.why)
            busy = sorted(name for name, (_, beat) in self._latest.items() if beat.state != "idle")
            there = f"{len(idle)} idle" + (f" ({', '.join(idle)})" if idle else "")
            there += f", busy: {', '.join(busy)}" if busy else ""
            raise ConfigError(
                f"{count} worker{'s' if count > 1 else ''} asked for, {there}: start more: livefire worker "
                f"--bus {self._address} --name NAME --target URL"
            )
        self.names = tuple(idle[:count])

    def _idle(self) -> list[str]:
        return sorted(name for name, (_, beat) in self._latest.items() if beat.state == "idle")

    def plan(self, workers: Sequence[WorkerSettings]) -> None:
        """What each is to do; `start` tells them."""
        self._planned = {settings.worker: settings for settings in workers}

    def start(self) -> None:
        """Raises BusAway."""
        for settings in self._planned.values():
            self._say(Action.PLAN, plan=msgspec.json.encode(settings))

    def _say(self, action: Action, reason: str = "", plan: bytes = b"") -> None:
        now = self._now()
        self._sequence += 1
        control = Control(
            self._run_id, self._sequence, action, now, reason=reason, issued_ns=now, until_ns=now + PLAN_NS, plan=plan
        )
        self._writer.write_records((control,), first_ns=now, last_ns=now)

    # -- watching

    def _poll(self) -> None:
        """Take in what they say. While the bus is away nobody can be called silent."""
        if not self._away.attempt(self._hear):
            self._away_ns = self._now()

    def _hear(self) -> None:
        for _, batch in self._reader.batches():
            if batch.header.type is RecordType.BEAT:
                for beat in batch.records:
                    self._latest[beat.worker] = (self._now(), beat)

    def gone(self) -> dict[str, str]:
        """Workers that are not on the run any more, and how they ended it."""
        self._poll()
        now = self._now()
        ended = {}
        for name in self._planned:
            heard_ns, beat = self._latest[name]
            if beat.run_id == self._run_id and beat.state == "idle":
                ended[name] = beat.reason or "exit code 0"
            elif now - max(heard_ns, self._away_ns) > SILENT_NS:
                ended[name] = f"no sign of life for {(now - heard_ns) / SECOND_NS:.0f} s"
        # What a worker itself refuses comes before what became of the others because of it.
        return dict(sorted(ended.items(), key=lambda one: not one[1].startswith("refused")))

    def bounds(self) -> dict[str, str]:
        """Workers that fire less than the plan allows, and what they say of it."""
        beats = {name: self._latest[name][1] for name in self._planned}
        return {
            name: beat.reason
            for name, beat in beats.items()
            if beat.run_id == self._run_id and beat.state == "running" and beat.reason
        }

    @property
    def all_gone(self) -> bool:
        return len(self.gone()) == len(self._planned)

    def failed(self) -> dict[str, str]:
        """Workers that ended otherwise than well."""
        return {name: how for name, how in self.gone().items() if how != "exit code 0"}

    def close(self, grace_s: float = 3.0) -> None:
        """Those that are still on the run are told to stop; without a lease they do so anyway. May be called twice."""
        if self._closed:
            return
        self._closed = True
        try:
            if not self.all_gone:
                self._say(Action.STOP, "the drill is over")
                deadline = time.monotonic() + grace_s
                while not self.all_gone and time.monotonic() < deadline:
                    time.sleep(_TICK_S)
            self._writer.end(End(FLEET, self._name, self._sequence, 0, 0))
        except BusAway:
            self._writer.close()
        self._reader.close()

    def __enter__(self) -> BusFleet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
