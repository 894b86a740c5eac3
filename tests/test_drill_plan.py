"""The plan: what people write, what they are told when it is wrong; and what a load comes to."""

from pathlib import Path

import pytest

from drill.plan import load_plan, parse_plan, substitute
from drill.pressure import Pressure, arithmetic, arithmetics, refuse_unknown_routes, thin_thresholds
from drill.thresholds import Source, parse_threshold
from replay.recording import Survey
from wire.config import ConfigError
from wire.records import Route, RouteTable

SHOP = Path(__file__).parents[1] / "examples" / "shop" / "plan.yaml"


@pytest.fixture
def recording(tmp_path):
    path = tmp_path / "clean.lf"
    path.write_bytes(b"")
    return path


def plan_of(text, recording, **variables):
    return parse_plan(f"recording: {recording}\ntarget: http://127.0.0.1:1\n{text}", "plan.yaml", variables)


def test_the_shops_plan_is_short_and_says_all(recording):
    assert len(SHOP.read_text().splitlines()) <= 25
    plan = load_plan(SHOP, {"recording": str(recording), "storefront.at": "127.0.0.1:8123", "dir": "/data"})
    loads = [step.load for step in plan.steps]
    assert loads[0] == 1 and loads == sorted(loads)
    assert all(step.for_ns >= 5 * 10**9 for step in plan.steps)
    assert plan.target == "http://127.0.0.1:8123"
    assert plan.accounts == SHOP.parent / "accounts.csv"
    assert (plan.caps.rate, plan.caps.open_shots) == (2000.0, 500)
    assert [t.metric for t in plan.thresholds] == ["p95", "errors", "p90", "oldest open"]
    assert plan.thresholds[2].source is Source.PRODUCTION
    assert plan.isolation is not None
    assert plan.isolation.services["storefront"] == "http://127.0.0.1:8123"
    assert plan.isolation.stores[0].shadow == "sqlite:////data/orders-shadow.db"
    assert plan.third_parties[0].mock == "127.0.0.1:9700"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps: [{load: 1x, for: 10}]", "plan.yaml:3:20: "),
        ("steps:\n  - {load: 1x, for: 10s}\n  - {load: 2x, for: soon}", "plan.yaml:5:16: 'soon' is not a duration"),
        ("steps: [{load: fast, for: 10s}]", "plan.yaml:3:10: 'fast' is not a load (as in 1x, 2.5x"),
        ("steps: [{load: 0x, for: 10s}]", "is not a load"),
        ("steps: [{load: 1x, for: 200ms}]", "too short to be judged"),
        ("steps: []", "at least one step"),
        ("stepps: []\nsteps: []", "did you mean 'steps'?"),
        ("steps: [{load: 1x, for: 1s}]\nthresholds:\n  - p95 < 1s over 5s\n  - p59x < 3", "plan.yaml:6:5: threshold"),
        ("steps: [{load: 1x, for: 1s}]\nthresholds: [errors < 2.5.1% over 5s]", "2.5.1% is no share"),
        ("steps: [{load: 1x, for: 1s}]\nthresholds: [production p90 < 1s over 5s]", "needs to see production"),
        ("steps: [{load: 1x, for: 1s}]\ncaps: {rate: 20, open: 5}", "plan.yaml:4:8: "),
        ("steps: [{load: 1x, for: 1s}]\ncaps: {rate: 20/s, open: 0}", "at least 1"),
        ("steps: [{load: 1x, for: 1s}]\nworkers: 3\ncaps: {rate: 20/s, open: 2}", "at least one for each worker"),
        ("steps: [{load: 1x, for: 1s}]\nspeed: 0", "speed is 0"),
        ("steps: [{load: 1x, for: 1s}]\nworkers: 0", "workers is 0"),
        ("steps: [{load: 1x, for: 1s}]\naccounts: nowhere.csv", "plan.yaml:4:1: nowhere.csv: no such file"),
        ("steps: [{load: 1x, for: 1s}]\nisolation: {}", "names no services and no stores"),
        (
            "steps: [{load: 1x, for: 1s}]\nisolation: {stores: {a: {production: x, shadow: x, run_column: {t: r}}}}",
            "production and shadow are the same store",
        ),
        (
            "steps: [{load: 1x, for: 1s}]\nisolation: {stores: {a: {production: x, shadow: y, run_column: {}}}}",
            "name at least one table",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text, said, recording):
    with pytest.raises(ConfigError) as error:
        plan_of(text, recording)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_target_without_scheme_is_asked_back(recording):
    with pytest.raises(ConfigError, match="did you mean http://staging:80"):
        parse_plan(f"recording: {recording}\ntarget: staging:80\nsteps: [{{load: 1x, for: 1s}}]", "p", {})


def test_variables_have_values_defaults_or_a_complaint():
    assert substitute("a: ${x}\nb: ${y.z:-7}", "p", {"x": "1"}) == "a: 1\nb: 7"
    assert substitute("a: ${x:-1}", "p", {"x": "2"}) == "a: 2"
    assert substitute("# ${nothing}\na: ${x:-}", "p", {}) == "# ${nothing}\na: "
    with pytest.raises(ConfigError, match=r"p:2:4: \$\{x\} has no value: --set x="):
        substitute("# first\na: ${x}", "p", {})
    with pytest.raises(ConfigError, match="did you mean 'recording'"):
        substitute("a: ${recording:-1}", "p", {"recordng": "2"})
    with pytest.raises(ConfigError, match="one line"):
        substitute("a: ${x:-1}", "p", {"x": "2\ntarget: evil"})


def test_the_arithmetic_is_written_as_people_do_it():
    assert arithmetic(scale=0.4, speed=2, load=3, recorded_rate=300).line() == "2.5 x 2 x 3 = 15x = 4,500 requests/s"
    assert arithmetic(scale=1, speed=1, load=2.5, recorded_rate=28).line() == "1 x 1 x 2.5 = 2.5x = 70 requests/s"
    assert arithmetic(scale=0.5, speed=1, load=1, recorded_rate=3).recording_load == 2
    for wrong in ({"scale": 0}, {"scale": 1.1}, {"speed": 0}, {"load": -1}):
        with pytest.raises(ValueError, match=r"not|positive"):
            arithmetic(**{"scale": 1, "speed": 1, "load": 1, "recorded_rate": 1, **wrong})


def test_pressure_holds_each_load_for_its_time(recording):
    plan = plan_of("steps: [{load: 1x, for: 2s}, {load: 3, for: 1s}]", recording)
    pressure = Pressure(plan.steps)
    second = 10**9
    found = [pressure.at(t) for t in (-1, 0, 2 * second - 1, 2 * second, 3 * second - 1, 3 * second)]
    assert [level and level.load for level in found] == [None, 1, 1, 3, 3, None]
    assert pressure.total_ns == 3 * second


def test_a_step_is_held_for_its_time_after_its_ramp(recording):
    plan = plan_of("steps: [{load: 1x, for: 2s}, {load: 3, for: 1s}]", recording)
    second = 10**9
    levels = Pressure(plan.steps, ramp_ns=4 * second).levels
    assert [(at.start_ns // second, at.held_ns // second, at.end_ns // second) for at in levels] == [
        (0, 4, 6),
        (6, 10, 11),
    ]


def test_a_step_above_the_cap_is_refused_before_the_first_shot(recording):
    survey = Survey("rec", 300, {}, 10 * 10**9, 0.5)  # 30/s of half of production
    steps = "steps: [{load: 1x, for: 10s}, {load: 4x, for: 10s}]\ncaps: {rate: 200/s, open: 10}"
    with pytest.raises(ConfigError, match=r"step 2 comes to 2 x 1 x 4 = 8x = 240 requests/s, above caps.rate 200/s"):
        arithmetics(plan_of(steps, recording), survey)
    fine = arithmetics(plan_of(steps.replace("200/s", "240/s"), recording), survey)
    assert [step.rate for step in fine] == [60, 240]


def test_thresholds_that_a_window_cannot_feed_are_named(recording):
    survey = Survey("rec", 280, {}, 10 * 10**9, 1.0, routes={"GET /a": 260, "GET /b": 20})  # 28/s
    text = (
        "steps: [{load: 1x, for: 9s}]\nthresholds: [p95 < 1s over 4s, p90 < 1s over 4s, errors < 1% over 2s, p99 < 1s, "
        "route 'GET /a' p90 < 1s over 4s, route 'GET /b' p90 < 1s over 4s, route 'GET /b' p90 < 1s]"
    )
    plan = plan_of(text, recording)
    lines = thin_thresholds(plan, survey, arithmetics(plan, survey))
    assert lines == [
        "p95 < 1s over 4s: needs 200 samples, about 112 come at 1x: there it is judged on the whole step",
        "route 'GET /b' p90 < 1s over 4s: needs 100 samples, about 8 come at 1x: there it is judged on the whole step",
    ]


def test_a_threshold_of_a_route_that_nothing_is_fired_at_is_refused(recording):
    """It would never be judged, which would be told after the load."""
    survey = Survey("rec", 300, {}, 10 * 10**9, 1.0, routes={"GET /orders/{id}": 300})
    table = RouteTable("rec", (Route("GET /cart", "GET", ("cart",)),))

    def refused(threshold: str) -> str:
        text = f"steps: [{{load: 1x, for: 9s}}]\nthresholds: [{threshold}]\n"
        plan = plan_of(text + f"production: {{recording: {recording}, servers: ['127.0.0.1:80']}}", recording)
        try:
            refuse_unknown_routes(plan, survey, table)
        except ConfigError as error:
            return str(error)
        return ""

    assert not refused("'route \"GET /orders/{id}\" p90 < 1s over 4s'")
    assert not refused("'production route \"GET /cart\" p90 < 1s over 4s'"), "production has what the table has"
    assert "has no route 'GET /cart' (known: GET /orders/{id})" in refused("'route \"GET /cart\" p90 < 1s over 4s'")
    assert refused("'route \"GET /order/{id}\" p90 < 1s over 4s'").endswith(
        "the recording has no route 'GET /order/{id}' (did you mean 'GET /orders/{id}'?)"
    )
    assert "has no route 'GET /card' (did you mean 'GET /cart'?)" in refused(
        "'production route \"GET /card\" p90 < 1s over 4s'"
    )


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("p99 < 400ms over 5s", ("p99", 400e6, 5, "*", "stress", False)),
        ("  p50  <= 1.5s ", ("p50", 1.5e9, 0, "*", "stress", True)),
        ("p99.9<2s over 10s", ("p99.9", 2e9, 10, "*", "stress", False)),
        ("errors < 2%", ("errors", 0.02, 0, "*", "stress", False)),
        ("errors <= 0%", ("errors", 0.0, 0, "*", "stress", True)),
        ("production p95 < 600ms over 5s", ("p95", 600e6, 5, "*", "production", False)),
        ('route "GET /x y" p95 < 1s over 5s', ("p95", 1e9, 5, "GET /x y", "stress", False)),
        ("production route 'POST /o' errors < 1% over 5s", ("errors", 0.01, 5, "POST /o", "production", False)),
        ("oldest open < 2s", ("oldest open", 2e9, 0, "*", "stress", False)),
        ("max < 9s", ("max", 9e9, 0, "*", "stress", False)),
    ],
)
def test_thresholds_read_as_they_are_said(text, fields):
    t = parse_threshold(text)
    assert (t.metric, t.limit, t.over_s, t.route, t.source.value, t.inclusive) == fields


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("p95 > 400ms", "written with <"),
        ("p95 < 400 over 5s", "did you mean ms?"),
        ("p95 < 40%", "is a time"),
        ("errors < 2", "did you mean 2%?"),
        ("eror < 2%", "did you mean 'errors'?"),
        ("prodction p95 < 2s", "did you mean 'production'?"),
        ("p95 under 400ms", "'under' is not understood"),
        ("p95 over 5s", "lacks a limit"),
        ("route GET /x p95 < 1s", "not understood"),
        ("p95 < 1s over 500ms", "whole seconds"),
        ("p95 < 0ms", "always fail"),
        ("production oldest open < 2s", "of all stress shots"),
        ("oldest open < 2s over 5s", "of all stress shots"),
        ("production differing < 2% over 5s", "not compared"),
        ("p00 < 2s", "between"),
        ("", "not understood|lacks a limit"),
    ],
)
def test_thresholds_that_are_wrong_say_what_was_meant(text, said):
    with pytest.raises(ConfigError, match=said.replace("?", r"\?")):
        parse_threshold(text)


def test_the_readmes_plan_is_a_plan(recording):
    readme = (SHOP.parents[2] / "drill" / "README.md").read_text()
    shown = "\n".join(line[4:] for line in readme.splitlines() if line.startswith("    "))
    plan = parse_plan(shown, "README.md", {"recording": str(recording)})
    assert [t.guards for t in plan.thresholds] == [True, True, True, False, True]
