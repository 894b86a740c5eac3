"""Every panel's query, as the saved panel has it, on a real Elasticsearch: against exact figures of single outcomes.

Documents go the project's own way (outcomes -> panes -> windows -> documents, under the project's templates); what is expected
is worked out here of the same outcomes with plain lists and the nearest rank, without panes or sketches. Counts must agree
exactly, percentiles within what a sketch may err.
"""

from __future__ import annotations

import json
import math
import random
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol
from uuid import uuid4

import pytest
from kibana_panels import Context, Row, clause, rows_of, value_of

from analytics import templates
from analytics.documents import Document, RunFacts, exemplar_document, window_document
from analytics.fields import SERIES
from analytics.kibana.dashboards import exported
from analytics.panes import NS, PaneBuilder
from analytics.windows import windows
from wire.records import Exemplar, Failure, Kind, Outcome, Verdict

START_S = 1_800_000_003  # not at a multiple of ten: windows begin at the run's start, buckets do not
STEP_S = 20
LOADS = {0: 1.0, 1: 2.0, 2: 3.5}
SECONDS = STEP_S * len(LOADS)
WATERMARK_S = START_S + SECONDS + 20  # to windows that end later something may be added
STATED_ERROR = 0.0055
SLOW_NS = 400_000_000
ROUTES = ("GET /", "GET /orders/{id}", "POST /orders", "GET /search")
HIDDEN = {"p50": 20, "p90": 100, "p95": 200, "p99": 1000}  # fewer answers tell nothing


class Server(Protocol):
    address: str


# ---------------------------------------------------------------------------- single outcomes


def outcomes_of(run_id: str, rng: random.Random, *, scale: float = 1.0) -> list[Outcome]:
    """A run in three steps with everything going wrong now and then, production beside it, a few canaries."""
    found = []
    for kind, rate in ((Kind.STRESS, 130), (Kind.PRODUCTION, 110), (Kind.CANARY, 1)):
        for second in range(SECONDS):
            step = second // STEP_S if kind is Kind.STRESS else -1
            load = LOADS[step] if kind is Kind.STRESS else 1.0
            for _ in range(int(rate * load * scale) or 1):
                due = (START_S + second) * NS + rng.randrange(NS)
                found.append(_outcome(run_id, kind, step, due, load, rng, len(found)))
    return found


def _outcome(run_id: str, kind: Kind, step: int, due: int, load: float, rng: random.Random, number: int) -> Outcome:
    route = rng.choices(ROUTES, (8, 3, 1, 0.6))[0]
    waited = int(rng.expovariate(1 / (2e6 * load)))
    latency = int(rng.lognormvariate(math.log(15e6 * load * (1 + ROUTES.index(route))), 0.6))
    failure, status, verdict = Failure.NONE, 200, Verdict.SAME
    chance = rng.random()
    if chance < 0.02 * load:
        status, verdict = 503, Verdict.STATUS
    elif chance < 0.03 * load:
        failure = rng.choice((Failure.TIMEOUT, Failure.RESET, Failure.CONNECT))
    elif chance < 0.04 * load and kind is Kind.STRESS:
        failure = rng.choice((Failure.SHED_RATE, Failure.SHED_OPEN, Failure.SHED_LATE))
    elif chance < 0.045 * load and kind is Kind.STRESS:
        failure = Failure.UNKNOWN
    elif chance < 0.06 * load:
        verdict = Verdict.LENGTH
    sent = failure is not Failure.UNKNOWN and not failure.value.startswith("shed")
    return Outcome(
        run_id=run_id,
        exchange_id=number.to_bytes(16, "big"),
        copy=0,
        lap=0,
        step=step,
        route=route,
        kind=kind,
        due_ns=due,
        sent_ns=due + waited if sent else 0,
        first_byte_ns=due + waited + latency if failure is Failure.NONE else 0,
        done_ns=due + waited + latency if sent else 0,
        pool_wait_ns=0,
        status=status if failure is Failure.NONE else 0,
        failure=failure,
        bytes_out=rng.randrange(300) if sent else 0,
        bytes_in=rng.randrange(5000) if failure is Failure.NONE else 0,
        verdict=verdict if failure is Failure.NONE else Verdict.NONE,
    )


# ---------------------------------------------------------------------------- what is expected of them


class Exact:
    """One window of one route (or of all, "*") and kind: counts, and every latency in a list."""

    def __init__(self, kind: str, route: str, start_s: int) -> None:
        self.kind, self.route, self.start_s = kind, route, start_s
        self.counts: dict[str, int] = dict.fromkeys(
            ("offered", "completed", "failed", "errors", "shed", "unknown", "differing", "bytes_out", "bytes_in"), 0
        )
        self.due: list[int] = []
        self.sent: list[int] = []
        self.step = -1

    def figure(self, name: str) -> float | None:
        if name in self.counts:
            return self.counts[name]
        if name == "step":
            return self.step
        if name == "copies":
            return LOADS.get(self.step)
        if name == "max_ms":
            return max(self.due) / 1e6 if self.due else None
        values = self.sent if name.startswith("send_") else self.due
        label = name.removeprefix("send_").removesuffix("_ms")
        if len(values) < HIDDEN[label]:
            return None
        return sorted(values)[math.ceil(int(label[1:]) * len(values) / 100) - 1] / 1e6  # the nearest rank


def exact_windows(outcomes: list[Outcome], every_s: int, over_s: int) -> dict[tuple[str, str, int], Exact]:
    found: dict[tuple[str, str, int], Exact] = {}

    def each(outcome: Outcome, at_ns: int) -> Iterator[Exact]:
        second = at_ns // NS
        last = (second - START_S) // every_s
        for k in range(max(0, last - (over_s // every_s) + 1), last + 1):
            start = START_S + k * every_s
            if start <= second < start + over_s:
                for route in (outcome.route, "*"):
                    key = (outcome.kind.value, route, start)
                    window = found.setdefault(key, Exact(*key))
                    window.step = max(window.step, outcome.step)
                    yield window

    for o in outcomes:
        shed, unknown = o.failure.value.startswith("shed"), o.failure is Failure.UNKNOWN
        for window in each(o, o.due_ns):
            window.counts["offered"] += 1
            window.counts["shed"] += shed
            window.counts["unknown"] += unknown
        if shed or unknown:
            continue
        for window in each(o, o.done_ns):
            answered = o.failure is Failure.NONE
            window.counts["completed"] += answered
            window.counts["failed"] += not answered
            window.counts["errors"] += not answered or o.status >= 500
            window.counts["differing"] += o.verdict in (Verdict.STATUS, Verdict.LENGTH)
            window.counts["bytes_out"] += o.bytes_out
            window.counts["bytes_in"] += o.bytes_in
            if answered or o.failure in (Failure.TIMEOUT, Failure.GIVEN_UP):
                window.due.append(o.done_ns - o.due_ns)
                window.sent.append(o.done_ns - o.sent_ns)
    return found


class Of(NamedTuple):
    """How a label's figure comes about: sums or the highest of a figure, or a sum over sums."""

    how: str  # sum, rate, max, share
    figure: str
    kind: str = ""  # only windows of this kind


class Layer(NamedTuple):
    reads: str  # routes, totals, sliding
    by: tuple[tuple[str, str], ...]  # label -> route, kind, step, bucket, start, end
    labels: Mapping[str, Of]
    kinds: tuple[str, ...] = ("stress",)


def total(*names: str) -> dict[str, Of]:
    return {name: Of("sum", name) for name in names}


BUCKET = ("windows of 10 s", "bucket")
AT, ENDS = ("time", "start"), ("time", "end")
BOTH = ("stress", "production")
PERCENTILES = {q: Of("max", f"{q}_ms") for q in ("p50", "p95", "p99")}
TABLE = {
    "meant": Of("sum", "offered"),
    "answered": Of("sum", "completed"),
    **total("failed", "errors", "shed", "unknown", "differing"),
    **{f"highest {q} ms": of for q, of in PERCENTILES.items()},
    "longest ms": Of("max", "max_ms"),
}
SHARE = Of("share", "errors")

#: What each panel must show.
EXPECTED: dict[str, list[Layer]] = {
    "meant": [Layer("routes", (), {"meant": Of("sum", "offered")})],
    "answered": [Layer("routes", (), {"answered": Of("sum", "completed")})],
    "errors": [Layer("routes", (), {"errors": Of("sum", "errors"), "of them without an answer": Of("sum", "failed")})],
    "error-share": [Layer("routes", (), {"error share": SHARE})],
    "not-sent": [Layer("routes", (), total("shed", "unknown"))],
    "highest-p95": [
        Layer("totals", (), {"highest p95 of a window": Of("max", "p95_ms"), "longest": Of("max", "max_ms")})
    ],
    "load": [
        Layer("routes", (BUCKET,), {"meant /s": Of("rate", "offered"), "answered /s": Of("rate", "completed")}),
        Layer(
            "routes",
            (BUCKET,),
            {"step (the first is 0)": Of("max", "step"), "load (copies of the recording)": Of("max", "copies")},
        ),
    ],
    "lost": [Layer("routes", (BUCKET,), {f"{name} /s": Of("rate", name) for name in ("shed", "unknown", "failed")})],
    "bytes": [Layer("routes", (BUCKET,), {"in /s": Of("rate", "bytes_in"), "out /s": Of("rate", "bytes_out")})],
    "latency": [Layer("totals", (AT,), PERCENTILES)],
    "last-minute": [Layer("sliding", (ENDS,), PERCENTILES)],
    "knee": [
        Layer(
            "totals",
            (AT,),
            {"answered per second": Of("rate", "completed"), "p95 ms": Of("max", "p95_ms"), "step": Of("max", "step")},
        )
    ],
    "latency-by-route": [Layer("routes", (("route", "route"), BUCKET), {"p95 ms": Of("max", "p95_ms")})],
    "latency-of-route": [Layer("routes", (AT,), PERCENTILES)],
    "due-and-sent": [
        Layer("routes", (BUCKET,), {"from due": Of("max", "p95_ms"), "from sent": Of("max", "send_p95_ms")})
    ],
    "errors-by-route": [Layer("routes", (("route", "route"), BUCKET), total("errors"))],
    "wrong": [
        Layer("routes", (BUCKET,), {f"{name} /s": Of("rate", name) for name in ("failed", "errors", "differing")})
    ],
    "error-share-over-time": [Layer("routes", (AT,), {"error share": SHARE})],
    "routes": [Layer("routes", (("route", "route"),), TABLE)],
    "steps": [Layer("routes", (("step", "step"),), {"load (copies)": Of("max", "copies"), **TABLE})],
    "load-by-kind": [Layer("routes", (("kind", "kind"), BUCKET), {"answered /s": Of("rate", "completed")}, BOTH)],
    **{
        f"{q}-by-kind": [Layer("totals", (AT,), {kind: Of("max", f"{q}_ms", kind) for kind in BOTH}, BOTH)]
        for q in ("p50", "p95", "p99")
    },
    "error-share-by-kind": [Layer("routes", (AT,), {kind: Of("share", "errors", kind) for kind in BOTH}, BOTH)],
    "hurt": [
        Layer("routes", (BUCKET,), {"stress answered /s": Of("rate", "completed", "stress")}, BOTH),
        Layer("totals", (BUCKET,), {"production p95 ms": Of("max", "p95_ms", "production")}, BOTH),
    ],
    "routes-by-kind": [
        Layer(
            "routes",
            (("route", "route"), ("kind", "kind")),
            {
                "answered": Of("sum", "completed"),
                "errors": Of("sum", "errors"),
                **{f"highest {q} ms": of for q, of in PERCENTILES.items()},
            },
            BOTH,
        )
    ],
}


def expected_rows(layer: Layer, exact: Mapping[str, Mapping[tuple[str, str, int], Exact]]) -> list[Row]:
    over_s, all_routes = (60, True) if layer.reads == "sliding" else (10, layer.reads == "totals")
    groups: dict[tuple[Any, ...], list[Exact]] = {}
    for w in exact["sliding" if layer.reads == "sliding" else "tumbling"].values():
        if layer.reads == "sliding" and w.start_s + over_s > WATERMARK_S:
            continue
        if w.kind in layer.kinds and (w.route == "*") is all_routes:
            of = {"route": w.route, "kind": w.kind, "step": w.step, "bucket": w.start_s // 10 * 10_000}
            of |= {"start": w.start_s * 1000, "end": (w.start_s + over_s) * 1000}
            groups.setdefault(tuple(of[what] for _, what in layer.by), []).append(w)
    rows = []
    for key, found in groups.items():
        row: Row = {label: value for (label, _), value in zip(layer.by, key, strict=True)}
        rows.append({**row, **{label: _figure(of, found) for label, of in layer.labels.items()}})
    return rows


def _figure(of: Of, found: list[Exact]) -> float | None:
    found = [w for w in found if not of.kind or w.kind == of.kind]
    values = [value for w in found if (value := w.figure(of.figure)) is not None]
    if of.how == "max":
        return max(values, default=None)
    if of.how == "share":
        finished = sum(w.counts["completed"] + w.counts["failed"] for w in found)
        return sum(values) / finished if finished else None
    return sum(values) / (10 if of.how == "rate" else 1)


def differences(found: list[Row], layer: Layer, wanted: list[Row]) -> list[str]:
    """What a panel shows and should not, or the other way round."""
    keys = [label for label, _ in layer.by]

    def keyed(rows: list[Row]) -> dict[tuple[Any, ...], Row]:
        return {tuple(row.get(key, "no such column") for key in keys): row for row in rows}

    here, there = keyed(found), keyed(wanted)
    told = [f"{key}: only in one" for key in here.keys() ^ there.keys()]
    for key in here.keys() & there.keys():
        for label, of in layer.labels.items():
            if label not in here[key]:
                told.append(f"{label}: not shown")
                continue
            value, exact = here[key][label], there[key][label]
            loose = STATED_ERROR if of.figure.endswith("_ms") and of.figure != "max_ms" else 1e-12
            if (value is None) != (exact is None) or (
                value is not None and exact is not None and abs(value - exact) > loose * abs(exact)
            ):
                told.append(f"{key} {label}: {value}, exactly {exact}")
    extra = {label for row in found for label in row} - set(keys) - set(layer.labels)
    return [*told, *(f"{label}: shown, and nobody knows what it is" for label in extra)]


# ---------------------------------------------------------------------------- in Elasticsearch


class Indexed(NamedTuple):
    panels: dict[str, dict[str, Any]]
    views: dict[str, str]
    search: Callable[[str, dict[str, Any]], dict[str, Any]]
    context: Context
    exact: dict[str, dict[tuple[str, str, int], Exact]]
    exemplars: list[Outcome]


def call(address: str, method: str, path: str, body: object = None) -> dict[str, Any]:
    data = body.encode() if isinstance(body, str) else None if body is None else json.dumps(body).encode()
    kind = "application/x-ndjson" if isinstance(body, str) else "application/json"
    request = urllib.request.Request(f"{address}/{path}", data, {"Content-Type": kind}, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def documents_of(outcomes: list[Outcome], name: str) -> Iterator[Document]:
    builder = PaneBuilder()
    builder.add_all(outcomes)
    panes = builder.take()
    facts = RunFacts(speed=1.0, loads=LOADS)
    for series in SERIES:
        for window in windows(
            panes, every_s=series.every_s, over_s=series.over_s, start_s=START_S, watermark_s=WATERMARK_S
        ):
            yield window_document(window, series, facts, name=name)
    for outcome in outcomes:
        if notable(outcome):
            head = outcome.route.encode() + b" HTTP/1.1\r\n\r\n"
            yield exemplar_document(Exemplar(outcome, head, b""), facts, name=name)


def notable(outcome: Outcome) -> bool:
    return outcome.failure is not Failure.NONE or outcome.done_ns - outcome.due_ns > SLOW_NS


def bulk(found: Iterator[Document]) -> Iterator[str]:
    lines: list[str] = []
    for document in found:
        action = "index" if document.version is not None else "create"
        lines += [json.dumps({action: {"_index": document.index, "_id": document.id}}), json.dumps(document.source)]
        if len(lines) >= 2000:
            yield "\n".join(lines) + "\n"
            lines = []
    if lines:
        yield "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def indexed(elasticsearch_server: Server) -> Iterator[Indexed]:
    address, name = elasticsearch_server.address, f"k{uuid4().hex[:10]}"
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    run, other = outcomes_of("run-1", rng), outcomes_of("run-2", rng, scale=0.1)
    components = templates.component_templates(name=name, histograms=False, lifecycle=False)
    indices = templates.index_templates(name=name, lifecycle=False)
    del indices[f"{name}-exemplars"]["data_stream"]  # the test server cannot delete one; queries see no difference
    try:
        for key, body in components.items():
            call(address, "PUT", f"_component_template/{key}", body)
        for key, body in indices.items():
            call(address, "PUT", f"_index_template/{key}", body)
        for outcomes in (run, other):
            for part in bulk(documents_of(outcomes, name)):
                answer = call(address, "POST", "_bulk", part)
                assert not answer["errors"], next(i for i in answer["items"] if "error" in next(iter(i.values())))
        call(address, "POST", f"{name}-*/_refresh")
        objects = [json.loads(line) for line in exported(name).splitlines()]
        prefix = f"{name}-panel-"
        yield Indexed(
            panels={o["id"].removeprefix(prefix): o for o in objects if o["id"].startswith(prefix)},
            views={o["id"]: o["attributes"]["title"] for o in objects if o["type"] == "index-pattern"},
            search=lambda index, body: call(address, "POST", f"{index}/_search", body),
            context=Context(
                (START_S - 10) * 1000,
                (START_S + 3 * SECONDS) * 1000,
                [{"match_phrase": {"livefire.run_id": "run-1"}}],
            ),
            exact={"tumbling": exact_windows(run, 10, 10), "sliding": exact_windows(run, 5, 60)},
            exemplars=[o for o in run if notable(o) and o.kind is Kind.STRESS],
        )
    finally:
        drop(address, f"{name}-*")
        for kind, keys in (("_index_template", indices), ("_component_template", components)):
            for key in keys:
                drop(address, f"{kind}/{key}")


def drop(address: str, path: str) -> None:
    try:
        call(address, "DELETE", path)
    except urllib.error.HTTPError as error:
        error.close()


def told_of(indexed: Indexed, key: str, panel: Mapping[str, Any]) -> list[str]:
    try:
        layers = rows_of(panel, indexed.views, indexed.search, indexed.context)
    except (AssertionError, KeyError) as error:  # what it needs is not in it
        return [f"no query: {type(error).__name__} {error}"]
    if key == "exemplars":
        return exemplar_differences(indexed, layers[0])
    assert len(layers) == len(EXPECTED[key])
    told: list[str] = []
    for found, layer in zip(layers, EXPECTED[key], strict=True):
        told += differences(found, layer, expected_rows(layer, indexed.exact))
    return told


def exemplar_differences(indexed: Indexed, found: list[Row]) -> list[str]:
    wanted: dict[tuple[str, str | None], list[Outcome]] = {}
    for outcome in indexed.exemplars:
        wanted.setdefault((outcome.route, outcome.failure.value or None), []).append(outcome)
    rows = {(row.get("route"), row.get("error", "-")): (row.get("exemplars"), row.get("longest ms")) for row in found}
    exact = {
        key: (len(of), max((o.done_ns - o.due_ns for o in of if o.done_ns), default=None)) for key, of in wanted.items()
    }
    return [
        f"{key}: {rows.get(key)}, exactly {exact.get(key)}"
        for key in rows.keys() | exact.keys()
        if key not in rows
        or key not in exact
        or rows[key][0] != exact[key][0]
        or (rows[key][1] is None) != (exact[key][1] is None)
        or (rows[key][1] is not None and abs(rows[key][1] - exact[key][1] / 1e6) > 1e-9 * rows[key][1])
    ]


KEYS = [*EXPECTED, "exemplars"]


def test_every_panel_is_expected(indexed: Indexed) -> None:
    assert set(indexed.panels) == set(KEYS)


@pytest.mark.parametrize("key", KEYS)
def test_a_panel_shows_what_single_outcomes_say(indexed: Indexed, key: str) -> None:
    assert told_of(indexed, key, indexed.panels[key]) == []
    if key != "exemplars":  # and it is not that nothing was compared
        for layer in EXPECTED[key]:
            wanted = expected_rows(layer, indexed.exact)
            assert wanted
            for label in layer.labels:
                assert any(row[label] for row in wanted), label


def fields_in(panel: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(where, name) of every field that the panel's queries read."""
    if panel["type"] == "visualization":
        spec = json.dumps(body_of(panel), separators=(",", ":"))
        names = {part.split('"')[0] for part in spec.split('"field":"')[1:]}
        return [("spec", name) for name in sorted(names)] + [("spec", "livefire.kind")]
    layers = panel["attributes"]["state"]["datasourceStates"]["formBased"]["layers"]
    found = [(layer, each) for layer, body in layers.items() for each in body["columns"]]
    return [*found, ("query", "livefire.kind")]


def body_of(panel: Mapping[str, Any]) -> dict[str, Any]:
    spec = json.loads(json.loads(panel["attributes"]["visState"])["params"]["spec"])
    body: dict[str, Any] = spec["data"]["url"]["body"]
    return body


def damaged(panel: Mapping[str, Any], where: str, name: str, *, whole: bool) -> dict[str, Any]:
    """The panel with a field's name gone; with `whole` the column itself, or the aggregation."""
    copy: dict[str, Any] = json.loads(json.dumps(panel))
    attributes = copy["attributes"]
    if where == "spec":
        state = json.loads(attributes["visState"])
        spec = state["params"]["spec"]
        if whole:
            loaded = json.loads(spec)
            prune(loaded["data"]["url"]["body"], name)
            state["params"]["spec"] = json.dumps(loaded)
        else:
            state["params"]["spec"] = spec.replace(f'"{name}"', '"livefire.gone"')
        assert state["params"]["spec"] != spec
        attributes["visState"] = json.dumps(state)
    elif where == "query":
        attributes["state"]["query"]["query"] = attributes["state"]["query"]["query"].replace(name, "livefire.gone")
    else:
        layer = attributes["state"]["datasourceStates"]["formBased"]["layers"][where]
        if whole:
            layer["columnOrder"].remove(name)
            del layer["columns"][name]
        elif layer["columns"][name]["operationType"] == "count":
            layer["columns"][name].update(operationType="max", sourceField="livefire.gone")
        else:
            layer["columns"][name]["sourceField"] = "livefire.gone"
    return copy


def prune(level: dict[str, Any], field: str) -> None:
    for key, body in list(level.get("aggs", {}).items()):
        if field in json.dumps({k: v for k, v in body.items() if k != "aggs"}):
            del level["aggs"][key]
        else:
            prune(body, field)


@pytest.mark.parametrize("key", KEYS)
def test_a_panel_without_one_of_its_fields_does_not(indexed: Indexed, key: str) -> None:
    panel = indexed.panels[key]
    fields = fields_in(panel)
    assert fields
    for where, name in fields:
        for whole in (False, True):
            if whole and where == "query":
                continue
            try:
                told = told_of(indexed, key, damaged(panel, where, name, whole=whole))
            except urllib.error.HTTPError as error:
                with error:
                    told = [f"refused: {error.code}"]
            assert told, f"{where} {name} is gone, and nobody sees it"


def test_without_the_dashboards_filter_another_run_is_in_it(indexed: Indexed) -> None:
    unfiltered = indexed._replace(context=Context(indexed.context.from_ms, indexed.context.to_ms, []))
    short = indexed._replace(context=Context(indexed.context.from_ms, (START_S + 15) * 1000, indexed.context.filters))
    for key in ("meant", "error-share", "routes", "load", "exemplars"):
        assert told_of(unfiltered, key, indexed.panels[key]), key
        assert told_of(short, key, indexed.panels[key]), key


def test_expressions_and_queries_are_read_as_kibana_reads_them() -> None:
    datum = {"a": {"value": 6}, "b": {"value": 2.0}, "c": {"d": {"value": None}}}
    assert value_of("datum.a.value / 4", datum) == 1.5
    share = "(datum.a.value + datum.b.value) > 0 ? datum.b.value / (datum.a.value + datum.b.value) : null"
    assert value_of(share, datum) == 0.25
    assert value_of(share, {"a": {"value": 0}, "b": {"value": 0}}) is None
    assert value_of("datum.c.d.value", datum) is None
    with pytest.raises(AssertionError):
        value_of("datum.c.e.value", datum)
    assert clause('a.b : "x"') == {"bool": {"should": [{"term": {"a.b": "x"}}], "minimum_should_match": 1}}
    assert clause('a : "x" and b : "y"') == {"bool": {"filter": [{"term": {"a": "x"}}, {"term": {"b": "y"}}]}}
    with pytest.raises(ValueError, match="query"):
        clause("a > 3")
