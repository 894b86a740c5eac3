"""The feeder without its firer: what it makes of a slice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from recordings import MS, SECOND, even, make_clean

from bus.logfile import FileBus
from replay import summary
from replay.amplify import Draws
from replay.book import Books
from replay.feeder import Feeder, manifest_of
from replay.identity import Identities
from replay.recording import Recording
from replay.schedule import Schedule
from replay.settings import WorkerSettings
from replay.steps import Step, Timeline
from wire import topics

BASE = 1_800_000_000 * SECOND


class Handed:
    """A link that keeps what it is handed."""

    def __init__(self) -> None:
        self.shots: list[tuple[int, bytes]] = []
        self.writer = self
        self.waiting_bytes = 0

    def shot(self, serial: int, ready_ns: int, flags: int, first: bytes, last: bytes) -> None:
        self.shots.append((ready_ns, first))

    def send_shots(self) -> None: ...

    def end(self) -> None: ...


@pytest.mark.parametrize(
    ("behind_ns", "late"), [(0, 0), (SECOND - 250 * MS, 0), (SECOND + 30 * MS, 30), (60 * SECOND, 100)]
)
def test_what_is_too_late_when_it_is_made_is_claimed_and_booked_and_not_handed_over(
    tmp_path: Path, behind_ns: int, late: int
) -> None:
    """Otherwise a feeder that fell behind renders for ever what the firer sheds for ever."""
    settings = WorkerSettings(
        run_id="r1", run_dir=str(tmp_path), worker="w0", index=0, workers=1, recording="", target="http://t", key_id="k",
        key_hex="00" * 32,
    )  # fmt: skip
    bus = FileBus(tmp_path)
    books = Books(bus, manifest_of(settings, topics.CLAIMS, 1), "r1", "w0", settings.kind)
    recording = Recording(make_clean(tmp_path / "clean.lf", even(100, 1000.0)))
    timeline = Timeline()
    timeline.add(Step(BASE, 0, 1.0))
    schedule = Schedule(
        recording.stamped, timeline, Draws(0, 1, 0), speed=1.0, spread_ns=0, laps=1, lap_ns=SECOND, skip_unsafe=False
    )
    link: Any = Handed()
    beats = bus.writer(topics.BEATS, "w0", manifest_of(settings, topics.BEATS, 1))
    now = BASE + behind_ns
    feeder = Feeder(settings, bus, link, schedule, timeline, Identities(()), None, books, beats, b"t", lambda: now)
    feeder._orders.lease_ns = feeder._lease_told = BASE + 100 * SECOND
    feeder._make(now)
    assert len(link.shots) == 100 - late
    assert len({first for _, first in link.shots}) == 100 - late
    books.flush(now, force=True)
    found, _ = summary.read(tmp_path)
    assert found.planned == 100
    assert found.failures == ({"shed_late": late} if late else {})
    books.close(now)
    beats.close()
