"""Documents of windows and exemplars: what they say, what they are called; docs and templates name the same fields."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_analytics_store_contract import of_run, pane_batch
from test_analytics_windows import RUN, START, outcome, outcomes, panes_of

from analytics import templates
from analytics.documents import (
    RunFacts,
    day,
    exemplar_document,
    histogram,
    iso,
    range_document,
    ranges_of,
    revision,
    window_document,
)
from analytics.documents import (
    panes_of as panes_in,
)
from analytics.fields import EXEMPLAR_FIELDS, SERIES, WINDOW_FIELDS, Field, base_of, pattern_of
from analytics.running_windows import RunningWindows
from analytics.source_ranges import SourceRanges
from analytics.store_port import StoreError
from analytics.windows import Window, windows
from wire.records import Exemplar, Failure, Kind, SourceRange
from wire.sketch import SketchBuilder

DOC = Path(__file__).parents[1] / "docs/elasticsearch.md"
FACTS = RunFacts("shop", 2.0, {0: 1.5, 1: 3.0})


def some_windows(count: int = 400) -> list[Window]:
    made = [outcome(i * 40, 900 * (i % 50 + 1), status=200 + i % 2 * 303, route=f"GET /{i % 2}") for i in range(count)]
    return list(windows(panes_of(made), every_s=10, over_s=10, start_s=START))


def test_a_document_has_exactly_the_fields_of_the_list():
    for window in some_windows():
        for histograms in (False, True):
            wanted = {field.name for field in WINDOW_FIELDS if histograms or not field.optional}
            assert set(window_document(window, SERIES[0], FACTS, histograms=histograms).source) == wanted
    shown = Exemplar(outcome(0), b"GET /x HTTP/1.1\r\n\r\n", b"")
    assert set(exemplar_document(shown, FACTS).source) == {field.name for field in EXEMPLAR_FIELDS}


def test_what_is_additive_adds_up_to_the_outcomes():
    found = [window_document(w, SERIES[0], FACTS).source for w in some_windows() if w.route != "*"]
    assert sum(d["livefire.offered"] for d in found) == sum(d["livefire.count"] for d in found) == 400
    assert sum(d["livefire.errors"] for d in found) == 200
    additive = {f.name for f in WINDOW_FIELDS if f.additive}
    assert (
        "livefire.p95_ms" not in additive and "livefire.offered_rate" not in additive and "livefire.count" in additive
    )


def test_names_of_indices_and_ids():
    first = some_windows()[0]
    made = window_document(first, SERIES[0], FACTS, name="lf")
    assert (first.route, made.index) == ("*", "lf-totals-tumbling-10s-2027.01.15")
    ids = {window_document(w, s, FACTS).id for w in some_windows() for s in SERIES}
    assert len(ids) == len(some_windows()) * len(SERIES)
    assert made.id == window_document(first, SERIES[0], RunFacts(), name="lf").id
    long = Window(**{f: getattr(first, f) for f in first.__struct_fields__} | {"route": "GET /" + "x" * 5000})
    assert len(window_document(long, SERIES[0], FACTS).id) < 512
    patterns = [pattern_of(s, all_routes=a) for s in SERIES for a in (False, True)]
    bases = [base_of(s, all_routes=a) + "-2027.01.15" for s in SERIES for a in (False, True)]
    for pattern, base in zip(patterns, bases, strict=True):  # no pattern matches the indices of another series
        assert [b for b in bases if b.startswith(pattern[:-1])] == [base]


@settings(max_examples=50, deadline=None)
@given(st.lists(outcomes, min_size=1, max_size=30), st.data())
def test_the_revision_grows_with_whatever_is_added(made, data):
    cut = data.draw(st.integers(0, len(made) - 1))
    at = {"every_s": 10, "over_s": 10, "start_s": START}
    before = {(w.kind, w.route, w.start_s): w for w in windows(panes_of(made[:cut]), **at)}
    for after in windows(panes_of(made), **at):
        old = before.get((after.kind, after.route, after.start_s))
        if old is not None:
            assert (revision(after) > revision(old)) if after.tally != old.tally else (revision(after) == revision(old))
    final = next(iter(windows(panes_of(made), **at, watermark_s=1 << 40)))
    assert revision(final) % 2 == 1


def test_figures_that_are_hidden_are_null():
    few = next(w for w in some_windows(5))
    made = window_document(few, SERIES[0], FACTS).source
    assert made["livefire.p99_ms"] is None and made["livefire.max_ms"] is not None
    lone = next(windows(panes_of([outcome(0, None, failure=Failure.SHED_RATE)]), every_s=10, over_s=10, start_s=START))
    assert window_document(lone, SERIES[0], FACTS).source["livefire.error_share"] is None


def test_speed_and_copies_are_of_stress_and_its_step():
    made = [outcome(0, step=1), outcome(0, kind=Kind.PRODUCTION, step=-1)]
    found = {
        w.kind: window_document(w, SERIES[0], FACTS).source
        for w in windows(panes_of(made), every_s=10, over_s=10, start_s=START)
    }
    assert (found[Kind.STRESS]["livefire.speed"], found[Kind.STRESS]["livefire.copies"]) == (2.0, 3.0)
    assert (found[Kind.PRODUCTION]["livefire.speed"], found[Kind.PRODUCTION]["livefire.copies"]) == (None, None)


def test_a_histogram_counts_every_value():
    builder = SketchBuilder()
    for value in (0, 5_000_000, 5_000_000, 80_000_000):
        builder.add(value)
    made = histogram(builder.freeze())
    assert made["counts"] == [1, 2, 1] and made["values"] == sorted(made["values"])
    assert made["values"][1] == pytest.approx(5, rel=0.006)


def test_times():
    assert (iso(START * 10**9 + 7_999_999), day(START)) == ("2027-01-15T08:00:00.007Z", "2027.01.15")


@pytest.mark.parametrize(
    ("failure", "status", "said"),
    [(Failure.NONE, 200, "success"), (Failure.NONE, 500, "failure"), (Failure.TIMEOUT, 0, "failure"),
     (Failure.UNKNOWN, 0, "unknown"), (Failure.SHED_LATE, 0, "unknown")],
)  # fmt: skip
def test_the_outcome_of_an_exemplar(failure, status, said):
    made = exemplar_document(
        Exemplar(outcome(0, status=status, failure=failure), b"GET / HTTP/1.1\r\n\r\n", b""), FACTS
    )
    assert made.source["event.outcome"] == said


def test_panes_of_a_range_come_back_exactly():
    panes = pane_batch(of_run([outcome(i * 300, 1000 * i + 1, route="GET /ü\t\n") for i in range(50)], RUN))
    source = SourceRange("outcomes", "w0", 3, 9)
    made = json.loads(__import__("msgspec").json.encode(range_document(RUN, "panes", "me", 1, panes, [source]).source))
    assert (panes_in(made), ranges_of(made)) == (panes, [source])


# ---------------------------------------------------------------------------- ranges


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12)), max_size=25))
def test_ranges_hold_what_was_added_and_nothing_else(spans):
    held, points = SourceRanges(), set[int]()
    for first, length in spans:
        source = SourceRange("t", "p", first, first + length)
        inside = set(range(first, first + length))
        if inside <= points:
            assert held.hold([source], "store")
        elif inside & points:
            with pytest.raises(StoreError, match="overlaps"):
                held.hold([source], "store")
        else:
            assert not held.hold([source], "store")
            held.add([source])
            points |= inside
        again = SourceRanges(SourceRange(*fields) for fields in held.as_lists())
        assert again.as_lists() == held.as_lists()
        assert sum(end - first for _, _, first, end in held.as_lists()) == len(points)


# ---------------------------------------------------------------------------- windows that run along


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(outcomes, max_size=15), min_size=1, max_size=6), st.data())
def test_windows_that_run_along_are_those_of_all_panes(batches, data):
    """Also when what was taken could not be written, and when another process goes on."""
    stored, written = [], {}

    def begun() -> RunningWindows:
        seconds = [pane.second for pane in stored]
        span = (min(seconds), max(seconds)) if seconds else None
        return RunningWindows(RUN, START, lambda a, b: [p for p in stored if a <= p.second < b], span=span)

    running = begun()
    unseen = []
    for batch in batches:
        panes = pane_batch(batch)
        stored += panes
        running.add(panes)
        unseen += panes
        what = data.draw(st.sampled_from(["take", "take", "some", "fail", "restart", ""]))
        if what == "restart":
            running = begun()
            for pane in unseen:
                running.touch(pane.second, pane.second)
        elif what == "fail":
            taken = running.take()
            for _ in range(data.draw(st.sampled_from([1, 1 << 20]))):  # given is not written
                if next(taken, None) is None:
                    break
            taken.close()
            running.again()
        elif what == "some":
            written |= {(s, w.kind, w.route, w.start_s): w for s, w in running.take(SERIES[:1])}
        elif what:
            written |= {(s, w.kind, w.route, w.start_s): w for s, w in running.take()}
            unseen = []
    written |= {(s, w.kind, w.route, w.start_s): w for s, w in running.take()}
    added = panes_of([o for batch in batches for o in batch])
    for series in SERIES:
        right = {
            (w.kind, w.route, w.start_s): w
            for w in windows(added, every_s=series.every_s, over_s=series.over_s, start_s=START)
        }
        assert {key[1:]: w for key, w in written.items() if key[0] == series} == right


def test_an_old_window_that_could_not_be_written_is_given_again():
    """Also when it is not kept at hand: it was made anew of stored panes, for what came late."""
    stored = []
    running = RunningWindows(RUN, START, lambda a, b: [p for p in stored if a <= p.second < b])

    def take(second):
        panes = pane_batch([outcome(second * 1000)])
        stored.extend(panes)
        running.add(panes)
        return {(series.name, w.start_s): w.tally.offered for series, w in running.take()}

    take(0)
    take(2000)
    late = take(1)
    assert late["tumbling_10s", START] == 2
    running.again()
    assert {(series.name, w.start_s): w.tally.offered for series, w in running.take()}.items() >= late.items()


# ---------------------------------------------------------------------------- docs and templates


def rows(fields: tuple[Field, ...]) -> str:
    lines = ["| field | type | | meaning |", "|---|---|---|---|"]
    for f in fields:
        unit = f" ({f.unit})" if f.unit else ""
        only = "; only where the server takes the type" if f.optional else ""
        lines.append(f"| `{f.name}` | {f.type} | {'+' if f.additive else ''} | {f.meaning}{unit}{only} |")
    return "\n".join(lines)


@pytest.mark.parametrize(("which", "fields"), [("windows", WINDOW_FIELDS), ("exemplars", EXEMPLAR_FIELDS)])
def test_the_docs_hold_the_list_of_fields(which, fields):
    """To write it anew after the list has changed: UPDATE_DOCS=1 make test."""
    text = DOC.read_text()
    begin = f"<!-- fields: {which} -->\n"
    head, _, rest = text.partition(begin)
    found, _, tail = rest.partition("<!-- end -->")
    if os.environ.get("UPDATE_DOCS"):
        DOC.write_text(f"{head}{begin}{rows(fields)}\n<!-- end -->{tail}")
        return
    assert found.strip() == rows(fields)


def test_templates_are_strict_and_leave_each_other_alone():
    parts = templates.component_templates(histograms=False, lifecycle=False)
    assert all(b["template"]["mappings"]["dynamic"] == "strict" for b in parts.values())
    assert "latencies_ms" not in json.dumps(parts)
    made = templates.index_templates(lifecycle=False)
    patterns = [p for body in made.values() for p in body["index_patterns"]]
    assert len(set(patterns)) == len(patterns) == 5
    assert all(part in parts for body in made.values() for part in body["composed_of"])


def test_lifecycle_stands_apart_and_only_where_there_is_ilm():
    """Its shape alone is looked at here: the server of these tests has no ILM."""
    without = json.dumps(
        [templates.component_templates(histograms=True, lifecycle=False), templates.index_templates(lifecycle=False)]
    )
    assert "lifecycle" not in without
    parts = templates.component_templates(histograms=True, lifecycle=True)
    assert parts["livefire-lifecycle"]["template"] == {"settings": {"index.lifecycle.name": "livefire-retention"}}
    made = templates.index_templates(lifecycle=True)
    assert [name for name, body in made.items() if "livefire-lifecycle" in body["composed_of"]] == [
        "livefire-windows", "livefire-totals", "livefire-panes", "livefire-exemplars",
    ]  # fmt: skip
    assert templates.policy(7)["policy"]["phases"]["delete"] == {"min_age": "7d", "actions": {"delete": {}}}


def test_faults_of_a_mapping_are_told():
    wanted = templates.properties(WINDOW_FIELDS, histograms=False)
    assert templates.faults(wanted, wanted) == []
    broken = json.loads(json.dumps(wanted))
    broken["livefire"]["properties"]["count"]["type"] = "text"
    del broken["@timestamp"]
    assert sorted(templates.faults(broken, wanted)) == ["@timestamp is not mapped", "livefire.count is text, not long"]
