"""One run, or one recording, into one store: what is on the bus by now, and what the store has to know beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

import msgspec

from analytics.app import Aggregator
from analytics.beside import Beside, Recording
from analytics.panes import NS
from analytics.production import ProductionReader
from analytics.store_port import Store, WindowDocuments
from bus.ports import Bus
from bus.topic import TopicReader
from wire import topics
from wire.codec import RecordType
from wire.records import Action, Beat, Control
from wire.routes import RouteMatcher

WHOLE: Final = str(1 << 40)  # the note `watermark_s` of what is final as a whole
_QUIET_S: Final = 2.0  # a run whose partitions are all whole is over when none has come for so long
_BESIDE_S: Final = 15.0  # how long production that a recorder still holds is waited for, once the run has ended
_LEFT_S: Final = 600.0  # a run without an end that nobody writes any more is left when nothing has come for so long
_BESIDE_LAG_S: Final = 5  # windows are final so much later when production goes into them, too


class Counts(msgspec.Struct, frozen=True):
    """What a tail has taken in."""

    outcomes: int = 0
    production: int = 0
    unreadable: int = 0


class Tail:
    """One run, or one recording, into one store. It begins where the store stands."""

    def __init__(
        self,
        bus: Bus,
        store: Store,
        run_id: str,
        service: str,
        *,
        recording: Recording | None = None,
        beside: Sequence[tuple[Recording, Bus]] = (),
    ) -> None:
        """`recording`: it is what is followed. `beside`: recordings of what went on beside the run, and their buses."""
        self._bus, self._store, self._run_id, self._recording = bus, store, run_id, recording
        self._beside_buses = [of for _, of in beside]
        self._waiting, self._beside = list(beside), list[Beside]()  # until the run has started; since then
        self.started_ns: int | None = None
        self._loads: dict[int, float] = {}
        self._beats: dict[str, Beat] = {}
        self._known: dict[str, str] = {}  # notes that are in the store
        self._quiet_since: float | None = None
        self._still = (Counts(), float("inf"))  # what had been taken in, and since when nothing more has been
        if recording is None:
            self._aggregator = Aggregator(bus, store)
            self._others = [TopicReader(bus, topic) for topic in (topics.CONTROL, topics.BEATS, topics.EXEMPLARS)]
        else:
            reader = ProductionReader(recording.name, RouteMatcher(recording.routes), recording.servers, 0)
            self._aggregator = Aggregator(bus, store, topic=topics.RAW, production=reader)
            self._others = []
        self._note("service", service)

    @property
    def counts(self) -> Counts:
        made = [aggregator.progress for aggregator in (self._aggregator, *self._beside)]
        return Counts(
            sum(progress.outcomes for progress in made),
            sum(progress.production for progress in made),
            sum(progress.unreadable for progress in made),
        )

    def poll(self) -> int:
        """Take in what is there now; how much it was. Raises BusAway, StoreAway (call again), BusError, StoreError."""
        before = self.counts
        self._listen()
        taken = self._aggregator.poll()
        self._tell_start()
        if not taken:  # the run's own first: how far it has come says what of production counts
            self._poll_beside()
        now = self.counts
        return now.outcomes + now.production + now.unreadable - before.outcomes - before.production - before.unreadable

    def _poll_beside(self) -> None:
        start = self._known.get("start_s")
        if start is None:
            return
        since_ns = int(start) * NS if self.started_ns is None else self.started_ns
        while self._waiting:
            recording, bus = self._waiting[-1]
            self._beside.append(Beside(bus, self._store, self._run_id, recording, since_ns))
            self._waiting.pop()
        for beside in self._beside:
            beside.reached(self._reached_ns, ended=self._aggregator.ended)
            beside.poll()

    @property
    def _reached_ns(self) -> int:
        """The run's latest sign of life."""
        return max((beat.at_ns for beat in self._beats.values()), default=self._aggregator.progress.last_sent_ns)

    def refresh(self, *, all_series: bool = True) -> None:
        """Bring windows up to date that are kept as documents. Raises StoreAway, StoreError."""
        if not all_series:
            if isinstance(self._store, WindowDocuments):
                self._store.refresh_windows(all_series=False)
            return
        mark = self._aggregator.watermark_s(self._beats)
        if mark is not None and not self._aggregator.ended:  # as a whole it is final when it is over
            self._note("watermark_s", str(mark - _BESIDE_LAG_S if self._beside or self._waiting else mark))
        if isinstance(self._store, WindowDocuments):
            self._store.refresh_windows()

    def over(self, now_s: float) -> bool:
        """All of it is whole and in the store, and nothing has come since for a while."""
        if not self._aggregator.ended:
            self._quiet_since = None
            return False
        if self._quiet_since is None:
            self._quiet_since = now_s
        complete = not self._waiting and all(beside.complete for beside in self._beside)
        return now_s - self._quiet_since >= (_QUIET_S if complete else _BESIDE_S)

    def left(self, now_s: float) -> bool:
        """It has no end, nobody writes it, and nothing has come for a while: its workers were killed, and nobody has
        settled their books. Not asked of recordings: a recorder goes on with one after days. Raises BusAway."""
        was, since_s = self._still
        if self.counts != was or now_s < since_s:
            self._still = self.counts, now_s
            return False
        if self._recording is not None or self._aggregator.ended or now_s - since_s < _LEFT_S:
            return False
        held = (self._bus.held(topics.OUTCOMES, name) for name in self._bus.partitions(topics.OUTCOMES))
        if any(held):
            self._still = was, now_s  # asked again after as long
            return False
        return True

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
            if self.started_ns is None:
                self.started_ns = control.effective_ns  # a run starts when its first step takes effect

    def _tell_start(self) -> None:
        """Notes that windows go by: they are in the store before the windows are."""
        began_ns = self._aggregator.began_ns
        if began_ns is None:
            return
        if "start_s" not in self._known and (known := self._store.note("start_s")):
            self._known["start_s"] = known
        if "start_s" not in self._known:
            if self._recording is None and self.started_ns is None and not self._took_any:
                return  # workers have opened their books, and wait for the first step as this does
            self._note("start_s", str((began_ns if self.started_ns is None else self.started_ns) // NS))
        speed = self._aggregator.settings_told.get("speed")
        if speed is not None and self._recording is None:
            self._note("speed", str(speed))
            self._note("loads", json.dumps(self._loads))

    @property
    def _took_any(self) -> bool:
        return bool(self._aggregator.progress.outcomes) or self._aggregator.ended

    def _note(self, name: str, value: str) -> None:
        if self._known.get(name) != value:
            self._store.set_note(name, value)
            self._known[name] = value

    def close(self) -> None:
        for aggregator in (self._aggregator, *self._beside):
            aggregator.close()
        for reader in self._others:
            reader.close()
        self._store.close()
        for bus in (self._bus, *self._beside_buses):
            bus.close()
