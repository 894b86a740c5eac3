"""A store is told what happens on a bus: of one run, or of all that are new. One thread a store.

Each store reads the bus for itself and goes on from where it stands: so one that is down holds nobody up, and what it
missed it takes in when it is back. Nothing is queued between them: memory does not grow with an outage.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from analytics.app import Aggregator
from analytics.panes import NS
from analytics.production import ProductionReader
from analytics.store_address import open_reader, open_store
from analytics.store_port import Store, StoreAway, StoreError, WindowDocuments
from bus.ports import Bus, BusAway, BusError
from bus.topic import TopicReader
from wire import topics
from wire.codec import RecordType
from wire.records import Action, Beat, Control, RouteTable
from wire.routes import RouteMatcher

WHOLE: Final = str(1 << 40)  # the note `watermark_s` of what is final as a whole
_POLL_S: Final = 0.1
_REFRESH_S: Final = 0.5
_LOOK_S: Final = 1.0  # between looks for new runs, and at a store or bus that is away
_QUIET_S: Final = 2.0  # a run whose partitions are all whole is over when none has come for so long


class Recording(msgspec.Struct, frozen=True):
    """Production: its exchanges become outcomes. `servers` as `ProductionReader` takes them."""

    name: str
    routes: RouteTable
    servers: tuple[str, ...] = ()


class Wanted(msgspec.Struct, frozen=True):
    """What is followed. `runs` None: all that are new, found by `new_runs`."""

    runs: tuple[str, ...] | None
    recordings: tuple[Recording, ...] = ()
    service: str = "livefire"


class Followed(msgspec.Struct):
    """How it goes with one store; written by its thread, read by others."""

    store: str
    outcomes: int = 0
    production: int = 0
    unreadable: int = 0
    open: tuple[str, ...] = ()  # runs and recordings that are followed now
    over: int = 0  # that were followed to their end
    away: str = ""  # why nothing gets on: the store or the bus is not there
    failed: tuple[str, ...] = ()  # what was given up, one line each


class Tail:
    """One run, or one recording, into one store. It begins where the store stands."""

    def __init__(self, bus: Bus, store: Store, service: str, recording: Recording | None = None) -> None:
        self._bus, self._store, self._recording = bus, store, recording
        self.started_s: int | None = None
        self._loads: dict[int, float] = {}
        self._beats: dict[str, Beat] = {}
        self._known: dict[str, str] = {}  # notes that are in the store
        self._quiet_since: float | None = None
        if recording is None:
            self._aggregator = Aggregator(bus, store)
            self._others = [TopicReader(bus, topic) for topic in (topics.CONTROL, topics.BEATS, topics.EXEMPLARS)]
        else:
            reader = ProductionReader(recording.name, RouteMatcher(recording.routes), recording.servers, 0)
            self._aggregator = Aggregator(bus, store, topic=topics.RAW, production=reader)
            self._others = []
        self._note("service", service)

    @property
    def progress(self) -> Any:
        return self._aggregator.progress

    def poll(self) -> int:
        """Take in what is there now; how much it was. Raises BusAway, StoreAway (call again), BusError, StoreError."""
        before = self.progress.outcomes + self.progress.production + self.progress.unreadable
        self._listen()
        self._aggregator.poll()
        self._tell_start()
        return int(self.progress.outcomes + self.progress.production + self.progress.unreadable - before)

    def refresh(self) -> None:
        """Bring windows up to date that are kept as documents. Raises StoreAway, StoreError."""
        mark = self._aggregator.watermark_s(self._beats)
        if mark is not None and not self._aggregator.ended:  # as a whole it is final when it is over
            self._note("watermark_s", str(mark))
        if isinstance(self._store, WindowDocuments):
            self._store.refresh_windows()

    def over(self, now_s: float) -> bool:
        """All of it is whole and in the store, and nothing has come since for a while."""
        if not self._aggregator.ended:
            self._quiet_since = None
            return False
        if self._quiet_since is None:
            self._quiet_since = now_s
        return now_s - self._quiet_since >= _QUIET_S

    def finish(self) -> None:
        """Nothing more will come: every window is final. Raises StoreAway, StoreError."""
        self._note("watermark_s", WHOLE)
        if isinstance(self._store, WindowDocuments):
            self._store.refresh_windows()

    def _listen(self) -> None:
        for reader in self._others:
            for _, batch in reader.batches():
                if batch.header.type == RecordType.CONTROL:
                    for control in batch.records:
                        self._hear(control)
                elif batch.header.type == RecordType.BEAT:
                    for beat in batch.records:
                        self._beats[beat.worker] = beat
                elif batch.header.type == RecordType.EXEMPLAR and isinstance(self._store, WindowDocuments):
                    self._store.exemplars(batch.records)

    def _hear(self, control: Control) -> None:
        if control.action == Action.STEP:
            self._loads.setdefault(control.step, control.load)
            if self.started_s is None:
                self.started_s = control.effective_ns // NS  # a run starts when its first step takes effect

    def _tell_start(self) -> None:
        """Notes that windows go by: they are in the store before the windows are."""
        began_ns = self._aggregator.began_ns
        if began_ns is None:
            return
        if "start_s" not in self._known:
            self._known["start_s"] = self._store.note("start_s") or ""
            if not self._known["start_s"]:
                self._note("start_s", str(began_ns // NS if self.started_s is None else self.started_s))
        speed = self._aggregator.settings_told.get("speed")
        if speed is not None and self._recording is None:
            self._note("speed", str(speed))
            self._note("loads", json.dumps(self._loads))

    def _note(self, name: str, value: str) -> None:
        if self._known.get(name) != value:
            self._store.set_note(name, value)
            self._known[name] = value

    def close(self) -> None:
        self._aggregator.close()
        for reader in self._others:
            reader.close()
        self._store.close()
        self._bus.close()


class StoreFollower:
    """One store's thread: `start`, then `stop`, or wait until `join` says it is done."""

    def __init__(
        self,
        address: str,
        wanted: Wanted,
        open_bus: Callable[[str], Bus],
        new_runs: Callable[[], list[str]],
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`open_bus(scope)` makes a bus for this thread alone; `new_runs()` names runs that are on it by now."""
        self._address, self._wanted, self._open_bus, self._new_runs, self._now = (
            address, wanted, open_bus, new_runs, now,
        )  # fmt: skip
        self.state = Followed(address)
        self._tails: dict[str, Tail] = {}
        self._past: set[str] = set()  # over, or given up
        self._counted: dict[str, tuple[int, int, int]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"store {address}", daemon=True)
        self._looked_s = self._refreshed_s = float("-inf")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Take in no more; what was taken in is written to its end first."""
        self._stop.set()

    def join(self, timeout_s: float | None = None) -> bool:
        """True when the thread is done."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not self._stop.is_set() and not self._done():
                if not self.step():
                    self._stop.wait(_LOOK_S if self.state.away else _POLL_S)
        except Exception as error:  # a bug, told in the one place where somebody reads
            self._give_up("", f"{type(error).__name__}: {error}")
            raise
        finally:
            for name in list(self._tails):
                with self._told(name):
                    self._tails[name].refresh()
                self._close(name)

    def _done(self) -> bool:
        wanted = self._wanted
        if wanted.runs is None:
            return False
        return all(name in self._past for name in (*wanted.runs, *(r.name for r in wanted.recordings)))

    def step(self) -> int:
        """One round over all that is followed; how much was taken in."""
        now_s, self._away = self._now(), ""
        if now_s - self._looked_s >= _LOOK_S:
            self._looked_s = now_s
            self._look()
        refresh = now_s - self._refreshed_s >= _REFRESH_S
        if refresh:
            self._refreshed_s = now_s
        moved = 0
        for name, tail in list(self._tails.items()):
            with self._told(name):
                moved += tail.poll()
                self._count(name, tail)
                if refresh:
                    tail.refresh()
                if tail.over(now_s):
                    tail.finish()
                    self._past.add(name)
                    self.state.over += 1
                    self._close(name)
        self.state.away = self._away
        self.state.open = tuple(self._tails)
        return moved

    def _look(self) -> None:
        """Open what is wanted and not yet open."""
        recordings = {recording.name: recording for recording in self._wanted.recordings}
        names = [*recordings]
        with self._told(""):
            names += self._new_runs() if self._wanted.runs is None else self._wanted.runs
        for name in names:
            if name in self._tails or name in self._past:
                continue
            with self._told(name):
                if self._wanted.runs is None and name not in recordings and self._is_whole(name):
                    self._past.add(name)
                    continue
                self._open(name, recordings.get(name))

    def _is_whole(self, name: str) -> bool:
        """Whether the store has all of a run: then nobody takes it from its readers."""
        with contextlib.ExitStack() as stack:
            try:
                reader = open_reader(self._address, name)
            except StoreAway:
                raise
            except StoreError:
                return False  # there is nothing of it
            stack.callback(reader.close)
            return reader.note("watermark_s") == WHOLE

    def _open(self, name: str, recording: Recording | None) -> None:
        with contextlib.ExitStack() as stack:
            bus = self._open_bus(name)
            stack.callback(bus.close)
            store = open_store(self._address, name)
            stack.callback(store.close)
            self._tails[name] = Tail(bus, store, self._wanted.service, recording)
            stack.pop_all()

    @contextlib.contextmanager
    def _told(self, name: str) -> Iterator[None]:
        """What is away is asked again; what failed is given up, and the others go on."""
        try:
            yield
        except (StoreAway, BusAway) as away:
            self._away = str(away)
        except (StoreError, BusError) as error:
            self._give_up(name, str(error))

    def _give_up(self, name: str, why: str) -> None:
        self.state.failed = (*self.state.failed, f"{name}: {why}" if name else why)
        self._past.add(name)
        self._close(name)

    def _close(self, name: str) -> None:
        tail = self._tails.pop(name, None)
        if tail is not None:
            with contextlib.suppress(StoreError, BusError):
                tail.close()

    def _count(self, name: str, tail: Tail) -> None:
        p = tail.progress
        was, now = self._counted.get(name, (0, 0, 0)), (p.outcomes, p.production, p.unreadable)
        self._counted[name] = now
        self.state.outcomes += now[0] - was[0]
        self.state.production += now[1] - was[1]
        self.state.unreadable += now[2] - was[2]
