"""The report of a run: it stands alone, and its numbers are the run's, counted here independently."""

import math
import random
import re
from collections import Counter

import msgspec
import pytest
from test_analytics_windows import START

from analytics.app import PANES_FILE, Aggregator
from analytics.store_sqlite import PaneStore
from bus.logfile import FileBus
from drill.guard import Cause, Decision
from drill.isolation import ServiceWitness, StoreWitness, weigh
from drill.pressure import arithmetic
from drill.report import Section, write_report
from drill.result import Canary, DrillResult, ThirdPartyResult, account_of
from drill.thresholds import parse_threshold
from drill.verdict import StepRun, capacity_of, fidelity_of, judge_step, verdict_of
from wire.config import ConfigError
from wire.records import Beat, Failure, Kind, Manifest, Outcome, Verdict

NS = 10**9
RUN = "01KBREPORT0000000000000000"
LOADS = ((1, 10), (2, 10), (4, 10), (8, 15))
RECORDED = 29.0
STOP_AT = 37.2
ROUTES = (
    "GET /",
    "GET /products",
    "GET /search",
    "POST /cart",
    "POST /orders",
    "GET /orders/{id}",
    "GET /recommendations",
)
THRESHOLDS = ("p95 < 400ms over 4s", "errors < 2% over 5s", "production p90 < 600ms over 5s", "oldest open < 3s")


def made_outcomes(rng, rate):
    """A shop whose recommendations answer 44 times a second: at 8x their queue grows until the stop."""
    made, serial = [], 0
    free_at = 0.0

    def add(at, kind, step, queue):
        nonlocal serial, free_at
        route = rng.choices(ROUTES, weights=(8, 6, 5, 2, 1, 1, 5.6))[0]
        serial += 1
        latency = rng.lognormvariate(math.log(0.009), 0.5)
        if queue and route == "GET /recommendations":
            free_at = max(free_at, at) + 1 / 44
            latency = free_at - at + 0.045
        elif queue and step == 3:
            latency *= 1.6
        failure, status = Failure.NONE, 200
        if kind is Kind.STRESS and step == 3 and rng.random() < 0.006:
            status = 503
        due = START * NS + round(at * NS)
        sent = due + round(rng.lognormvariate(math.log(0.0003), 0.6) * NS)
        if kind is Kind.STRESS and at + latency > STOP_AT + 0.9:
            failure, status, latency = Failure.TIMEOUT, 0, STOP_AT + 0.9 - at
        if kind is Kind.STRESS and step == 3 and rng.random() < 0.004:
            failure, status = Failure.RESET, 0
        if kind is Kind.STRESS and at > STOP_AT:
            if at > STOP_AT + 0.2:
                return
            failure, status, sent, latency = Failure.SHED_STOP, 0, 0, 0
        done = (sent or due) + round(latency * NS)
        verdict = Verdict.SAME if rng.random() > 0.02 else Verdict.LENGTH
        made.append(
            Outcome(RUN, serial.to_bytes(16, "big"), 0, 0, step, route, kind, due, sent, done if status else 0,
                    done if sent else 0, 0, status, failure, 120, 900, verdict if status else Verdict.NONE, "w0")
        )  # fmt: skip

    arrivals = []
    begin = 0
    for step, (load, length) in enumerate(LOADS):
        at = begin
        while at < begin + length:
            at += rng.expovariate(rate * load)
            if at < begin + length:
                arrivals.append((at, Kind.STRESS, step))
        begin += length
    at = 0.0
    while at < STOP_AT + 2:
        at += rng.expovariate(28)
        arrivals.append((at, Kind.PRODUCTION, -1))
    for at, kind, step in sorted(arrivals):
        add(at, kind, step, True)
    return made


def write_run(folder, seed=7, *, violated=False, rate=RECORDED):
    """A run's folder as a drill leaves it, made of the real parts. Returns its outcomes and its result."""
    rng = random.Random(seed)
    made = made_outcomes(rng, rate)
    run_dir = folder / RUN
    bus = FileBus(run_dir)
    with bus.writer("outcomes", "w0", Manifest("outcomes", "w0", RUN, START * NS, "test")) as writer:
        for at in range(0, len(made), 200):
            writer.write_records(made[at : at + 200])
        writer.end()
    with bus.writer("beats", "w0", Manifest("beats", "w0", RUN, START * NS, "test")) as writer:
        stress = [o for o in made if o.kind is Kind.STRESS and o.sent_ns]
        for quarter in range(int(STOP_AT * 4) + 6):
            now = START * NS + quarter * NS // 4
            opened = sorted(o.sent_ns for o in stress if o.sent_ns <= now < o.done_ns)
            oldest = now - opened[0] if opened else 0
            writer.write_records([Beat(RUN, "w0", now, 1, 0, 0, 0, len(opened), oldest, 0, 0.1)])
    with PaneStore(run_dir / PANES_FILE) as store:
        aggregator = Aggregator(bus, store)
        aggregator.drain()
        store.set_note("start_s", str(START))
        panes = store.panes(RUN)
        aggregator.close()
    decision = Decision(
        START * NS + round(STOP_AT * NS), Cause.THRESHOLD,
        "p95 < 400ms over 4s: 1.21 s; worst route: GET /recommendations 2.60 s",
        THRESHOLDS[0], "GET /recommendations", 1.21e9,
    )  # fmt: skip
    steps, begin = [], 0
    for index, (load, length) in enumerate(LOADS):
        part = arithmetic(scale=1, speed=1, load=load, recorded_rate=RECORDED)
        end = min(begin + length, STOP_AT)
        run = StepRun(index, part, START * NS + begin * NS, START * NS + round(end * NS), begin + length > STOP_AT)
        steps.append(judge_step(run, panes, [parse_threshold(t) for t in THRESHOLDS], decision))
        begin += length
    isolation = weigh(
        (
            ServiceWitness("storefront", "http://127.0.0.1:8080", "", 3120, {}, {}, {}),
            ServiceWitness("orders", "http://127.0.0.1:8081", "", 214, {"sqlite:///orders.db": 318}, {},
                           {"127.0.0.1:9082": 106}),
        ),
        (StoreWitness("orders", "", {"orders": 0, "order_lines": 0, "order_events": 2 if violated else 0},
                      {"orders": 106, "order_lines": 190, "order_events": 112}),),
        writes_expected=True,
    )  # fmt: skip
    fidelity = fidelity_of(steps)
    verdict = verdict_of(steps=steps, decision=decision, isolation=isolation, disposable=False, fidelity=fidelity,
                         enough_fidelity=0.8, workers_failed={}, failures={})  # fmt: skip
    sent = [o.sent_ns for o in made if o.kind is Kind.STRESS]
    why = Counter(o.failure for o in made if o.kind is Kind.STRESS and o.failure is not Failure.NONE)
    result = DrillResult(
        RUN, run_dir, "shop, evening rush", verdict.exit_code, verdict, capacity_of(steps), fidelity, tuple(steps),
        isolation,
        Canary(2, 14, 4, ("POST /orders",)),
        account_of(panes, sum(pane.offered for pane in panes if pane.kind is Kind.STRESS), why),
        (ThirdPartyResult("payments", "127.0.0.1:9082", "127.0.0.1:9700", 106, 106, 0),),
        tuple(arithmetic(scale=1, speed=1, load=load, recorded_rate=RECORDED).line() for load, _ in LOADS),
        START * NS, START * NS + 40 * NS, decision, decision.at_ns, max(sent),
    )  # fmt: skip
    (run_dir / "result.json").write_bytes(msgspec.json.encode(result.as_dict()))
    asked = {"kind": "drill", "run_id": RUN, "name": "shop, evening rush", "target": "http://127.0.0.1:8080",
             "plan": "name: shop, <evening> rush\nsteps: ...", "arithmetic": list(result.arithmetic)}  # fmt: skip
    (run_dir / "run.json").write_bytes(msgspec.json.encode(asked))
    return made, result


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return folder, *write_run(folder)


@pytest.fixture(scope="module")
def written(base):
    folder, made, result = base
    size = write_report(folder / RUN, folder / "report.html", [Section("Shop", ("what", "count"), (("<orders>", 17),))])
    return made, result, (folder / "report.html").read_text(), size


def text_of(page):
    """The page without scripts and tags."""
    page = re.sub(r"<(script|style).*?</\1>", " ", page, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def test_it_stands_alone_and_is_small(written):
    _, _, page, size = written
    assert size < 6_000_000
    assert "Bokeh" in page
    assert not re.findall(r"""<(?:script|link|img)[^>]*(?:src|href)\s*=\s*["']?(?!data:)[^"'>\s]+""", page)
    assert "https://cdn" not in re.sub(r"<script.*?</script>", "", page, flags=re.S)


def test_it_says_the_runs_numbers(written):
    made, result, page, _ = written
    text = text_of(page)
    stress = [o for o in made if o.kind is Kind.STRESS]
    shed = sum(o.failure is Failure.SHED_STOP for o in stress)
    answered = sum(o.failure is Failure.NONE for o in stress)
    failed = sum(o.failure in (Failure.TIMEOUT, Failure.RESET) for o in stress)
    assert shed and failed
    for name, count in (("planned", len(stress)), ("shed", shed), ("answered", answered), ("failed", failed),
                        ("sent", len(stress) - shed)):  # fmt: skip
        assert re.search(rf"\b{name} {count:,}\b", text), (name, count)
    assert f"{shed:,} shed: the run was stopped" in text and "failed: no answer within the timeout" in text
    for step, (load, length) in enumerate(LOADS[:3]):
        offered = sum(o.step == step for o in stress) / length
        assert re.search(rf"\b{step + 1} {load}x {RECORDED * load:.1f} {offered:,.1f}\b", text)
    exact = sorted(o.done_ns - o.due_ns for o in stress if o.step == 2)
    p95 = exact[math.ceil(0.95 * len(exact)) - 1] / 1e6
    shown = result.steps[2].stress.quantile_ms(0.95)
    assert shown == pytest.approx(p95, rel=0.0055)
    assert f"{shown:,.1f}" in text
    last = max(o.sent_ns for o in stress)
    assert result.stopped_after_ns == last - result.decision_ns
    assert "Stopped by the guard; capacity 4x" in text
    assert "GET /recommendations" in text and "worst route" in text
    assert "payments 127.0.0.1:9082" in text
    assert "408 in shadow, 0 in production" in text
    assert "&lt;orders&gt; 17" in text and "&lt;evening&gt;" in text  # what others wrote is not markup


def test_its_curves_hold_every_outcome(written):
    made, _, page, _ = written
    stress = sum(o.kind is Kind.STRESS for o in made)
    docs = re.search(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', page, re.S) or re.search(
        r"const docs_json = '(.*?)';", page, re.S
    )
    assert docs is not None
    found = re.search(r'\["offered",(\[[0-9,]+\])\]', docs.group(1).replace('\\"', '"'))
    assert found is not None
    assert sum(msgspec.json.decode(found.group(1))) == stress


def test_each_chart_has_a_key_that_wraps(written):
    """A legend on the canvas would be cut off on a narrow screen."""
    _, _, page, _ = written
    keys = re.findall(r'<div class="key">(.*?)</div>', page)
    names = [re.findall(r'<span class="(\w*)" style="color:(#\w{6})"><i>(.*?)</i>', key) for key in keys]
    assert [[name for _, _, name in key] for key in names] == [
        ["offered (stress)", "completed (stress)", "completed (production)"],
        ["max", "p50", "p90", "p95", "p99"],
        ["no answer", "status 5xx", "shed (not sent)"],
        ["without an answer yet"],
        ["production p50", "production p90", "stress p50", "stress p90"],
    ]
    assert [style for style, _, _ in names[4]] == ["", "dashed", "", "dashed"]
    assert len({(style, colour) for style, colour, _ in names[4]}) == 4  # no two look alike
    docs = page.replace('\\"', '"')
    assert docs.count('"type":"object","name":"Legend"') == docs.count('"visible":false') == 5


def test_a_violated_run_says_so_first(tmp_path):
    _, result = write_run(tmp_path, violated=True, rate=3.0)
    assert result.exit_code == 98
    write_report(tmp_path / RUN, tmp_path / "report.html")
    text = text_of((tmp_path / "report.html").read_text())
    assert "store orders, table order_events: 2 rows of this run in production" in text
    assert text.index("Isolation is violated") < text.index("Rate")


@pytest.mark.parametrize(("exit_code", "mood"), [(0, "good"), (97, "good"), (96, "doubt"), (98, "doubt")])
def test_a_capacity_is_good_only_where_the_verdict_stands(tmp_path, exit_code, mood):
    write_run(tmp_path, rate=3.0)
    result = tmp_path / RUN / "result.json"
    found = msgspec.json.decode(result.read_bytes())
    found["capacity"] |= {"step": 3, "load": 4.0, "rate": 116.0, "limited": True}
    result.write_bytes(msgspec.json.encode(found | {"exit_code": exit_code}))
    write_report(tmp_path / RUN, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    card = re.search(r'<div class="card (\w*)"><div class="label">Capacity<', page)
    assert card is not None and card.group(1) == mood
    assert ("no proof, see above" in page) == (mood == "doubt")


def test_a_plain_replay_has_a_report_too(tmp_path):
    write_run(tmp_path, rate=3.0)
    (tmp_path / RUN / "result.json").unlink()
    write_report(tmp_path / RUN, tmp_path / "report.html")
    text = text_of((tmp_path / "report.html").read_text())
    assert "Latency" in text and "Windows" in text


def test_only_a_page_is_written_over(tmp_path):
    write_run(tmp_path, rate=3.0)
    page, recording = tmp_path / "report.html", tmp_path / "monday.lf"
    recording.write_bytes(b"LFLOG of a week")
    with pytest.raises(ConfigError, match=r"monday\.lf: exists, and is no report page"):
        write_report(tmp_path / RUN, recording)
    assert recording.read_bytes() == b"LFLOG of a week"
    assert write_report(tmp_path / RUN, page) == write_report(tmp_path / RUN, page)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no run"):
        write_report(tmp_path, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
