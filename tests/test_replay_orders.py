"""What a worker hears of the conductor, whose clock may differ from its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from bus.logfile import FileBus
from replay.conductor import Conductor
from replay.orders import POLL_NS, Orders
from replay.settings import LEASE_NS
from replay.steps import Timeline
from wire import topics
from wire.records import Action, Control, Lease, Manifest

SECOND = 1_000_000_000
NOW = 1_800_000_000 * SECOND


class Pair:
    """A conductor and a worker's ears; the worker's clock is `ahead_ns` of the conductor's."""

    def __init__(self, folder: Path, ahead_ns: int) -> None:
        self.now = NOW
        self.ahead_ns = ahead_ns
        self.bus = FileBus(folder)
        self.conductor = Conductor(self.bus, "r1", lambda: self.now)
        self.orders = Orders(self.bus, "r1", Timeline())

    def hear(self) -> Orders:
        self.now += POLL_NS
        self.orders.poll(self.now + self.ahead_ns, 0)
        return self.orders

    def left_ns(self) -> int:
        """How long the lease still lasts, to the worker."""
        return self.hear().lease_ns - (self.now + self.ahead_ns)


@pytest.mark.parametrize("ahead_s", [0, 1, -1, -10, -3600])
def test_a_lease_lasts_three_seconds_at_most_whatever_the_clocks_say(tmp_path: Path, ahead_s: int) -> None:
    pair = Pair(tmp_path, ahead_s * SECOND)
    for _ in range(3):
        pair.conductor.renew()
        left = pair.left_ns()
        assert left == min(3 * SECOND - POLL_NS - ahead_s * SECOND, 3 * SECOND)
        pair.now += SECOND // 2


def test_a_clock_that_is_far_ahead_has_no_lease_at_all(tmp_path: Path) -> None:
    pair = Pair(tmp_path, 10 * SECOND)
    pair.conductor.renew()
    assert pair.left_ns() < 0


@pytest.mark.parametrize("ahead_s", [0, 10, -10])
def test_a_stop_holds_at_once_whatever_the_clocks_say(tmp_path: Path, ahead_s: int) -> None:
    pair = Pair(tmp_path, ahead_s * SECOND)
    pair.conductor.stop("enough")
    stop_ns = pair.hear().stop_ns
    assert stop_ns is not None and stop_ns <= pair.now + pair.ahead_ns
    assert pair.orders.stop_reason == "enough"


def test_the_earliest_stop_holds_and_a_later_one_takes_nothing_back(tmp_path: Path) -> None:
    pair = Pair(tmp_path, 0)
    manifest = Manifest(topics.CONTROL, "stop-1", "r1", NOW, "test")
    with pair.bus.writer(topics.CONTROL, "stop-1", manifest) as writer:
        for sequence, seconds in enumerate((5, 2, 9)):
            writer.write_records(
                [Control("r1", sequence, Action.STOP, NOW + seconds * SECOND, reason=f"in {seconds}", issued_ns=NOW)]
            )
        assert pair.hear().stop_ns == NOW + 2 * SECOND
        assert pair.orders.stop_reason == "in 2"
        writer.write_records([Control("another run", 9, Action.STOP, NOW, issued_ns=NOW)])
        assert pair.hear().stop_ns == NOW + 2 * SECOND
        writer.write_records([Control("*", 10, Action.STOP, NOW, reason="all", issued_ns=NOW)])
        assert pair.hear().stop_reason == "all"


def test_no_lease_lasts_longer_than_the_run_allows(tmp_path: Path) -> None:
    """Whatever is written into the control topic: a lease for a century, said by who knows whom."""
    pair = Pair(tmp_path, 0)
    writer = pair.bus.writer(topics.CONTROL, "someone", Manifest(topics.CONTROL, "someone", "r1", NOW, "test"))
    writer.write_records((Lease("r1", 1, 0, NOW + 3_000_000_000 * SECOND),))
    assert pair.left_ns() == LEASE_NS
    pair.now += SECOND
    assert pair.left_ns() == LEASE_NS - SECOND - POLL_NS  # and it is not renewed by being there
