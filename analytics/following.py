"""A store is told what happens on a bus: of one run, or of all that are new. One thread a store.

Each store reads the bus for itself and goes on from where it stands: so one that is down holds nobody up, and what it
missed it takes in when it is back. Nothing is queued between them: memory does not grow with an outage.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from analytics.beside import Recording
from analytics.store_address import open_ahead, open_reader, open_store
from analytics.store_port import Ahead, StoreAway, StoreError
from analytics.tail import WHOLE, Counts, Tail
from bus.ports import Bus, BusAway, BusError

_POLL_S: Final = 0.1
_REFRESH_S: Final = 0.5  # between looks at which windows of the first series have changed
_ALL_S: Final = 2.0  # and of all series: the sliding ones are many
_AGAIN_S: Final = 600.0  # between looks at a run that was left without an end: somebody may have settled it
_LOOK_S: Final = 1.0  # between looks for new runs, and at a store or bus that is away


class Wanted(msgspec.Struct, frozen=True):
    """What is followed. `runs` None: all that are new, found by `new_runs`.

    Of the recordings each run is given what went on beside it; with `whole` each recording is also followed itself.
    """

    runs: tuple[str, ...] | None
    recordings: tuple[Recording, ...] = ()
    service: str = "livefire"
    whole: bool = False

    @property
    def apart(self) -> dict[str, Recording]:
        """The recordings that are followed themselves."""
        return {recording.name: recording for recording in self.recordings} if self.whole else {}


class Followed(msgspec.Struct):
    """How it goes with one store; written by its thread, read by others."""

    store: str
    outcomes: int = 0
    production: int = 0
    unreadable: int = 0
    open: tuple[str, ...] = ()  # runs and recordings that are followed now
    over: int = 0  # that were followed to their end
    left: int = 0  # that have no end, and nobody writes any more
    away: str = ""  # why nothing gets on: the store or the bus is not there
    failed: tuple[str, ...] = ()  # what was given up, one line each


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
        self._left: dict[str, float] = {}  # runs without an end -> when they were last looked at
        self._counted: dict[str, Counts] = {}
        self._ahead: Ahead | None = None
        self._has_ahead = True
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"store {address}", daemon=True)
        self._looked_s = self._refreshed_s = self._all_s = float("-inf")

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
            if self._ahead is not None:
                self._ahead.close()

    def _done(self) -> bool:
        wanted = self._wanted
        if wanted.runs is None:
            return False
        return all(name in self._past for name in (*wanted.runs, *wanted.apart))

    def step(self) -> int:
        """One round over all that is followed; how much was taken in."""
        now_s, self._away = self._now(), ""
        if now_s - self._looked_s >= _LOOK_S:
            self._looked_s = now_s
            self._look(now_s)
        refresh = now_s - self._refreshed_s >= _REFRESH_S
        if refresh:
            self._refreshed_s = now_s
        all_series = refresh and now_s - self._all_s >= _ALL_S
        if all_series:
            self._all_s = now_s
        moved = 0
        for name, tail in list(self._tails.items()):
            with self._told(name):
                moved += tail.poll()
                self._count(name, tail)
                if refresh:
                    tail.refresh(all_series=all_series)
                if tail.over(now_s):
                    tail.finish()
                    self._past.add(name)
                    self.state.over += 1
                    self._close(name)
                    self._left.pop(name, None)
                elif tail.left(now_s):
                    tail.refresh()
                    self._leave(name, now_s)
        self.state.left = len(self._left)
        self.state.away = self._away
        self.state.open = tuple(self._tails)
        return moved

    def _look(self, now_s: float) -> None:
        """Open what is wanted and not yet open."""
        with self._told(""):
            self._make_ahead()
        recordings = self._wanted.apart
        names = [*recordings]
        with self._told(""):
            names += self._new_runs() if self._wanted.runs is None else self._wanted.runs
        for name in names:
            if name in self._tails or name in self._past or now_s - self._left.get(name, float("-inf")) < _AGAIN_S:
                continue
            with self._told(name):
                if self._wanted.runs is None and name not in recordings and self._is_whole(name):
                    self._past.add(name)
                    continue
                self._open(name, recordings.get(name))

    def _leave(self, name: str, now_s: float) -> None:
        """What it has is in the store, and not final. One that was asked for by name is waited for no longer."""
        if self._wanted.runs is not None:
            self._give_up(name, "has no end, and nobody writes it any more: what came is in the store")
        else:
            self._left[name] = now_s
            self._close(name)

    def _make_ahead(self) -> None:
        if self._ahead is None and self._has_ahead:
            self._ahead = open_ahead(self._address)
            self._has_ahead = self._ahead is not None
        if self._ahead is not None:
            self._ahead.make()

    def _is_whole(self, name: str) -> bool:
        """Whether the store has all of a run: then nobody takes it from its readers."""
        try:
            with contextlib.closing(open_reader(self._address, name)) as reader:
                return bool(reader.note("watermark_s") == WHOLE)
        except StoreAway:
            raise
        except StoreError:
            return False  # there is nothing of it: no table yet, no file

    def _open(self, name: str, recording: Recording | None) -> None:
        with contextlib.ExitStack() as stack:
            bus = self._open_bus(name)
            stack.callback(bus.close)
            store = open_store(self._address, name)
            stack.callback(store.close)
            beside = []
            for other in self._wanted.recordings if recording is None else ():
                beside.append((other, self._open_bus(other.name)))
                stack.callback(beside[-1][1].close)
            self._tails[name] = Tail(bus, store, name, self._wanted.service, recording=recording, beside=beside)
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
        line = f"{name}: {why}" if name else why
        if line not in self.state.failed:
            self.state.failed = (*self.state.failed, line)
        self._past.add(name)
        self._close(name)

    def _close(self, name: str) -> None:
        tail = self._tails.pop(name, None)
        self._counted.pop(name, None)
        if tail is not None:
            with contextlib.suppress(StoreError, BusError):
                tail.close()

    def _count(self, name: str, tail: Tail) -> None:
        was, now = self._counted.get(name, Counts()), tail.counts
        self._counted[name] = now
        self.state.outcomes += now.outcomes - was.outcomes
        self.state.production += now.production - was.production
        self.state.unreadable += now.unreadable - was.unreadable
