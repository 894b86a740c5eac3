"""The port of stores: where panes are kept. SQLite implements it on one machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from wire.records import Pane, SourceRange


class StoreError(Exception):
    """A store that cannot be used. The text is one line for the user."""


class PaneWriter(Protocol):
    """The one writer of a store. Calls come from one thread."""

    def apply(self, panes: Sequence[Pane], sources: Sequence[SourceRange]) -> bool:
        """Add panes that were made of exactly these ranges; all of it or nothing.

        False, and nothing changes, when the store holds the ranges already: so what was read twice (after a crash,
        by a retry) counts once. When it returns True a killed process loses it no more. Raises StoreError, with nothing
        changed, when a part of the ranges is held and a part is not: such panes can be neither added nor left out.
        """

    def resume(self, topic: str, partition: str) -> int:
        """The offset up to which a partition is held from its beginning without a hole; 0 = nothing."""

    def close(self) -> None: ...


class PaneReader(Protocol):
    """Any number of readers, in any process. Each call sees one moment of the store."""

    def panes(self, run_id: str, first_s: int | None = None, end_s: int | None = None) -> list[Pane]:
        """Panes of a run whose second is in [first_s, end_s), in order of second."""

    def note(self, name: str) -> str | None:
        """A small fact that was kept beside the panes (`watermark_s`, `start_s`)."""

    def close(self) -> None: ...
