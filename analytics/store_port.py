"""The port of stores: where panes are kept. SQLite implements it on one machine, databases for a fleet.

A store is opened for one run (`analytics.store_address`): its source ranges and notes are that run's. What a
backend must keep is written here, and checked of each by one suite (tests/test_analytics_store_contract.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from analytics.windows import Window
from wire.records import Exemplar, Pane, SourceRange


class StoreError(Exception):
    """A store that cannot be used. The text is one line for the user."""


class StoreAway(StoreError):
    """The store cannot be reached now; the same call may succeed later, and counts once whatever became of this one."""


class PaneWriter(Protocol):
    """The one writer of a run's panes. Calls come from one thread.

    A second writer of the same run is refused when it is opened, or makes the first one's next `apply` raise
    StoreError: two would count twice.
    """

    def apply(self, panes: Sequence[Pane], sources: Sequence[SourceRange]) -> bool:
        """Add panes that were made of exactly these ranges; all of it or nothing.

        Ranges without panes are remembered too.
        False, and nothing changes, when the store holds the ranges already: so what was read twice (after a crash,
        by a retry) counts once. When it returns True a killed process loses it no more. Raises StoreError, with nothing
        changed, when a part of the ranges is held and a part is not: such panes can be neither added nor left out.
        StoreAway: it may be in the store or not; call again with the same arguments, or go on from `resume`.
        """

    def resume(self, topic: str, partition: str) -> int:
        """The offset up to which a partition is held from its beginning without a hole; 0 = nothing."""

    def set_note(self, name: str, value: str) -> None:
        """Keep a small fact beside the panes. `start_s`, the run's first second, does not change once it is set."""

    def close(self) -> None: ...


class PaneReader(Protocol):
    """Any number of readers, in any process. Each call sees one moment of the store."""

    def panes(self, run_id: str, first_s: int | None = None, end_s: int | None = None) -> list[Pane]:
        """Panes of a run whose second is in [first_s, end_s), in order of second: one a key, everything added up."""

    def windows(
        self, run_id: str, *, every_s: int, over_s: int, start_s: int, watermark_s: int | None = None
    ) -> list[Window]:
        """What `analytics.windows.windows` makes of the run's panes, to the last digit, in its order."""

    def note(self, name: str) -> str | None:
        """A small fact that was kept beside the panes (`watermark_s`, `start_s`)."""

    def close(self) -> None: ...


class Store(PaneWriter, PaneReader, Protocol):
    """A run's panes, to be written and read by one thread."""


@runtime_checkable
class WindowDocuments(Protocol):
    """A store that keeps windows as documents, and exemplars: it says when they are written."""

    def refresh_windows(self, *, all_series: bool = True) -> int:
        """Write the windows that changed since the last time; how many. Raises StoreAway (call again), StoreError.

        Without `all_series` only those that people look at first (`fields.SERIES`): it costs a fraction.
        """

    def exemplars(self, made: Sequence[Exemplar]) -> int:
        """Keep slow and failed shots, masked by who made them; how many were new. Raises as `refresh_windows`."""


class Ahead(Protocol):
    """What makes ready in a store, before there is a run, what its first windows would have to wait for."""

    def make(self) -> None:
        """To be called every now and then; each call makes a little. Raises StoreAway, StoreError: call again."""

    def close(self) -> None: ...
