"""Panes and windows: any order, any split, any repetition gives the same; nothing is lost; percentiles are right."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics.panes import NS, PaneBuilder, add_panes, key_of
from analytics.settings import AnalyticsSettings, seconds
from analytics.windows import tallies, text_table, windows
from wire.config import ConfigError
from wire.records import Failure, Kind, Outcome, Pane, Verdict

RUN = "01JRUN"
START = 1_800_000_000


def outcome(
    due_ms: int = 0,
    latency_us: int | None = 1000,
    *,
    status: int = 200,
    failure: Failure = Failure.NONE,
    route: str = "GET /x",
    kind: Kind = Kind.STRESS,
    step: int = 0,
    late_ms: int = 0,
    verdict: Verdict = Verdict.SAME,
) -> Outcome:
    due = START * NS + due_ms * 1_000_000
    sent = due + late_ms * 1_000_000
    done = 0 if latency_us is None else sent + latency_us * 1000
    return Outcome(RUN, b"e" * 16, 0, 0, step, route, kind, due, sent, done, done, 0, status, failure, 10, 20, verdict)


def panes_of(*batches: list[Outcome]) -> list[Pane]:
    """As a store would hold them: each batch apart, then added up."""
    held: dict = {}
    for batch in batches:
        builder = PaneBuilder()
        builder.add_all(batch)
        for pane in builder.take():
            key = key_of(pane)
            held[key] = add_panes(held[key], pane) if key in held else pane
    return list(held.values())


outcomes = st.builds(
    outcome,
    due_ms=st.integers(-3_000, 20_000),
    latency_us=st.integers(1, 9_000_000),
    status=st.sampled_from([200, 201, 304, 404, 500, 503]),
    failure=st.sampled_from([Failure.NONE] * 6 + list(Failure)),
    route=st.sampled_from(["GET /x", "POST /y"]),
    kind=st.sampled_from(list(Kind)),
    step=st.integers(-1, 2),
    late_ms=st.integers(0, 50),
    verdict=st.sampled_from(list(Verdict)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(outcomes, max_size=60), st.randoms(use_true_random=False), st.data())
def test_any_order_and_any_split_give_the_same_windows(made, rng, data):
    shuffled = list(made)
    rng.shuffle(shuffled)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(made)), max_size=5)))
    batches = [shuffled[a:b] for a, b in zip([0, *cuts], [*cuts, len(made)], strict=True)]
    for every, over in ((1, 1), (5, 5), (2, 7)):
        one = list(windows(panes_of(made), every_s=every, over_s=over, start_s=START))
        other = list(windows(panes_of(*batches), every_s=every, over_s=over, start_s=START))
        assert one == other


@settings(max_examples=60, deadline=None)
@given(st.lists(outcomes, max_size=80), st.integers(1, 7), st.integers(-5, 5))
def test_tumbling_windows_hold_each_outcome_once(made, every, start):
    found = list(windows(panes_of(made), every_s=every, over_s=every, start_s=START + start))
    alone = [w for w in found if w.route == "*"]
    by_route = [w for w in found if w.route != "*"]
    shed = [o for o in made if o.failure.value.startswith("shed")]
    unknown = [o for o in made if o.failure is Failure.UNKNOWN]
    for some in (alone, by_route):
        assert sum(w.tally.offered for w in some) == len(made)
        assert sum(w.tally.shed for w in some) == len(shed)
        assert sum(w.tally.unknown for w in some) == len(unknown)
        assert sum(w.tally.finished for w in some) == len(made) - len(shed) - len(unknown)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 60_000_000), min_size=1, max_size=400), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_percentiles_are_within_their_error_of_the_exact_nearest_rank(latencies_us, q):
    made = [outcome(i % 9000, latency) for i, latency in enumerate(latencies_us)]
    tally = tallies(panes_of(made), START - 1, START + 100_000)[Kind.STRESS, "*"]
    shown = tally.quantile_ms(q)
    if len(made) < 10 / (1 - q) - 1e-9:
        assert shown is None
    else:
        exact = sorted(o.done_ns - o.due_ns for o in made)[math.ceil(q * len(made)) - 1] / 1e6
        assert shown == pytest.approx(exact, rel=0.0055)


def test_a_percentile_is_hidden_just_below_ten_over_one_minus_p():
    for q, needed in ((0.5, 20), (0.9, 100), (0.95, 200), (0.99, 1000)):
        fewer = tallies(panes_of([outcome()] * (needed - 1)), START, START + 9)[Kind.STRESS, "*"]
        enough = tallies(panes_of([outcome()] * needed), START, START + 9)[Kind.STRESS, "*"]
        assert fewer.quantile_ms(q) is None
        assert enough.quantile_ms(q) == pytest.approx(1.0, rel=0.0055)


def test_offered_counts_when_due_and_completed_when_done():
    panes = panes_of([outcome(due_ms=900, latency_us=3_200_000)])
    by_second = {
        w.start_s - START: w.tally for w in windows(panes, every_s=1, over_s=1, start_s=START) if w.route == "*"
    }
    assert (by_second[0].offered, by_second[0].completed) == (1, 0)
    assert (by_second[4].offered, by_second[4].completed) == (0, 1)


def test_latency_counts_from_when_it_should_have_left():
    tally = tallies(panes_of([outcome(latency_us=1000, late_ms=50)] * 20), START, START + 9)[Kind.STRESS, "*"]
    assert tally.quantile_ms(0.5) == pytest.approx(51.0, rel=0.0055)
    assert tally.quantile_ms(0.5, from_send=True) == pytest.approx(1.0, rel=0.0055)


def test_a_timeout_is_slow_and_a_refused_connection_is_not_fast():
    hung = [outcome(latency_us=5_000_000, status=0, failure=Failure.TIMEOUT)] * 20
    refused = [outcome(latency_us=10, status=0, failure=Failure.CONNECT)] * 20
    slow = tallies(panes_of(hung), START, START + 9)[Kind.STRESS, "*"]
    none = tallies(panes_of(refused), START, START + 9)[Kind.STRESS, "*"]
    assert slow.quantile_ms(0.5) == pytest.approx(5000, rel=0.0055)
    assert none.quantile_ms(0.5) is None
    assert slow.error_share == none.error_share == 1.0


def test_errors_are_failures_and_5xx_and_nothing_else():
    made = [
        outcome(status=200),
        outcome(status=404),
        outcome(status=500),
        outcome(status=0, failure=Failure.RESET),
        outcome(status=200, failure=Failure.RESET),
        outcome(latency_us=None, status=0, failure=Failure.SHED_OPEN),
        outcome(latency_us=None, status=0, failure=Failure.UNKNOWN),
    ]
    tally = tallies(panes_of(made), START, START + 9)[Kind.STRESS, "*"]
    assert (tally.offered, tally.completed, tally.failed, tally.errors, tally.shed, tally.unknown) == (7, 3, 2, 3, 1, 1)
    assert tally.error_share == pytest.approx(3 / 5)
    assert tallies(panes_of([made[5]]), START, START + 9)[Kind.STRESS, "*"].error_share is None


def test_sliding_windows_are_sums_of_their_seconds():
    rng = random.Random(5)
    made = [outcome(rng.randrange(20_000), rng.randrange(1, 10_000)) for _ in range(500)]
    panes = panes_of(made)
    for w in windows(panes, every_s=5, over_s=10, start_s=START):
        inside = [o for o in made if w.start_s <= o.due_ns // NS < w.end_s]
        assert w.tally.offered == len(inside)
    starts = [w.elapsed_s for w in windows(panes, every_s=5, over_s=10, start_s=START) if w.route == "*"]
    assert starts == [0, 5, 10, 15] or starts == [0, 5, 10, 15, 20]


def test_only_windows_before_the_watermark_are_final():
    panes = panes_of([outcome(ms) for ms in range(0, 10_000, 500)])
    final = [
        w.final for w in windows(panes, every_s=2, over_s=2, start_s=START, watermark_s=START + 5) if w.route == "*"
    ]
    assert final == [True, True, False, False, False]


def test_windows_and_settings_refuse_what_makes_no_sense():
    with pytest.raises(ValueError, match="at least 'every'"):
        list(windows([], every_s=5, over_s=2, start_s=0))
    with pytest.raises(ConfigError, match="whole seconds"):
        seconds("500ms", "every")
    with pytest.raises(ConfigError, match="whole seconds"):
        AnalyticsSettings(over="1500ms")
    with pytest.raises(ValueError, match="different keys"):
        one, other = panes_of([outcome(0), outcome(5000)])[:2]
        add_panes(one, other)


def test_the_table_shows_all_routes_together_unless_asked():
    found = [w.as_dict() for w in windows(panes_of([outcome()] * 30), every_s=5, over_s=5, start_s=START)]
    assert "GET /x" not in text_table(found)
    assert "GET /x" in text_table(found, routes=True)
    row = text_table(found).splitlines()[1].split()
    assert row[:5] == ["+0s~", "1", "stress", "6.0", "6.0"]
    assert row[-2:] == ["-", "1.0"]  # p99 of 30 samples is not shown; the maximum is
