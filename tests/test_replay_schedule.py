import itertools
import random
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import MS, SECOND, even, exchange

from replay.amplify import Draws, admits
from replay.recording import lap_length_ns
from replay.schedule import Planned, Schedule, due_ns
from replay.steps import Step, Timeline
from wire.records import Stamped

BASE = 1_800_000_000_000_000_000


def timeline_of(*steps: tuple[int, float]) -> Timeline:
    timeline = Timeline()
    for number, (at, load) in enumerate(steps):
        timeline.add(Step(BASE + at, number, load))
    return timeline


def schedule_of(
    exchanges: Sequence[Stamped], timeline: Timeline, *, index: int = 0, workers: int = 1, spread: int = 0,
    speed: float = 1.0, laps: int = 1, lap: int = SECOND, skip_unsafe: bool = False,
) -> Schedule:  # fmt: skip
    def recording() -> Iterator[Stamped]:
        return iter(exchanges)

    return Schedule(
        recording, timeline, Draws(index, workers, spread), speed=speed, spread_ns=spread, laps=laps, lap_ns=lap,
        skip_unsafe=skip_unsafe,
    )  # fmt: skip


def all_of(schedule: Schedule, slice_ns: int = 100 * MS, most: int = 100_000) -> list[Planned]:
    shots: list[Planned] = []
    until = BASE
    for _ in range(most):
        until += slice_ns
        shots += schedule.take(until)
        if schedule.finished:
            return shots
    raise AssertionError("the schedule does not end")


def name(shot: Planned) -> tuple[bytes, int, int]:
    return shot.item.stamped.exchange_id, shot.copy, shot.lap


@st.composite
def recordings(draw: st.DrawFn) -> list[Stamped]:
    offsets = sorted(draw(st.lists(st.integers(0, 3 * SECOND), min_size=1, max_size=40)))
    starts: dict[int, int] = {}
    made = []
    for number, offset in enumerate(offsets):
        session = draw(st.integers(0, 7))
        start = starts.setdefault(session, offset)
        made.append(exchange(number, offset, session=session, session_start_ns=start))
    return made


@settings(max_examples=60, deadline=None)
@given(recordings(), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2 * SECOND), st.integers(1, 3))
def test_copies_are_exact_over_workers_and_laps(
    exchanges: list[Stamped], copies: int, workers: int, spread: int, laps: int
) -> None:
    lap = exchanges[-1].offset_ns + 1
    shots: list[tuple[bytes, int, int]] = []
    for index in range(workers):
        schedule = schedule_of(
            exchanges, timeline_of((0, copies)), index=index, workers=workers, spread=spread, laps=laps, lap=lap
        )
        mine = all_of(schedule)
        assert [shot.due_ns for shot in mine] == sorted(shot.due_ns for shot in mine)
        shots += map(name, mine)
    assert len(shots) == copies * laps * len(exchanges)
    assert len(set(shots)) == len(shots)


@settings(max_examples=40, deadline=None)
@given(recordings(), st.integers(0, SECOND), st.sampled_from([0.5, 1.0, 2.0, 3.7]))
def test_due_times_follow_the_formula(exchanges: list[Stamped], spread: int, speed: float) -> None:
    lap = exchanges[-1].offset_ns + 1
    draws = Draws(0, 1, spread)
    for shot in all_of(schedule_of(exchanges, timeline_of((0, 2)), spread=spread, speed=speed, laps=2, lap=lap)):
        shift = draws.of(shot.item.stamped.session_id, shot.copy).shift_ns
        assert shot.due_ns == due_ns(BASE, shot.lap, lap, shot.item.stamped.offset_ns, speed, shift)
        assert shot.copy or not shift
        assert 0 <= shift <= spread


def test_speed_two_halves_all_distances() -> None:
    once = all_of(schedule_of(even(50, 100.0), timeline_of((0, 1))))
    twice = all_of(schedule_of(even(50, 100.0), timeline_of((0, 1)), speed=2.0))
    assert [shot.due_ns - BASE for shot in twice] == [(shot.due_ns - BASE) // 2 for shot in once]


def test_slicing_does_not_change_what_is_made() -> None:
    exchanges = even(200, 100.0)
    made = [
        [(name(shot), shot.due_ns) for shot in all_of(schedule_of(exchanges, timeline_of((0, 3)), spread=SECOND), size)]
        for size in (7 * MS, 100 * MS, 10 * SECOND)
    ]
    assert made[0] == made[1] == made[2]
    assert len(made[0]) == 600


def test_two_and_a_half_is_two_copies_of_all_and_a_third_of_half() -> None:
    exchanges = even(4000, 1000.0, per_session=2)
    copies = Counter(shot.copy for shot in all_of(schedule_of(exchanges, timeline_of((0, 2.5)))))
    assert copies[0] == copies[1] == 4000
    assert 1800 < copies[2] < 2200
    sessions = Counter(
        (shot.item.stamped.session_id, shot.copy) for shot in all_of(schedule_of(exchanges, timeline_of((0, 2.5))))
    )
    assert set(sessions.values()) == {2}, "a session is fired whole or not at all"


def test_the_mean_rate_is_the_same_over_any_number_of_laps() -> None:
    exchanges = even(100, 50.0)
    lap = lap_length_ns(100, exchanges[-1].offset_ns)
    assert lap == 2 * SECOND
    shots = all_of(schedule_of(exchanges, timeline_of((0, 1)), laps=5, lap=lap))
    distances = {b.due_ns - a.due_ns for a, b in itertools.pairwise(shots)}
    assert distances == {20 * MS}


def test_a_step_admits_by_its_own_shifted_start() -> None:
    exchanges = even(400, 100.0, per_session=2)
    timeline = timeline_of((0, 1), (2 * SECOND, 3))
    shots = all_of(schedule_of(exchanges, timeline, spread=SECOND))
    for shot in shots:
        assert shot.copy == 0 or shot.start_ns >= BASE + 2 * SECOND
    added = {name(shot) for shot in shots if shot.copy}
    draws = Draws(0, 1, SECOND)
    expected = {
        (one.exchange_id, copy, 0)
        for one in exchanges
        for copy in (1, 2)
        if one.session_start_ns + draws.of(one.session_id, copy).shift_ns >= 2 * SECOND
    }
    assert added == expected


def test_a_step_announced_while_running_makes_the_same_shots() -> None:
    exchanges = even(400, 100.0, per_session=2)
    known = all_of(schedule_of(exchanges, timeline_of((0, 1), (2 * SECOND, 3)), spread=SECOND))
    timeline = timeline_of((0, 1))
    schedule = schedule_of(exchanges, timeline, spread=SECOND)
    shots = schedule.take(BASE + 1500 * MS)
    timeline.add(Step(BASE + 2 * SECOND, 1, 3))
    until = BASE + 1500 * MS
    while not schedule.finished:
        until += 100 * MS
        shots += schedule.take(until)
    assert Counter(map(name, shots)) == Counter(map(name, known))


def test_stepping_down_cuts_sessions_that_began_before() -> None:
    exchanges = even(400, 100.0, per_session=100)
    timeline = timeline_of((0, 3), (1500 * MS, 1))
    schedule = schedule_of(exchanges, timeline)
    shots = all_of(schedule)
    cut = [shot for shot in shots if schedule.cut(shot)]
    assert cut
    for shot in shots:
        ran = shot.start_ns < BASE + 1500 * MS
        assert schedule.cut(shot) == (ran and shot.copy > 0 and shot.due_ns >= BASE + 1500 * MS)


def test_a_cut_session_stays_cut_when_the_load_rises_again() -> None:
    timeline = timeline_of((0, 2), (SECOND, 1), (1200 * MS, 2))
    schedule = schedule_of(even(300, 100.0, per_session=300), timeline)
    late = [shot for shot in all_of(schedule) if shot.copy == 1 and shot.due_ns >= BASE + 1200 * MS]
    assert late and all(schedule.cut(shot) for shot in late)


def test_unsafe_ones_are_left_out_when_asked() -> None:
    exchanges = [exchange(n, n * MS, method="POST" if n % 3 == 0 else "GET") for n in range(30)]
    shots = all_of(schedule_of(exchanges, timeline_of((0, 2)), skip_unsafe=True))
    assert len(shots) == 2 * 20
    assert not any(shot.item.unsafe for shot in shots)


def test_endless_laps_keep_memory_bounded_and_an_empty_lap_ends() -> None:
    schedule = schedule_of(even(10, 100.0), timeline_of((0, 1)), laps=0, lap=100 * MS)
    assert len(schedule.take(BASE + 10 * SECOND)) == 1000
    assert not schedule.finished
    assert all_of(schedule_of([], timeline_of((0, 1)), laps=0)) == []


def test_memory_follows_spread_not_length() -> None:
    schedule = schedule_of(even(20_000, 1000.0), timeline_of((0, 2)), spread=SECOND)
    most = 0
    for tick in range(1, 220):
        schedule.take(BASE + tick * 100 * MS)
        most = max(most, len(schedule._heap) + len(schedule._recent))
    assert most < 3 * 1.2 * 1000


@given(st.lists(st.tuples(st.integers(0, 100), st.floats(0, 5)), min_size=1, max_size=8), st.integers(0, 120))
def test_timeline_lowest_is_the_least_load_between(steps: list[tuple[int, float]], span: int) -> None:
    timeline = Timeline()
    for number, (at, load) in enumerate(sorted(steps)):
        timeline.add(Step(at, number, load))
    rng = random.Random(span)
    first = rng.randint(0, 100)
    assert timeline.lowest(first, first + span) == min(timeline.load_at(at) for at in range(first, first + span + 1))


def test_a_later_record_replaces_what_was_announced_and_hold_forgets_it() -> None:
    timeline = timeline_of((0, 1), (10, 2), (20, 3))
    timeline.add(Step(BASE + 5, 9, 0.5))
    assert [timeline.load_at(BASE + at) for at in (0, 5, 10, 25)] == [1, 0.5, 0.5, 0.5]
    timeline = timeline_of((0, 1), (10, 2), (20, 3))
    timeline.hold(BASE + 12)
    assert timeline.load_at(BASE + 30) == 2
    assert timeline.load_at(BASE - 1) == 0
    assert timeline.index_at(BASE - 1) == -1


@pytest.mark.parametrize("load", [0.0, 0.3, 1.0, 1.7, 2.5, 3.0])
def test_a_higher_load_admits_all_that_a_lower_one_does(load: float) -> None:
    draws = Draws(0, 1, 0)
    ranks = [draws.of(bytes([n] * 16), copy).rank for n in range(200) for copy in range(4)]
    low = {i for i, rank in enumerate(ranks) if admits(load, rank)}
    high = {i for i, rank in enumerate(ranks) if admits(load + 0.4, rank)}
    assert low <= high
    assert abs(len(low) / 200 - load) < 0.15
