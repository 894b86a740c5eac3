"""The wall clock is set while it is recorded: times go on, holes are given up, and the account says so."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pcap_build import Conversation
from test_capture_pair import answer, get, shown
from test_capture_record import Counting, exchanges, needs_ring, server, settings_for, until
from test_capture_record import get as fetch

from capture import record as recorder
from capture import steps as steps_module
from capture.assembler import Assembler
from capture.settings import CaptureSettings
from capture.steps import LEAST_NS, Steps

__all__ = ["server"]
SECOND = 1_000_000_000
BLOCK = SECOND // 20
ANCHOR = 1_700_000_000 * SECOND


class Clocks:
    def __init__(self) -> None:
        self.true_ns = 1000 * SECOND  # monotonic
        self.set_ns = 0  # what the wall clock was set by

    def steps(self) -> Steps:
        return Steps(ANCHOR, wall_ns=lambda: ANCHOR + self.true_ns + self.set_ns, monotonic_ns=lambda: self.true_ns)


def through_a_ring(gaps: list[int], at: int, by: int, busy: range) -> tuple[list[int], list[int], Steps]:
    """Packets with so long between them, the clock set before the one with number `at`, blocks handed over as they are
    full, but none during the packets of `busy`: (when they came, what is told), in unix ns."""
    clocks = Clocks()
    steps = clocks.steps()
    waiting: list[int] = []
    true: list[int] = []
    told: list[int] = []
    opened = clocks.true_ns

    def walk() -> None:
        time_of = steps.look()
        told.extend(stamp if time_of is None else time_of(stamp) for stamp in waiting)
        waiting.clear()
        steps.drained()

    for number, gap in enumerate(gaps):
        while gap > BLOCK:  # the kernel's timer goes on
            clocks.true_ns += BLOCK
            gap -= BLOCK
            if number not in busy:
                walk()
        clocks.true_ns += gap
        if number == at:
            clocks.set_ns += by
        waiting.append(ANCHOR + clocks.true_ns + clocks.set_ns)
        true.append(ANCHOR + clocks.true_ns)
        if clocks.true_ns - opened > BLOCK and number not in busy:
            opened = clocks.true_ns
            walk()
    walk()
    return true, told, steps


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 3 * SECOND), min_size=1, max_size=40),
    st.integers(0, 39),
    st.integers(-86_400 * SECOND, 86_400 * SECOND) | st.integers(-SECOND, SECOND),
    st.integers(0, 40),
    st.integers(0, 3),
)
@example([0, 0], 1, -LEAST_NS, 0, 0)
@example([0, 10_000_000, 15_000_000], 2, -20_000_000, 0, 0)
def test_times_go_on_whatever_the_clock_is_set_by(gaps: list[int], at: int, by: int, busy: int, some: int) -> None:
    true, told, steps = through_a_ring(gaps, at, by, range(busy, busy + some))
    seen = at < len(gaps) and abs(by) >= LEAST_NS
    assert (steps.count, steps.ns) == ((1, by) if seen else (0, 0))
    waited = BLOCK * 2 + sum(gaps[busy : busy + some + 1])  # the longest that a packet waits to be handed over
    for came, said in zip(true, told, strict=True):
        assert abs(said - came) <= min(abs(by), waited + LEAST_NS)
    if by <= -LEAST_NS:
        assert told == sorted(told)


@pytest.mark.parametrize("by", [3600 * SECOND, -3600 * SECOND])
def test_what_was_stamped_before_a_step_and_is_handed_over_after_it_keeps_its_time(by: int) -> None:
    """Packets of one block, the clock set in the midst of them."""
    true, told, steps = through_a_ring([BLOCK // 50] * 20, 9, by, range(0))
    assert steps.count == 1
    assert all(abs(said - came) <= BLOCK + LEAST_NS for came, said in zip(true, told, strict=True))


def test_small_steps_back_and_forth_are_followed_by_the_next_ones() -> None:
    clocks = Clocks()
    steps = clocks.steps()
    for by in (-SECOND, 3 * SECOND, LEAST_NS - 1, -2 * SECOND):
        clocks.set_ns += by
        clocks.true_ns += SECOND
        time_of = steps.look()
        assert time_of is not None
        assert abs(time_of(ANCHOR + clocks.true_ns + clocks.set_ns) - ANCHOR - clocks.true_ns) < LEAST_NS
    assert steps.count == 3 and abs(steps.ns - clocks.set_ns) < LEAST_NS


@pytest.mark.parametrize("corrected", [True, False])
def test_after_a_step_back_a_hole_is_given_up_as_before(corrected: bool) -> None:
    """An answer's segment is lost; the clock goes back by an hour; the connection goes on, and ten seconds later all of
    it is there. Without correction nothing is: the packets' clock stands still."""
    clocks = Clocks()
    steps = clocks.steps()
    assembler = Assembler("r", CaptureSettings(), None, b"key")
    talk = Conversation(start_ns=0).open().client(get("/1")).server(answer(b"x" * 3000)).client(get("/2"))
    talk.server(answer(b"two")).ack(0)
    frames = [frame for number, (_, frame) in enumerate(talk.packets) if number != 5]
    idle = Conversation(("10.0.0.9", 50000), start_ns=0).open()
    for _ in range(10):
        idle.ack(0)
    frames += [frame for _, frame in idle.packets]
    for number, frame in enumerate(frames):
        clocks.true_ns += SECOND // (1000 if number < len(frames) - 10 else 1)
        if number == 5:
            clocks.set_ns -= 3600 * SECOND
        stamp = ANCHOR + clocks.true_ns + clocks.set_ns
        time_of = steps.look()
        assembler.packet(time_of(stamp) if time_of is not None and corrected else stamp, frame, len(frame))
    found = shown(assembler.take())
    assert [path for path, _, _ in found] == ([b"/1", b"/2"] if corrected else [])
    assembler.finish()
    assert assembler.account.balanced


@needs_ring
def test_a_ring_goes_on_and_the_account_says_by_how_much(
    server: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wall clock goes back by an hour against the other one: as seen from here, that one goes on by an hour."""
    set_ns = [0]
    asked: list[int] = []
    real = steps_module._kernel_ns

    class Stepped(Steps):
        def __init__(self, anchor_ns: int | None = None, **clocks: object) -> None:
            super().__init__(
                anchor_ns,
                wall_ns=lambda: real() + set_ns[0],
                monotonic_ns=time.monotonic_ns,
            )

        def time_of(self, stamp_ns: int) -> int:
            asked.append(stamp_ns)
            return super().time_of(stamp_ns + set_ns[0])  # as the kernel would have stamped it

    monkeypatch.setattr("capture.choose.Steps", Stepped)
    monkeypatch.setattr(recorder, "Steps", Stepped)
    chosen, port = settings_for("ring", server, tmp_path / "live.lf")
    over, ready = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(
            recorder.record, chosen, None, b"k" * 32, over.is_set, lambda _: ready.set(),
            anchor_ns=time.time_ns() - time.monotonic_ns(),
        )  # fmt: skip
        try:
            assert ready.wait(10), running.exception(0)
            fetch(port, ["/before"])
            until(lambda: len(exchanges(Path(chosen.to))) == 1)
            before = time.time_ns()
            set_ns[0] = -3600 * SECOND
            fetch(port, ["/after"])
            until(lambda: len(exchanges(Path(chosen.to))) == 2)
        finally:
            over.set()
        account = running.result().as_json()
    first, second = exchanges(Path(chosen.to))
    assert asked, "the ring takes its packets' times from it"
    assert first.request_start_ns < before <= second.request_start_ns + LEAST_NS < before + 60 * SECOND
    notes = account["notes"]
    assert isinstance(notes, dict)
    assert account["balanced"] and notes["clock_steps"] == 1
    assert abs(notes["clock_step_ns"] + 3600 * SECOND) < LEAST_NS
