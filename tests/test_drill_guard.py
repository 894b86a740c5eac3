"""The guard as traces: what is observed, second by second, and what it decides. A fake clock drives it."""

import pytest
from test_analytics_windows import START, outcome, panes_of

from analytics.windows import tallies
from drill.guard import Cause, Guard, Observation
from drill.pressure import share_of_open
from drill.thresholds import Grade, judge, parse_threshold
from wire.records import Beat, Failure, Kind

NS = 10**9


def beat(at_ns, *, worker="w0", open_shots=3, oldest_ns=0, state="running", reason=""):
    return Beat("r", worker, at_ns, 1, 0, 10, 9, open_shots, oldest_ns, 0, 0.5, state=state, reason=reason)


class Trace:
    """A run of which each second is said: latencies (ms) of its answers; the guard looks every 100 ms."""

    def __init__(self, *thresholds, max_open=100, workers=("w0",)):
        self.guard = Guard([parse_threshold(t) for t in thresholds], max_open=max_open, workers=workers)
        self.made = []
        self.held = (0, [])
        self.now = START * NS
        self.workers = workers
        self.beating = True
        self.beats = {name: beat(self.now, worker=name) for name in workers}
        self.extra = {}

    def second(self, *latencies_ms, route="GET /x", kind=Kind.STRESS, status=200, count=60, **fields):
        """One second in which `count` requests of each latency were answered; the decision, if it falls."""
        begin = (self.now - START * NS) // 1_000_000
        for latency in latencies_ms:
            self.made += [
                outcome(
                    begin + i * 900 // count - latency, latency * 1000, route=route, kind=kind, status=status, **fields
                )
                for i in range(count)
            ]
        return self.pass_time(1.0)

    def pass_time(self, seconds):
        for _ in range(round(seconds * 10)):
            self.now += NS // 10
            if self.beating:
                self.beats = {name: beat(self.now, worker=name, **self.extra) for name in self.workers}
            decision = self.look()
            if decision is not None:
                return decision
        return None

    def look(self, **more):
        if self.held[0] != len(self.made):
            self.held = (len(self.made), panes_of(self.made))
        panes = self.held[1]
        end = (self.now - 1) // NS + 1
        spans = {span: tallies(panes, end - span, end) for span in self.guard.spans_s}
        return self.guard.observe(Observation(self.now, START * NS, spans, self.beats, **more))


def test_a_healthy_run_is_left_alone():
    trace = Trace("p95 < 400ms over 4s", "errors < 2% over 4s", "oldest open < 2s", "production p90 < 300ms over 4s")
    for _ in range(12):
        assert trace.second(20, count=150) is None
        assert trace.second(25, kind=Kind.PRODUCTION) is None
    assert {j.grade for j in trace.guard.judgements.values()} == {Grade.PASS}


def test_a_slow_percentile_stops_it_and_names_threshold_route_and_value():
    trace = Trace("p95 < 400ms over 4s")
    for _ in range(5):
        assert trace.second(20) is None
    trace.second(20, count=30)
    decision = trace.second(900, route="GET /slow", count=60)
    assert decision is not None
    assert (decision.cause, decision.threshold, decision.route) == (Cause.THRESHOLD, "p95 < 400ms over 4s", "GET /slow")
    assert decision.value == pytest.approx(900e6, rel=0.0055)
    assert decision.at_ns == trace.now
    assert decision.said == "p95 < 400ms over 4s: 898 ms; worst route: GET /slow"  # 900 within a sketch's error


def test_it_decides_once():
    trace = Trace("oldest open < 1s")
    trace.extra = {"oldest_ns": 3 * NS}
    assert trace.pass_time(0.1) is not None
    assert trace.pass_time(5) is None
    assert trace.guard.decision is not None


def test_nothing_is_judged_before_its_span_is_under_load():
    trace = Trace("p95 < 400ms over 4s")
    for _ in range(3):
        assert trace.second(900, count=300) is None
    assert trace.second(900, count=300) is not None


def test_too_few_samples_decide_nothing():
    trace = Trace("p95 < 400ms over 2s", "errors < 2% over 2s")
    for _ in range(6):
        assert trace.second(900, count=5, status=500) is None
    assert {j.grade for j in trace.guard.judgements.values()} == {Grade.UNKNOWN}
    assert trace.second(900, count=300) is not None  # the control: with enough of them it does


def test_errors_stop_it_and_client_errors_do_not():
    trace = Trace("errors < 2% over 3s")
    for _ in range(5):
        assert trace.second(20, status=404) is None
    decision = trace.second(20, status=503, route="POST /orders", count=10)
    assert decision is not None
    assert decision.route == "POST /orders"
    assert "errors < 2% over 3s" in decision.said and "%" in decision.said.split(":")[1]


def test_refused_connections_are_errors():
    trace = Trace("errors < 2% over 3s")
    for _ in range(5):
        trace.second(20)
    assert trace.second(20, failure=Failure.CONNECT, status=0, count=20) is not None


def test_production_that_suffers_stops_it_though_stress_is_fine():
    trace = Trace("production p90 < 300ms over 4s", "p95 < 9s over 4s")
    for _ in range(4):
        trace.second(20)
        assert trace.second(40, kind=Kind.PRODUCTION) is None
    decision = trace.second(700, kind=Kind.PRODUCTION, count=120)
    assert decision is not None
    assert decision.threshold.startswith("production")
    # the control: the same latencies of stress do not fail a threshold of production
    other = Trace("production p90 < 300ms over 4s")
    assert all(other.second(700, count=120) is None for _ in range(6))


def test_a_threshold_of_one_route_sees_that_route_alone():
    trace = Trace('route "GET /a" p50 < 100ms over 2s')
    for _ in range(4):
        assert trace.second(900, route="GET /b") is None
    decision = trace.second(900, route="GET /a")
    assert decision is not None
    assert decision.route == "GET /a"


def test_a_target_that_hangs_is_seen_without_any_answer():
    trace = Trace("oldest open < 2s")
    trace.extra = {"oldest_ns": 1_900_000_000}
    assert trace.pass_time(3) is None
    trace.extra = {"oldest_ns": 2_100_000_000}
    decision = trace.pass_time(0.1)
    assert decision is not None
    assert decision.said == "oldest open < 2s: 2.10 s"


def test_the_cap_on_open_shots_stops_it():
    trace = Trace(max_open=50, workers=("w0", "w1"))
    trace.extra = {"open_shots": 24}
    assert trace.pass_time(2) is None
    trace.extra = {"open_shots": 25}
    decision = trace.pass_time(0.1)
    assert decision is not None
    assert (decision.cause, decision.said) == (Cause.CAP, "50 shots are open, the plan's cap")


def test_a_silent_worker_stops_it():
    trace = Trace(workers=("w0", "w1"))
    assert trace.pass_time(1) is None
    quiet = beat(trace.now, worker="w1")
    trace.beating = False
    for tenths in range(1, 30):
        trace.now += NS // 10
        trace.beats = {"w0": beat(trace.now), "w1": quiet}
        decision = trace.look()
        assert (decision is not None) == (tenths > 15), tenths
        if decision:
            assert decision.cause is Cause.WORKER and "w1" in decision.said
            return
    pytest.fail("nothing was decided")


def test_a_worker_that_is_gone_or_failed_stops_it():
    trace = Trace()
    assert trace.pass_time(1) is None
    assert trace.look(gone={"w0": "killed by signal 9"}).said == "worker w0 is gone: killed by signal 9"
    failing = Trace()
    failing.extra = {"state": "failed", "reason": "no route to host"}
    decision = failing.pass_time(0.1)
    assert decision is not None and "no route to host" in decision.said


def test_isolation_comes_first_and_asking_stops_it():
    trace = Trace("oldest open < 1s")
    trace.extra = {"oldest_ns": 5 * NS}
    trace.beats = {"w0": beat(trace.now, oldest_ns=5 * NS)}
    decision = trace.look(isolation_problem="3 rows in production", asked="stop was asked for")
    assert (decision.cause, "3 rows" in decision.said) == (Cause.ISOLATION, True)
    assert Trace().look(asked="stop was asked for").cause is Cause.ASKED


def test_thresholds_without_over_are_left_to_the_end():
    trace = Trace("p50 < 1ms", "errors < 1%")
    assert all(trace.second(900, status=500) is None for _ in range(5))
    assert trace.guard.spans_s == ()


@pytest.mark.parametrize(
    ("text", "healthy", "broken"),
    [
        ("p50 < 100ms", {"latency_us": 99_000}, {"latency_us": 101_000}),
        ("p95 < 100ms", {"latency_us": 99_000}, {"latency_us": 101_000}),
        ("p99 < 100ms", {"latency_us": 99_000}, {"latency_us": 101_000}),
        ("max < 100ms", {"latency_us": 99_000}, {"latency_us": 101_000}),
        ("errors < 1%", {"status": 404}, {"status": 500}),
        ("errors <= 0%", {"status": 200}, {"failure": Failure.RESET}),
        ("production p50 < 100ms", {"kind": Kind.PRODUCTION}, {"kind": Kind.PRODUCTION, "latency_us": 200_000}),
    ],
)
def test_each_threshold_passes_when_healthy_and_fails_when_broken(text, healthy, broken):
    threshold = parse_threshold(text)
    for fields, grade in ((healthy, Grade.PASS), (broken, Grade.FAIL)):
        found = tallies(panes_of([outcome(i % 900, **fields) for i in range(1000)]), START - 1, START + 9)
        assert judge(threshold, found).grade is grade
    assert judge(threshold, {}).grade is Grade.UNKNOWN


def test_differing_counts_answers_that_are_not_the_recorded_ones():
    from wire.records import Verdict

    threshold = parse_threshold("differing < 5%")
    same = [outcome(i) for i in range(95)]
    for more, grade in ((4, Grade.PASS), (6, Grade.FAIL)):
        found = tallies(panes_of(same + [outcome(i, verdict=Verdict.STATUS) for i in range(more)]), START, START + 9)
        assert judge(threshold, found).grade is grade


def test_production_that_is_not_seen_any_more_stops_it():
    """The recorder died: what the load does to real users is not known, which is no reason to go on."""
    trace = Trace("production p90 < 300ms over 4s", "p95 < 9s over 4s")
    for _ in range(15):
        assert trace.second(25, kind=Kind.PRODUCTION) is None
        assert trace.second(20) is None
    decision = None
    for _ in range(16):
        decision = decision or trace.second(20)
    assert decision is not None and decision.cause is Cause.BLIND
    assert decision.said.startswith("nothing of production was seen for 10.")
    seen = max(o.done_ns for o in trace.made if o.kind is Kind.PRODUCTION)
    assert 10 * NS < decision.at_ns - seen < 15.2 * NS
    # the control: without a threshold of production nobody misses it
    other = Trace("p95 < 9s over 4s")
    assert not any(other.second(20) for _ in range(30))


def test_production_that_was_never_seen_stops_it_too():
    trace = Trace("production p90 < 300ms over 8s")
    decisions = [trace.second(20) for _ in range(18)]
    assert [d.cause for d in decisions if d] == [Cause.BLIND]
    assert decisions.index(next(d for d in decisions if d)) == 16


@pytest.mark.parametrize(("most", "workers", "each"), [(100, 3, 33), (2000, 4, 500), (2, 4, 1)])
def test_the_cap_is_reached_when_each_worker_has_reached_its_share(most: int, workers: int, each: int) -> None:
    assert share_of_open(most, workers) == each
