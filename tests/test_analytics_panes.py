"""Panes are made the quick way; here is the plain way beside it: one outcome after the other, by the rules as they read."""

from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_analytics_windows import START, outcome, outcomes

from analytics.panes import NS, PaneBuilder, key_of
from wire.records import Failure, Outcome, Pane, Verdict
from wire.sketch import SketchBuilder

_Plain = dict[tuple[Any, ...], tuple[Counter[str], SketchBuilder, SketchBuilder]]
_COUNTED = ("offered", "completed", "errors", "shed", "unknown", "differing", "bytes_out", "bytes_in")


def plainly(made: list[Outcome]) -> list[tuple[Any, ...]]:
    held: _Plain = {}

    def at(ns: int, one: Outcome) -> tuple[Counter[str], SketchBuilder, SketchBuilder]:
        status_class = one.status // 100 if one.failure is Failure.NONE else 0
        key = ns // NS, one.run_id, one.step, one.route, one.kind.value, status_class
        return held.setdefault(key, (Counter(), SketchBuilder(), SketchBuilder()))

    for one in made:
        due, _, _ = at(one.due_ns, one)
        due["offered"] += 1
        if one.failure.value.startswith("shed"):
            due["shed"] += 1
        elif one.failure is Failure.UNKNOWN:
            due["unknown"] += 1
        else:
            done_ns = one.done_ns or one.due_ns
            done, from_due, from_send = at(done_ns, one)
            done["bytes_out"] += one.bytes_out
            done["bytes_in"] += one.bytes_in
            done["differing"] += one.verdict not in (Verdict.SAME, Verdict.NONE)
            done["completed"] += one.failure is Failure.NONE
            done["errors"] += one.failure is not Failure.NONE or one.status >= 500
            if one.failure in (Failure.NONE, Failure.TIMEOUT, Failure.GIVEN_UP):
                from_due.add(done_ns - one.due_ns)
                from_send.add(done_ns - (one.sent_ns or one.due_ns))
    return sorted(
        (key, [counted[name] for name in _COUNTED], due.freeze(), sent.freeze())
        for key, (counted, due, sent) in held.items()
    )


def told(panes: list[Pane]) -> list[tuple[Any, ...]]:
    return sorted((key_of(p), [getattr(p, name) for name in _COUNTED], p.from_due, p.from_send) for p in panes)


def changed(one: Outcome, **fields: Any) -> Outcome:
    return msgspec.structs.replace(one, **fields)


#: Beside what is usual: another run, no status, never sent, not done, done before it was due.
_odd = st.builds(
    changed,
    outcomes,
    run_id=st.sampled_from(["01JRUN", "01JRUN", "01JOTHER"]),
    status=st.sampled_from([0, 99, 100, 200, 201, 299, 499, 500, 599]),
    sent_ns=st.sampled_from([0, START * NS, START * NS + NS - 1]),
    done_ns=st.sampled_from([0, START * NS - 1, START * NS, START * NS + NS, START * NS + 7]),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(outcomes | _odd, max_size=60), st.integers(0, 60))
def test_the_quick_way_makes_what_the_plain_way_makes(made: list[Outcome], cut: int) -> None:
    builder = PaneBuilder()
    builder.add_all(made[:cut])
    builder.add_all(made[cut:])
    assert told(builder.take()) == plainly(made)
    assert builder.take() == []


@pytest.mark.parametrize(
    "fields",
    [{"status": 201}, {"verdict": Verdict.STATUS}, {"bytes_in": 21}, {"failure": Failure.CONNECT}, {"done_ns": START * NS}],
)  # fmt: skip
def test_the_comparison_sees_one_outcome_that_is_counted_otherwise(fields: dict[str, Any]) -> None:
    made = [outcome(n * 10, latency_us=3000) for n in range(50)]
    builder = PaneBuilder()
    builder.add_all([*made[:-1], changed(made[-1], **fields)])
    found = told(builder.take())
    assert found == plainly([*made[:-1], changed(made[-1], **fields)])
    assert (found != plainly(made)) is (fields != {"status": 201})  # of one class: one pane
