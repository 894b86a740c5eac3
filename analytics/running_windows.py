"""Windows that are kept up to date while panes come in, for stores that hold windows as documents. Pure but for `load`.

Each pane is added to the windows that it belongs to and that are in memory. The others (after a restart, and for what
comes late) are made anew of the stored panes when they are due to be written; so memory is bounded, and nothing that
is stored can be missing from a window. What was changed since the last `take` is what `take` gives.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Final

import msgspec

from analytics.fields import SERIES, Series
from analytics.windows import ALL_ROUTES, Adder, Scope, Window
from wire.records import Pane

Slot = tuple[Series, int]  # the series, and the second that a window of it begins at
_LATE_S: Final = 120  # how long after its end a window is kept at hand: most of what is late comes within it
_STRETCH_S: Final = 600  # of stored panes that are loaded at a time


class _Sums(msgspec.Struct):
    adders: dict[Scope, Adder]
    changed: set[Scope]


class RunningWindows:
    """The windows of one run."""

    def __init__(
        self,
        run_id: str,
        start_s: int,
        load: Callable[[int, int], Iterable[Pane]],
        *,
        span: tuple[int, int] | None = None,
        series: tuple[Series, ...] = SERIES,
    ) -> None:
        """`load(first_s, end_s)` gives stored panes, `span` is their first and last second; None = there are none."""
        self._run_id, self._start_s, self._load, self._series = run_id, start_s, load, series
        self._oldest_s: int | None = span[0] if span else None
        self._newest_s: int | None = span[1] if span else None
        self._sums: OrderedDict[Slot, _Sums] = OrderedDict()  # by when each was last added to
        self._stale: set[Slot] = set()  # not in memory, to be made of stored panes
        self._growing: set[Slot] = set()  # written, and not final
        self._taken: set[Slot] = set()  # given by the latest `take`
        self._watermark_s: int | None = None

    def add(self, panes: Iterable[Pane]) -> None:
        """Panes that are in the store by now."""
        panes = list(panes)
        if not panes:
            return
        newest_s = self._newest_s
        self._begin(min(pane.second for pane in panes))
        for pane in panes:
            for slot in self._slots(pane.second, pane.second):
                sums = self._sums.get(slot)
                if sums is None:
                    if slot in self._stale or (newest_s is not None and slot[1] <= newest_s):
                        self._stale.add(slot)
                        continue
                    sums = self._sums[slot] = _Sums({}, set())
                _add(sums, pane)
                self._sums.move_to_end(slot)
        latest_s = max(pane.second for pane in panes)
        self._newest_s = latest_s if newest_s is None else max(newest_s, latest_s)

    def _begin(self, second: int) -> None:
        """Windows that begin before the first pane's own slot are left out: an earlier one brings more of them in."""
        was, self._oldest_s = self._oldest_s, second if self._oldest_s is None else min(self._oldest_s, second)
        if was is not None and self._oldest_s < was:
            self.touch(self._oldest_s, was)

    def touch(self, first_s: int, last_s: int) -> None:
        """Windows with a part in [first_s, last_s] may have been written before all of it was in them."""
        self._stale.update(slot for slot in self._slots(first_s, last_s) if slot not in self._sums)

    def growing(self, series: Series, start_s: int) -> None:
        """This window was written, and not as final."""
        self._growing.add((series, start_s))

    @property
    def watermark_s(self) -> int | None:
        return self._watermark_s

    @watermark_s.setter
    def watermark_s(self, second: int | None) -> None:
        """Windows that end up to it are final: those that were not are given by the next `take`."""
        if second is None or (self._watermark_s is not None and second <= self._watermark_s):
            return
        self._watermark_s = second
        for slot in [slot for slot in self._growing if slot[1] + slot[0].over_s <= second]:
            sums = self._sums.get(slot)
            if sums is None:
                self._stale.add(slot)
            else:
                sums.changed.update(sums.adders)

    def take(self, some: Collection[Series] | None = None) -> Iterator[tuple[Series, Window]]:
        """What changed since the last time, of all series or some. What was not read to its end is given again."""
        wanted, self._taken = self._series if some is None else some, set()
        for slot in [slot for slot, sums in self._sums.items() if sums.changed and slot[0] in wanted]:
            yield from self._given(slot, self._sums[slot])
        for slot, sums in self._made_of_stored(wanted):
            yield from self._given(slot, sums)
            self._stale.discard(slot)
            if self._newest_s is not None and not self._is_past(slot):
                self._sums[slot] = sums
        self._forget()

    def again(self) -> None:
        """What was taken last could not be written: give it again, also what is not kept at hand any more."""
        self._stale.update(self._sums, self._taken)
        self._sums.clear()

    def _given(self, slot: Slot, sums: _Sums) -> Iterator[tuple[Series, Window]]:
        series, first = slot
        end = first + series.over_s
        self._taken.add(slot)
        final = self._watermark_s is not None and end <= self._watermark_s
        for scope in sums.changed:
            adder = sums.adders[scope]
            yield (
                series,
                Window(
                    run_id=self._run_id, kind=scope[0], route=scope[1], start_s=first, end_s=end,
                    elapsed_s=first - self._start_s, step=adder.step, final=final, tally=adder.total(),
                ),
            )  # fmt: skip
        sums.changed = set()
        if final:
            self._growing.discard(slot)
        else:
            self._growing.add(slot)

    def _made_of_stored(self, wanted: Collection[Series]) -> Iterator[tuple[Slot, _Sums]]:
        """Stale windows, so many at a time that few panes are in memory."""
        todo = sorted((slot for slot in self._stale if slot[0] in wanted), key=lambda slot: slot[1])
        while todo:
            until = todo[0][1] + max(_STRETCH_S, todo[0][0].over_s)
            some = [slot for slot in todo if slot[1] + slot[0].over_s <= until] or todo[:1]
            made = {slot: _Sums({}, set()) for slot in some}
            for pane in self._load(some[0][1], max(first + series.over_s for series, first in some)):
                for slot in self._slots(pane.second, pane.second):
                    if slot in made:
                        _add(made[slot], pane)
            yield from made.items()
            todo = [slot for slot in todo if slot not in made]

    def _slots(self, first_s: int, last_s: int) -> Iterator[Slot]:
        """The windows that hold a part of [first_s, last_s]."""
        for series in self._series:
            k = (first_s - self._start_s - series.over_s) // series.every_s + 1
            if self._oldest_s is not None:
                k = max(k, (self._oldest_s - self._start_s) // series.every_s)
            while (first := self._start_s + k * series.every_s) <= last_s:
                yield series, first
                k += 1

    def _is_past(self, slot: Slot) -> bool:
        return self._newest_s is not None and slot[1] + slot[0].over_s + _LATE_S < self._newest_s

    def _forget(self) -> None:
        for slot in [slot for slot in self._sums if self._is_past(slot)]:
            if not self._sums[slot].changed:
                del self._sums[slot]

    def __len__(self) -> int:
        """Sums that are in memory."""
        return sum(len(sums.adders) for sums in self._sums.values())


def _add(sums: _Sums, pane: Pane) -> None:
    for route in (ALL_ROUTES, pane.route):
        scope = (pane.kind, route)
        adder = sums.adders.get(scope)
        if adder is None:
            adder = sums.adders[scope] = Adder()
        adder.add(pane)
        sums.changed.add(scope)
