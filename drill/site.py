"""Where a run is: on this machine, its folder its bus and its workers our children; or on a fleet, over a bus.

A drill asks the site and does not know which it is. In both cases the books are read from files of the run's folder:
over a bus they are brought home as they come.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

import msgspec

from analytics.app import Aggregator
from bus.address import open_bus
from bus.logfile import FileBus
from bus.ports import Bus, BusAway, BusError, BusHeld
from drill.bus_fleet import BusFleet
from drill.fleet import Fleet, Spawn
from drill.plan import Plan
from drill.run_files import StopAsked
from drill.settings import DrillSettings
from replay.away import patiently
from replay.conductor import Conductor
from replay.fetch import fetch
from replay.hearing import FLEET, FleetControl, began_ns
from replay.home import Home
from replay.recover import recover, unfinished
from replay.settings import SECOND_NS, WorkerSettings
from wire import topics

#: How long it may take until the hold of a killed worker lapses, so that its books can be settled.
_SETTLE_NS: Final = 8 * SECOND_NS


class Crew(Protocol):
    """The workers of a run: `drill.fleet.Fleet`, `drill.bus_fleet.BusFleet`."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def start(self) -> None: ...

    def gone(self) -> dict[str, str]: ...

    @property
    def all_gone(self) -> bool: ...

    def failed(self) -> dict[str, str]: ...

    def bounds(self) -> dict[str, str]: ...

    def close(self) -> None: ...


class Site(Protocol):
    recording: Path  # a file, here
    names: tuple[str, ...]  # of the workers
    lag_ns: int  # how much longer it takes here until one hears that a worker has left

    def conductor(self) -> Conductor: ...

    def stop_asked(self) -> StopAsked: ...

    def worker(self, settings: WorkerSettings) -> WorkerSettings:
        """As the worker is to be told."""

    def crew(self, workers: Sequence[WorkerSettings]) -> Crew: ...

    def live(self, recording: Path) -> Bus | None:
        """The bus that a live recording is on; None = it is a file."""

    def bring_home(self) -> None:
        """Have in the folder what the workers have booked until now. Raises BusAway."""

    def leave(self, conductor: Conductor) -> str:
        """After the load: what is claimed and not booked becomes unknown. What could not be done, in one line."""

    def close(self) -> None: ...


class LocalSite:
    lag_ns = 0

    def __init__(self, plan: Plan, spawn: Spawn, run_id: str, run_dir: Path, now: Callable[[], int]) -> None:
        self._spawn, self._run_id, self._now = spawn, run_id, now
        self._run_dir = run_dir
        self.recording = plan.recording
        self.names = tuple(f"w{index}" for index in range(plan.workers))

    def conductor(self) -> Conductor:
        return Conductor(FileBus(self._run_dir), self._run_id, self._now, restamp=True)

    def stop_asked(self) -> StopAsked:
        return StopAsked(FileBus(self._run_dir), self._run_id)

    def worker(self, settings: WorkerSettings) -> WorkerSettings:
        return settings

    def crew(self, workers: Sequence[WorkerSettings]) -> Fleet:
        return Fleet(self._spawn, workers)

    def live(self, recording: Path) -> None:
        """It is a file, or will be one."""

    def bring_home(self) -> None:
        """It is home."""

    def leave(self, conductor: Conductor) -> str:
        conductor.close()
        recover(self._run_dir)
        return ""

    def close(self) -> None:
        """Nothing is kept open."""


class BusSite:
    """Raises ConfigError or BusError when the fleet has too few idle workers, or the bus not the recording."""

    lag_ns = 4 * SECOND_NS

    def __init__(self, plan: Plan, settings: DrillSettings, run_id: str, run_dir: Path, now: Callable[[], int]) -> None:
        self._settings, self._run_id, self._now = settings, run_id, now
        self._name = plan.recording.name
        self._run_dir = run_dir
        self._closing = contextlib.ExitStack()
        self._bus = self._open(run_id)
        self._fleet_bus = self._open(FLEET)
        self._home: Home | None = None
        self.recording = run_dir / "recording.lf"
        try:
            self._fleet = BusFleet(self._fleet_bus, settings.bus, run_id, now)
            self._closing.callback(self._fleet.close)
            self._fleet.ask(plan.workers, settings.ask_ns)
            self.names = self._fleet.names
            run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            recordings = self._open(self._name)
            if not recordings.partitions(topics.CLEAN) and not recordings.partitions(topics.RAW):
                raise BusError(f"{settings.bus}: holds no recording {self._name}")
            fetch(recordings, self._name, self.recording, deadline_s=settings.fetch_s)
        except BaseException:
            self.close()
            with contextlib.suppress(OSError):
                run_dir.rmdir()  # nothing came of it
            raise

    def _open(self, scope: str) -> Bus:
        bus = open_bus(self._settings.bus, scope, self._settings.security)
        self._closing.callback(bus.close)
        return bus

    def conductor(self) -> Conductor:
        return Conductor(self._bus, self._run_id, self._now, restamp=True)

    def stop_asked(self) -> StopAsked:
        return StopAsked(self._bus, self._run_id, FleetControl(self._fleet_bus, began_ns(self._run_id)))

    def worker(self, settings: WorkerSettings) -> WorkerSettings:
        """Without keys, and without paths of this machine."""
        return msgspec.structs.replace(
            settings,
            run_dir="",
            recording="",
            fetch=self._name,
            key_hex="",
            mask_hex="",
            security=None,
            accounts=Path(settings.accounts).name if settings.accounts else "",
        )

    def crew(self, workers: Sequence[WorkerSettings]) -> BusFleet:
        self._fleet.plan(workers)
        return self._fleet

    def live(self, recording: Path) -> Bus | None:
        return None if recording.exists() else self._open(recording.name)

    def bring_home(self) -> None:
        if self._home is None:
            self._home = Home(self._bus, self._run_dir)
        self._home.poll()

    def leave(self, conductor: Conductor) -> str:
        try:
            patiently(conductor.close, self._now)
            deadline = self._now() + _SETTLE_NS
            while True:
                patiently(lambda: recover(self._bus), self._now)
                if not patiently(lambda: unfinished(self._bus), self._now) or self._now() >= deadline:
                    break
                time.sleep(0.2)
            patiently(self.bring_home, self._now)
        except (BusAway, BusHeld) as error:
            return f"the run's books are not all here: {error}; what is there once the bus is back: livefire outcomes"
        return ""

    def close(self) -> None:
        if self._home is not None:
            self._home.close()
        self._closing.close()
        self.recording.unlink(missing_ok=True)


def site_of(
    plan: Plan, settings: DrillSettings, spawn: Spawn, run_id: str, run_dir: Path, now: Callable[[], int]
) -> Site:
    """Raises ConfigError or BusError, before the first shot."""
    if settings.bus:
        return BusSite(plan, settings, run_id, run_dir, now)
    return LocalSite(plan, spawn, run_id, run_dir, now)


class Following:
    """An aggregator of books that come home while it reads them."""

    def __init__(self, site: Site, aggregator: Aggregator, production: Aggregator | None = None) -> None:
        """`production`: reads the live recording, where that is on the bus."""
        self._site, self._aggregator, self._production = site, aggregator, production

    def poll(self) -> object:
        """Raises BusAway."""
        self._site.bring_home()
        if self._production is not None:
            self._production.poll()
        return self._aggregator.poll()

    def drain(self) -> None:
        """What is there now, all of it. Raises BusAway."""
        self._site.bring_home()
        self._aggregator.drain()
        if self._production is not None:
            self._production.drain()

    def production_since(self, since_ns: int) -> None:
        (self._production or self._aggregator).production_since(since_ns)
