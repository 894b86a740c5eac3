"""Windows on a real Elasticsearch: a naive sum is right, what is late rewrites its window, nothing counts twice."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from elastic_place import Place, place_of
from elasticsearch import ApiError
from test_analytics_store_contract import of_run, pane_batch, some, source
from test_analytics_windows import START, outcome, panes_of

from analytics import templates
from analytics.documents import Document, RunFacts, range_document, window_document
from analytics.fields import EXEMPLAR_FIELDS, SERIES, WINDOW_FIELDS, Field, exemplars_of, pattern_of
from analytics.store_address import open_store
from analytics.store_elasticsearch import ElasticsearchStore
from analytics.store_port import StoreAway, StoreError
from analytics.windows import windows
from wire.records import Exemplar, Failure, Kind, Outcome, SourceRange

TEN = SERIES[0]
SUM = {
    "size": 0,
    "aggs": {
        "routes": {
            "terms": {"field": "livefire.route", "size": 100},
            "aggs": {"n": {"sum": {"field": "livefire.count"}}},
        }
    },
}


@pytest.fixture(scope="module")
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with place_of(request) as made:
        yield made


def traffic(run_id: str, seed: int, count: int = 3000, span_ms: int = 130_000) -> list[Outcome]:
    rng = random.Random(seed)
    made = [
        outcome(
            rng.randrange(span_ms),
            int(rng.lognormvariate(9, 1.5)) + 1,
            status=rng.choice([200, 200, 200, 404, 503]),
            failure=rng.choice(
                [Failure.NONE] * 20 + [Failure.TIMEOUT, Failure.RESET, Failure.SHED_RATE, Failure.UNKNOWN]
            ),
            route=rng.choice(["GET /x", "GET /x", "POST /y", "GET /z/{id}"]),
            kind=rng.choice([Kind.STRESS] * 4 + [Kind.PRODUCTION]),
        )
        for _ in range(count)
    ]
    return of_run(made, run_id)


def begun(place: Place, run_id: str) -> ElasticsearchStore:
    store = place.open(run_id)
    store.set_note("start_s", str(START))
    store.set_note("speed", "2.0")
    store.set_note("loads", '{"0": 1.5}')
    return store


def by_id(place: Place, series=TEN, *, all_routes: bool = False, run_id: str = "") -> dict:
    pattern = pattern_of(series, all_routes=all_routes, name=place.name)
    found = place.sources(pattern, {"term": {"livefire.run_id": run_id}} if run_id else None)
    return {(d["livefire.kind"], d["livefire.route"], d["@timestamp"]): d for d in found}


def expected(made: list[Outcome], series, *, all_routes: bool = False, final: bool = False) -> dict:
    found = windows(
        panes_of(made),
        every_s=series.every_s,
        over_s=series.over_s,
        start_s=START,
        watermark_s=1 << 40 if final else None,
    )
    facts = RunFacts(speed=2.0, loads={0: 1.5})
    docs = [window_document(w, series, facts).source for w in found if (w.route == "*") is all_routes]
    return {(d["livefire.kind"], d["livefire.route"], d["@timestamp"]): d for d in docs}


def answered(made: list[Outcome]) -> dict[str, int]:
    """From raw outcomes, without anything of ours: what was answered, by route."""
    return dict(Counter(o.route for o in made if o.failure is Failure.NONE))


def naive(place: Place, pattern: str) -> dict[str, int]:
    buckets = place.search(SUM, pattern)["aggregations"]["routes"]["buckets"]
    return {bucket["key"]: int(bucket["n"]["value"]) for bucket in buckets}


def test_a_naive_sum_over_the_default_view_is_right(place):
    made = traffic("naive", 1)
    with begun(place, "naive") as store:
        for number in range(6):
            store.apply(pane_batch(made[number * 500 :][:500]), [source(number)])
            store.refresh_windows()
    assert SERIES[0].default and SERIES[0].tumbling and sum(s.default for s in SERIES) == 1
    assert naive(place, pattern_of(TEN, name=place.name)) == answered(made)
    # the controls: over every length, or with the totals, the same sum is wrong
    assert naive(place, f"{place.name}-windows-*") != answered(made)
    assert "*" in naive(place, f"{place.name}-*-tumbling-10s-*")
    sliding = naive(place, pattern_of(SERIES[3], name=place.name))
    assert all(sliding[route] > n for route, n in answered(made).items())


@pytest.mark.parametrize("all_routes", [False, True])
@pytest.mark.parametrize("series", SERIES, ids=lambda s: s.name)
def test_every_series_holds_what_windows_of_the_outcomes_are(place, series, all_routes):
    run_id = f"series-{series.name}-{all_routes}"
    made = traffic(run_id, 2, 1500)
    with begun(place, run_id) as store:
        for number in range(3):
            store.apply(pane_batch(made[number * 500 :][:500]), [source(number)])
            store.refresh_windows()
    assert by_id(place, series, all_routes=all_routes, run_id=run_id) == expected(made, series, all_routes=all_routes)


def test_what_is_late_rewrites_its_window_and_only_that(place):
    made = traffic("late", 3, 1200, 900_000)
    late = of_run([outcome(15_000, 9_000_000)], "late")  # due in the second window, done in the third
    with begun(place, "late") as store:
        store.apply(pane_batch(made), [source(0)])
        store.refresh_windows()
        before = by_id(place, run_id="late")
        store.apply(pane_batch(late), [source(1)])
        assert store.refresh_windows() > 0
        after = by_id(place, run_id="late")
        changed = {key[2] for key in after if after[key] != before.get(key)}
        assert len(changed) == 2 and after == expected([*made, *late], TEN)
        assert all(
            after[key]["livefire.revision"] > before[key]["livefire.revision"]
            for key in after
            if key in before and after[key] != before[key]
        )
        assert store.refresh_windows() == 0


def test_what_was_not_written_before_a_crash_is_written_after_it(place):
    made = traffic("crash", 4, 1000)
    with begun(place, "crash") as store:
        store.apply(pane_batch(made[:400]), [source(0)])
        store.refresh_windows()
        store.apply(pane_batch(made[400:700]), [source(1)])  # and is killed before it writes its windows
    assert by_id(place, run_id="crash") != expected(made[:700], TEN)
    with place.open("crash") as store:
        assert store.resume("outcomes", "w0") == 200
        assert not store.apply(pane_batch(made[:400]), [source(0)])
        assert store.refresh_windows() > 0
        assert by_id(place, run_id="crash") == expected(made[:700], TEN)
        store.apply(pane_batch(made[700:]), [source(2)])
        store.set_note("watermark_s", str(1 << 40))
        store.refresh_windows()
    for all_routes in (False, True):
        for series in SERIES:
            right = expected(made, series, all_routes=all_routes, final=True)
            assert by_id(place, series, all_routes=all_routes, run_id="crash") == right


def test_windows_become_final_also_those_of_a_writer_before(place):
    made = traffic("final", 5, 600)
    with begun(place, "final") as store:
        store.apply(pane_batch(made), [source(0)])
        store.set_note("watermark_s", str(START + 40))
        store.refresh_windows()
        early = by_id(place, run_id="final")
        assert {d["livefire.final"] for d in early.values() if d["livefire.elapsed_s"] < 40} == {True}
        assert {d["livefire.final"] for d in early.values() if d["livefire.elapsed_s"] >= 40} == {False}
    with place.open("final") as store:
        store.set_note("watermark_s", str(1 << 40))
        assert store.refresh_windows() > 0
        assert store.refresh_windows() == 0
    assert by_id(place, run_id="final") == expected(made, TEN, final=True)


def test_an_older_revision_never_overwrites_a_newer_one(place):
    made = traffic("older", 6, 400)
    with begun(place, "older") as store:
        store.apply(pane_batch(made), [source(0)])
        store.refresh_windows()
        old = [w for w in windows(panes_of(made[:200]), every_s=10, over_s=10, start_s=START) if w.route != "*"]
        stale = [window_document(w, TEN, RunFacts(), name=place.name) for w in old]
        assert len(stale) > 5
        assert store._client.bulk(stale) == 0  # each met a newer one, or itself
    assert by_id(place, run_id="older") == expected(made, TEN)


def types_of(properties: dict, path: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, body in properties.items():
        if "properties" in body:
            found |= types_of(body["properties"], f"{path}{name}.")
        else:
            found[path + name] = body["type"]
    return found


def wanted(fields: tuple[Field, ...], histograms: bool) -> dict[str, str]:
    return {field.name: field.type for field in fields if histograms or not field.optional}


def test_the_real_mappings_are_those_of_the_list(place):
    with begun(place, "mapping") as store:
        store.apply(pane_batch(some("mapping", 0)), [source(0)])
        store.refresh_windows()
        store.exemplars([exemplar("mapping")])
        histograms = store._indices.histograms
    for kind in ("windows", "totals"):
        for index, body in place.ask("GET", f"/{place.name}-{kind}-*/_mapping").items():
            assert body["mappings"]["dynamic"] == "strict", index
            assert types_of(body["mappings"]["properties"]) == wanted(WINDOW_FIELDS, histograms), index
    found = place.ask("GET", f"/{exemplars_of(place.name)}/_mapping")
    assert all(
        index.startswith(f".ds-{exemplars_of(place.name)}-") for index in found
    )  # a data stream, by its template
    for body in found.values():
        assert types_of(body["mappings"]["properties"]) == wanted(EXEMPLAR_FIELDS, histograms)
    names = place.ask("GET", f"/{place.name}-*/_mapping")
    assert f"{place.name}-windows-tumbling-10s-2027.01.15" in names  # the day that the windows begin in


def test_whether_the_server_takes_histograms_is_asked_not_assumed(place):
    """The server of these tests has neither the field type nor ILM: so this holds which of both is in place."""
    with place.open("histograms") as store:
        there = place.ask("GET", f"/_component_template/{place.name}-window-fields")
        mapped = types_of(there["component_templates"][0]["component_template"]["template"]["mappings"]["properties"])
        assert ("livefire.latencies_ms" in mapped) is store._indices.histograms
    try:
        place.ask("PUT", f"/{place.name}-windows-probe", {"mappings": {"properties": {"h": {"type": "histogram"}}}})
        takes = True
    except AssertionError as refused:
        assert "histogram" in str(refused)
        takes = False
    assert store._indices.histograms is takes


def test_an_index_that_guesses_types_is_refused_before_it_is_written(place):
    index = f"{place.name}-windows-tumbling-10s-2027.01.15"
    run_id = "guess"
    with OtherPlace(place) as other:
        guessed = index.replace(place.name, other.name)
        other.ask(
            "PUT",
            f"/{guessed}",
            {"mappings": {"properties": {"livefire": {"properties": {"count": {"type": "text"}}}}}},
        )
        with begun(other, run_id) as store:
            store.apply(pane_batch(some(run_id, 0)), [source(0)])
            with pytest.raises(StoreError, match="was not made by our template") as told:
                store.refresh_windows()
            assert "\n" not in str(told.value) and guessed in str(told.value)
        assert other.sources(guessed) == []


class OtherPlace:
    """Another place on the same server."""

    def __init__(self, place: Place) -> None:
        self.place = Place(place.url)

    def __enter__(self) -> Place:
        return self.place

    def __exit__(self, *_: object) -> None:
        self.place.remove()


def exemplar(run_id: str, *, failure: Failure = Failure.NONE, copy: int = 0) -> Exemplar:
    made = of_run([outcome(5, 7000, status=503, failure=failure)], run_id)[0]
    fields = {name: getattr(made, name) for name in made.__struct_fields__}
    return Exemplar(
        Outcome(**{**fields, "copy": copy}),
        b"GET /x?token=lf_masked HTTP/1.1\r\nHost: a\r\n\r\n",
        b"HTTP/1.1 503 Service Unavailable\r\n\r\n",
    )


def test_exemplars_are_kept_once_in_a_data_stream(place):
    with place.open("exemplars") as store:
        shown = [exemplar("exemplars"), exemplar("exemplars", failure=Failure.TIMEOUT, copy=1)]
        assert store.exemplars(shown) == 2
        assert store.exemplars([*shown, exemplar("exemplars", copy=2)]) == 1
    found = place.sources(exemplars_of(place.name), {"term": {"livefire.run_id": "exemplars"}})
    assert sorted(d["livefire.copy"] for d in found) == [0, 1, 2]
    one = next(d for d in found if d["livefire.copy"] == 0)
    assert (one["url.original"], one["url.path"], one["http.response.status_code"]) == ("/x?token=lf_masked", "/x", 503)
    assert (one["event.outcome"], one["livefire.latency_ms"]) == ("failure", 7.0)


def test_a_run_of_two_days_is_in_the_indices_of_both(place):
    midnight = START - START % 86_400 + 86_400
    made = of_run([outcome((midnight - START) * 1000 + ms) for ms in (-15_000, -5_000, 5_000)], "days")
    with place.open("days") as store:
        store.set_note("start_s", str(midnight - 20))
        store.apply(pane_batch(made), [source(0)])
        store.refresh_windows()
    query = {"term": {"livefire.run_id": "days"}}
    sums = {
        day: sum(d["livefire.offered"] for d in place.sources(f"{place.name}-windows-tumbling-10s-{day}", query))
        for day in ("2027.01.15", "2027.01.16")
    }
    assert sums == {"2027.01.15": 2, "2027.01.16": 1}


def test_memory_does_not_grow_with_the_run(place):
    sizes = []
    with begun(place, "memory") as store:
        for number in range(12):
            made = of_run([outcome(number * 300_000 + ms) for ms in range(0, 300_000, 1000)], "memory")
            store.apply(pane_batch(made), [source(number)])
            store.refresh_windows()
            sizes.append(len(store._running))
    assert max(sizes[-3:]) <= max(sizes[:4])


def test_the_templates_name_each_field_once():
    for fields in (WINDOW_FIELDS, EXEMPLAR_FIELDS):
        assert len({field.name for field in fields}) == len(fields)
        assert types_of(templates.properties(fields, histograms=True)) == {f.name: f.type for f in fields}


# ---------------------------------------------------------------------------- the queries of the docs

DOC = Path(__file__).parents[1] / "docs/elasticsearch.md"


@pytest.fixture(scope="module")
def asked(place: Place) -> tuple[list[Outcome], list[dict]]:
    """What each query of docs/elasticsearch.md answers, and the outcomes that it was asked about."""
    made = traffic("docs", 8, 8000)
    with begun(place, "docs") as store:
        store.apply(pane_batch(made), [source(0)])
        store.refresh_windows()
    found = re.findall(r"```json (livefire-\S+)\n(.*?)```", DOC.read_text(), re.DOTALL)
    assert len(found) == 5
    only = {"term": {"livefire.run_id": "docs"}}
    bodies = [
        (pattern, json.loads(body.replace('"RUN"', '"docs"').replace('{"match_all": {}}', json.dumps(only))))
        for pattern, body in found
    ]
    return made, [place.search(body, pattern.replace("livefire-", place.name + "-", 1)) for pattern, body in bodies]


def test_query_answered_per_route(asked):
    made, (answer, *_) = asked
    buckets = answer["aggregations"]["routes"]["buckets"]
    assert {b["key"]: b["answered"]["value"] for b in buckets} == answered(made)


def test_query_throughput_and_p95(asked):
    made, answers = asked
    hits = [hit["_source"] for hit in answers[1]["hits"]["hits"]]
    done = Counter(
        int(o.done_ns / 1e9 - START) // 10 for o in made if o.failure is Failure.NONE and o.kind is Kind.STRESS
    )
    assert [round(h["livefire.completed_rate"] * 10) for h in hits] == [done[i] for i in range(len(hits))]
    # exact nearest rank of the outcomes themselves, answers and timeouts, within what a sketch may err
    slow: dict[int, list[float]] = {}
    for o in made:
        if o.kind is Kind.STRESS and o.failure in (Failure.NONE, Failure.TIMEOUT, Failure.GIVEN_UP):
            slow.setdefault(int(o.done_ns // 10**9 - START) // 10, []).append((o.done_ns - o.due_ns) / 1e6)
    compared = 0
    for at, hit in enumerate(hits):
        if hit["livefire.p95_ms"] is not None:
            ranked = sorted(slow[at])
            assert hit["livefire.p95_ms"] == pytest.approx(ranked[-(-95 * len(ranked) // 100) - 1], rel=0.006)
            compared += 1
    assert compared > 5


def test_query_error_share_by_step(asked):
    made, answers = asked
    (bucket,) = answers[2]["aggregations"]["steps"]["buckets"]
    sent = [o for o in made if o.kind is Kind.STRESS and o.failure not in (Failure.SHED_RATE, Failure.UNKNOWN)]
    errors = sum(o.failure is not Failure.NONE or o.status >= 500 for o in sent)
    assert (bucket["key"], bucket["errors"]["value"]) == (0, errors)
    assert bucket["completed"]["value"] + bucket["failed"]["value"] == len(sent)


def test_query_worst_windows(asked):
    _, answers = asked
    worst = [hit["_source"]["livefire.p99_ms"] for hit in answers[3]["hits"]["hits"]]
    assert worst == sorted(worst, reverse=True)


def test_query_production_beside_stress(asked):
    made, answers = asked
    found: Counter[str] = Counter()
    for minute in answers[4]["aggregations"]["minutes"]["buckets"]:
        for kind in minute["kinds"]["buckets"]:
            found[kind["key"]] += int(kind["answered"]["value"])
    assert found == Counter(o.kind.value for o in made if o.failure is Failure.NONE)


# ---------------------------------------------------------------------------- what goes wrong


def test_a_field_that_is_refused_is_named_in_one_line(place):
    with begun(place, "refused") as store:
        store.apply(pane_batch(some("refused", 0)), [source(0)])
        store.refresh_windows()
        made = window_document(
            next(iter(store.windows("refused", every_s=10, over_s=10, start_s=START))), TEN, RunFacts(), name=place.name
        )
        for field, value, said in (
            ("livefire.count", "many", "field livefire.count"),
            ("livefire.unheard", 1, "field livefire.unheard"),
        ):
            with pytest.raises(StoreError, match=said) as told:
                store._client.bulk([Document(made.index, "x", {**made.source, field: value})])
            assert "\n" not in str(told.value) and "refuses a document" in str(told.value)


def test_a_client_newer_than_the_server_is_told_in_one_line(place):
    with place.open("newer") as store:
        client = store._client
        with pytest.raises(ApiError) as raised:  # what a client of the next major sends
            client._client.perform_request(
                "GET", "/_cluster/health", headers={"accept": "application/vnd.elasticsearch+json; compatible-with=10"}
            )
        told = str(client.told(raised.value))
    assert "newer than the server" in told and "major version" in told and "\n" not in told


def test_a_busy_server_is_asked_again_with_patience(place):
    """Its answers are real ones but for the first two, which say busy: that cannot be brought about from outside."""
    slept: list[float] = []
    with begun(place, "busy") as store:
        store.apply(pane_batch(some("busy", 0)), [source(0)])
        client = store._client
        client._sleep = slept.append
        real, said = client.request, [StoreAway(f"{client.where}: busy (429): queue is full")] * 2

        def request(method, path, *args, **more):
            if path == "/_bulk" and said:
                raise said.pop()
            return real(method, path, *args, **more)

        client.request = request
        assert store.refresh_windows() > 0
        assert slept == [0.1, 0.2]
        said += [StoreAway(f"{client.where}: busy (429): queue is full")] * 100
        store.set_note("watermark_s", str(1 << 40))
        with pytest.raises(StoreAway):
            store.refresh_windows()
        assert sum(slept) < 15  # the patience is bounded
        said.clear()
        assert store.refresh_windows() > 0  # and nothing of it is lost
    assert by_id(place, run_id="busy") == expected(some("busy", 0), TEN, final=True)


def test_nobody_there_is_away_and_a_password_in_clear_is_refused(monkeypatch):
    with pytest.raises(StoreAway, match="not there") as told:
        open_store("elasticsearch://127.0.0.1:9", "run")
    assert "\n" not in str(told.value)
    monkeypatch.setenv("SECRET", "s3cret")
    with pytest.raises(StoreError, match="in clear: elasticsearchs://") as refused:
        open_store("elasticsearch://me:SECRET@es.example:9200", "run")
    assert "s3cret" not in str(refused.value)
    monkeypatch.setenv("LIVEFIRE_ELASTICSEARCH_API_KEY", "abc")
    with pytest.raises(StoreError, match="only one of them"):
        open_store("elasticsearch://me:SECRET@127.0.0.1:9200", "run")


def test_what_a_former_writer_had_under_way_counts_for_nothing(place):
    """It arrives when another has taken over, and taken the same ranges in, in other portions."""
    made = traffic("former", 9, 300)
    old = begun(place, "former")
    old.apply(pane_batch(made[:100]), [source(0)])
    late = range_document("former", old._index, old._me, old._number + 1, pane_batch(made[100:200]), [source(1)])
    with place.open("former") as new:
        assert new.resume("outcomes", "w0") == 100
        assert old._client.bulk([late]) == 1  # only now it lands
        assert new.apply(pane_batch(made[100:]), [SourceRange("outcomes", "w0", 100, 300)])
        new.refresh_windows()
        assert sum(pane.offered for pane in new.panes("former")) == 300
        with pytest.raises(StoreError, match="another process"):
            old.apply(pane_batch(made[:1]), [source(7)])
    old.close()
    with place.open("former") as again:
        assert again.resume("outcomes", "w0") == 300
        assert sum(pane.offered for pane in again.panes("former")) == 300
    assert by_id(place, run_id="former") == expected(made, TEN)


def test_an_answer_that_was_lost_counts_once(place):
    """Sent and written, and nobody heard: the same again is one, and so is going on from where the store stands."""
    for how in ("again", "resume"):
        run_id = f"lost-{how}"
        made = traffic(run_id, 10, 200)
        with begun(place, run_id) as store:
            real = store._client.bulk

            def deaf(documents, real=real, store=store):
                real(documents)
                store._client.bulk = real
                raise StoreAway("no answer came")

            store._client.bulk = deaf
            with pytest.raises(StoreAway):
                store.apply(pane_batch(made[:100]), [source(0)])
            if how == "again":
                assert store.apply(pane_batch(made[:100]), [source(0)])
            else:
                assert store.resume("outcomes", "w0") == 100
            store.apply(pane_batch(made[100:]), [source(1)])
            store.refresh_windows()
            assert sum(pane.offered for pane in store.panes(run_id)) == 200
        assert by_id(place, run_id=run_id) == expected(made, TEN)
