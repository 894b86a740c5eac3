"""What a drill comes to: capacity, fidelity, exit codes, each with what would change it."""

import pytest
from test_analytics_windows import START, outcome, panes_of

from drill.guard import Cause, Decision
from drill.isolation import IsolationReport, Proof
from drill.pressure import arithmetic
from drill.result import account_of
from drill.thresholds import Grade, parse_threshold
from drill.verdict import StepRun, capacity_of, fidelity_of, judge_step, verdict_of
from wire.records import Failure, Kind, Verdict

NS = 10**9
PROVEN = IsolationReport(Proof.PROVEN)


def step_of(
    index,
    load,
    *,
    latency_ms=20,
    rate=60,
    seconds=5,
    cut=False,
    thresholds=("p90 < 100ms over 2s",),
    decision=None,
    **fields,
):
    begin = index * 10_000
    made = [
        outcome(begin + i * 1000 // rate, latency_ms * 1000, step=index, **fields) for i in range(round(rate * seconds))
    ]
    start = START * NS + begin * 1_000_000
    run = StepRun(index, arithmetic(scale=1, speed=1, load=load, recorded_rate=60), start, start + seconds * NS, cut)
    return judge_step(run, panes_of(made), [parse_threshold(t) for t in thresholds], decision)


def verdict(steps, **changes):
    given = {
        "steps": steps, "decision": None, "isolation": PROVEN, "disposable": False, "fidelity": fidelity_of(steps),
        "enough_fidelity": 0.8, "workers_failed": {}, "failures": {},
    }  # fmt: skip
    return verdict_of(**{**given, **changes})


def stop(cause=Cause.THRESHOLD, threshold="p90 < 100ms over 2s"):
    return Decision(START * NS, cause, f"{threshold}: 900 ms", threshold, "GET /x", 900e6)


def test_every_step_held_is_fine_and_the_capacity_is_a_lower_bound():
    steps = [step_of(0, 1), step_of(1, 2, rate=120)]
    found = verdict(steps)
    assert (found.exit_code, found.headline) == (0, "every step was held; capacity at least 2x = 120 requests/s")


def test_the_capacity_is_the_highest_load_below_which_all_was_held():
    steps = [step_of(0, 1), step_of(1, 2, latency_ms=300), step_of(2, 4)]
    assert [s.held for s in steps] == [True, False, True]
    assert (capacity_of(steps).load, capacity_of(steps).limited) == (1, True)
    assert capacity_of(steps[1:]).said() == "no step was held"
    assert capacity_of([]).said() == "no step could be judged"


def test_one_bad_span_inside_a_step_is_enough():
    made = [outcome(i * 10, 900_000 if 300 <= i < 350 else 5_000) for i in range(900)]
    run = StepRun(0, arithmetic(scale=1, speed=1, load=1, recorded_rate=100), START * NS, START * NS + 9 * NS)
    whole = judge_step(run, panes_of(made), [parse_threshold("p90 < 100ms")], None)
    spans = judge_step(run, panes_of(made), [parse_threshold("p90 < 100ms over 2s")], None)
    assert (whole.held, spans.held) == (True, False)


def test_a_step_too_thin_for_its_windows_is_judged_as_a_whole():
    thin = step_of(0, 1, rate=30)  # 60 samples in 2 s, 150 in all; p90 needs 100
    assert (thin.held, thin.judgements[0].grade) == (True, Grade.PASS)
    thinner = step_of(0, 1, rate=10)
    assert (thinner.held, thinner.judgements[0].grade) == (None, Grade.UNKNOWN)
    assert verdict([thinner]).exit_code == 96
    assert "no threshold had enough samples" in verdict([thinner]).reasons


def test_what_the_guard_decided_holds_for_the_step_it_was_made_in():
    cut = step_of(1, 2, cut=True, decision=stop())
    assert (cut.held, cut.judgements[0].grade) == (False, Grade.FAIL)
    steps = [step_of(0, 1), cut]
    found = verdict(steps, decision=stop())
    assert (found.exit_code, found.reasons) == (97, ("p90 < 100ms over 2s: 900 ms",))
    assert step_of(1, 2, cut=True, decision=stop(Cause.CAP, "caps.open")).held is False
    assert step_of(1, 2, cut=True, decision=stop(Cause.ASKED, "")).held is None


def test_a_threshold_at_the_end_fails_with_99():
    steps = [step_of(0, 1, thresholds=("p90 < 10ms",))]
    assert verdict(steps).exit_code == 99
    assert verdict(steps).reasons[0].startswith("step 1 (1x): p90 < 10ms: ")


def test_a_violation_outweighs_all_and_an_unproven_one_makes_it_inconclusive():
    steps = [step_of(0, 1, thresholds=("p90 < 10ms",))]
    violated = IsolationReport(Proof.VIOLATED, ("rows",))
    assert verdict(steps, isolation=violated, decision=stop()).exit_code == 98
    unproven = IsolationReport(Proof.NOT_PROVEN, ("orders did not answer",))
    assert verdict(steps, isolation=unproven).exit_code == 96
    # what was seen all the same is told behind what makes it no proof
    told = verdict(steps, isolation=unproven, decision=stop()).reasons
    assert (
        "orders did not answer" in told[0] and told[1] == stop().said and told[2].startswith("step 1 (1x): p90 < 10ms")
    )
    assert verdict(steps, isolation=unproven, disposable=True).exit_code == 99


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"workers_failed": {"w0": "exit code 1"}}, "worker w0 failed: exit code 1"),
        ({"decision": stop(Cause.WORKER, "worker w0 is gone")}, "worker w0 is gone"),
        ({"decision": stop(Cause.ASKED, "stop was asked for")}, "stop was asked for"),
        ({"steps": [], "fidelity": fidelity_of([])}, "no load was fired"),
    ],
)
def test_what_makes_it_inconclusive(changes, said):
    found = verdict(changes.pop("steps", [step_of(0, 1)]), **changes)
    assert found.exit_code == 96
    assert any(said in reason for reason in found.reasons)


def test_low_fidelity_voids_the_verdict():
    good = [step_of(0, 1), step_of(1, 2)]
    assert fidelity_of(good).score == 1.0
    bad = [step_of(0, 1, verdict=Verdict.STATUS), step_of(1, 2)]
    assert fidelity_of(bad).score == 0.0
    assert verdict(bad).exit_code == 96 and "fidelity 0% is below 80%" in verdict(bad).reasons[0]
    # it is measured at the load nearest to 1x alone: under more load answers may well differ
    assert verdict([step_of(0, 1), step_of(1, 2, rate=120, verdict=Verdict.STATUS)]).exit_code == 0


def test_shots_that_were_shed_make_a_step_say_nothing():
    shed = step_of(1, 2, failure=Failure.SHED_RATE, status=0)
    found = verdict([step_of(0, 1), shed])
    assert found.exit_code == 96
    assert "step 2 (2x): 100% of the shots were shed" in found.reasons


def test_production_is_judged_by_the_time_of_the_step():
    made = [outcome(i * 10, 5_000) for i in range(500)]
    made += [outcome(i * 10, 700_000, kind=Kind.PRODUCTION, step=-1) for i in range(500)]
    run = StepRun(0, arithmetic(scale=1, speed=1, load=1, recorded_rate=100), START * NS, START * NS + 5 * NS)
    found = judge_step(run, panes_of(made), [parse_threshold("production p90 < 600ms over 2s")], None)
    assert found.held is False
    assert found.stress.offered == 500 and found.production.completed > 0


def test_an_account_that_does_not_balance_is_inconclusive():
    steps = [step_of(0, 1)]
    assert verdict(steps, lost=0).exit_code == 0
    found = verdict(steps, lost=3)
    assert (found.exit_code, found.reasons) == (96, ("the account does not balance: 3 shots lost",))
    assert "1 shots too many" in verdict(steps, lost=-1).reasons[0]


def test_what_was_planned_is_what_was_claimed_not_what_came_out():
    panes = panes_of([outcome(1), outcome(2, failure=Failure.SHED_RATE), outcome(3, failure=Failure.TIMEOUT)])
    account = account_of(panes, 3, {Failure.SHED_RATE: 1, Failure.TIMEOUT: 2})
    assert (account.balanced, account.sent, account.shed, account.lost) == (True, 2, 1, 0)
    assert list(account.failures.items()) == [("timeout", 2), ("shed_rate", 1)], "the most frequent first"
    assert not account_of(panes, 4, {}).balanced and account_of(panes, 4, {}).lost == 1
    assert not account_of(panes, 2, {}).balanced
    assert account_of([], 0, {}).balanced and not account_of([], 1, {}).balanced


def test_a_load_that_was_never_on_is_no_load_that_was_held():
    """Copies begin with their sessions: a step of 4x that is shorter than those may offer little more than 1x."""
    steps = [step_of(0, 1), step_of(1, 4, rate=160)]
    found = verdict(steps)
    assert (found.exit_code, capacity_of(steps).reached) == (96, pytest.approx(2 / 3, rel=0.01))
    assert found.reasons[0].startswith("step 2 (4x): 160/s were offered of 240/s planned")
    nearly = verdict([step_of(0, 1), step_of(1, 4, rate=200)])
    assert (nearly.exit_code, nearly.headline) == (
        0, "every step was held; capacity at least 4x = 200 requests/s, 83% of what was meant",
    )  # fmt: skip


def test_a_threshold_that_was_never_judged_was_not_kept():
    both = ("p90 < 100ms over 2s", "production p90 < 600ms over 2s")
    steps = [step_of(0, 1, thresholds=both), step_of(1, 2, rate=120, thresholds=both)]
    assert [step.held for step in steps] == [True, True]
    found = verdict(steps)
    assert (found.exit_code, found.reasons) == (
        96, ("production p90 < 600ms over 2s: never judged, there were not enough samples",),
    )  # fmt: skip
    # when the guard has stopped the load, what could not be judged by then takes nothing back
    assert verdict(steps, decision=stop()).exit_code == 97


def test_a_guard_that_was_blind_is_inconclusive():
    text = "production p90 < 600ms over 2s"
    decision = Decision(START * NS, Cause.BLIND, "nothing of production was seen for 11 s", text)
    steps = [step_of(0, 1, cut=True, thresholds=(text,), decision=decision)]
    assert [j.grade for j in steps[0].judgements] == [Grade.UNKNOWN] and steps[0].held is None
    assert verdict(steps, decision=decision).exit_code == 96


def test_a_step_is_judged_by_what_was_offered_once_its_ramp_was_over():
    """Half of the load in the ramp's two seconds, all of it in the four after."""
    made = [outcome(i * 20, 5_000) for i in range(100)] + [outcome(2_000 + i * 10, 5_000) for i in range(400)]
    part = arithmetic(scale=1, speed=1, load=2, recorded_rate=50)
    thresholds = [parse_threshold("p90 < 100ms over 2s")]
    begun, held, end = START * NS, (START + 2) * NS, (START + 6) * NS
    ramped = judge_step(StepRun(0, part, held, end, begun_ns=begun), panes_of(made), thresholds, None)
    assert (ramped.offered_rate, ramped.reached, ramped.stress.offered) == (100.0, 1.0, 400)
    without = judge_step(StepRun(0, part, begun, end), panes_of(made), thresholds, None)
    assert without.reached < 0.9, "the ramp counts where nobody says that there was one"


def test_a_step_that_is_all_ramp_is_told_as_that():
    """Its shots were answered: that nothing was, or hardly anything offered, would send people looking elsewhere."""
    made = [outcome(i * 20, 5_000) for i in range(90)]
    part = arithmetic(scale=1, speed=1, load=1, recorded_rate=50)
    thresholds = [parse_threshold("p90 < 100ms over 2s")]
    begun, end = START * NS, (START + 2) * NS
    step = judge_step(StepRun(0, part, end, end, begun_ns=begun), panes_of(made), thresholds, None)
    found = verdict([step])
    assert found.exit_code == 96 and step.stress.offered == 0
    assert found.reasons[0] == "step 1 (1x): ended before its load was reached: make it longer, or its ramp shorter"
    assert not any("nothing was answered" in reason or "were offered" in reason for reason in found.reasons)
    # negative control: where nothing was answered without a ramp, that is what is said
    silent = judge_step(StepRun(0, part, begun, end), panes_of([]), thresholds, None)
    assert "nothing was answered at the lowest load" in verdict([silent]).reasons
    assert (
        "nothing was answered at the lowest load; of all shots 7 failed: no connection, 2 shed: above the cap on the rate"
        in verdict([silent], failures={Failure.SHED_RATE: 2, Failure.CONNECT: 7}).reasons
    )


@pytest.mark.parametrize(("cut", "exit_code"), [(True, 97), (False, 96)])
def test_what_a_stop_held_back_is_no_doubt_of_the_load_before_it(cut: bool, exit_code: int):
    """The guard stops in the lowest step: half of its shots were due by then, and are shed."""
    made = [outcome(i * 20, 900_000) for i in range(50)]
    made += [outcome(1000 + i * 20, failure=Failure.SHED_STOP) for i in range(50)]
    part = arithmetic(scale=1, speed=1, load=1, recorded_rate=50)
    run = StepRun(0, part, START * NS, (START + 2) * NS, cut=cut)
    step = judge_step(run, panes_of(made), [parse_threshold("p90 < 100ms over 2s")], stop() if cut else None)
    found = verdict([step], decision=stop() if cut else None)
    assert found.exit_code == exit_code, found
    assert any("of the shots were sent" in reason for reason in found.reasons) != cut
