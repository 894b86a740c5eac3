"""Every query of docs/clickhouse.md, run as it stands there, against figures computed from raw outcomes."""

from __future__ import annotations

import contextlib
import math
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from store_backends import BACKENDS
from test_analytics_clickhouse import fill, traffic
from test_analytics_windows import START

from analytics.fields import SERIES
from wire.records import Failure, Kind, Outcome

DOC = (Path(__file__).parents[1] / "docs" / "clickhouse.md").read_text()
QUERIES = dict(re.findall(r"^### (.+?)\n.*?```sql\n(.*?)```", DOC, re.M | re.S))
SECONDS = 180
NS = 1_000_000_000

Ask = Callable[[str], list[tuple[Any, ...]]]


@pytest.fixture(scope="module", params=["clickhouse", "clickhouse-folding", "chdb"])
def filled(request: pytest.FixtureRequest) -> Iterator[tuple[Ask, list[Outcome]]]:
    run_id = f"doc-{secrets.token_hex(3)}"
    made = traffic(run_id, SECONDS, 7)
    with (
        BACKENDS[request.param](request) as opener,
        contextlib.closing(opener(run_id)) as store,
        contextlib.closing(opener(run_id + "x")) as other,
    ):
        store.set_note("start_s", str(START))
        fill(store, made)
        fill(other, traffic(run_id + "x", 30, 8))

        def ask(name: str) -> list[tuple[Any, ...]]:
            return store._ask(QUERIES[name].replace("'RUN'", f"'{run_id}'"))

        yield ask, made


def answered(o: Outcome) -> bool:
    return o.failure is Failure.NONE


def finished(o: Outcome) -> bool:
    return answered(o) or not (o.failure is Failure.UNKNOWN or o.failure.value.startswith("shed"))


def done_s(o: Outcome) -> int:
    return (o.done_ns or o.due_ns) // NS - START


def failed_or_5xx(o: Outcome) -> bool:
    return finished(o) and (not answered(o) or o.status >= 500)


def exact(outcomes: list[Outcome], q: float) -> float | None:
    """Nearest rank of the latencies themselves, in ms; None below 10 / (1 - q)."""
    found = sorted(
        o.done_ns - o.due_ns for o in outcomes if answered(o) or o.failure in (Failure.TIMEOUT, Failure.GIVEN_UP)
    )
    if len(found) < 10 / (1 - q) - 1e-6:
        return None
    return found[math.ceil(q * len(found) - 1e-9) - 1] / 1e6


def near(value: float | None) -> object:
    return None if value is None else pytest.approx(value, rel=0.0055)


def of(made: list[Outcome], kind: Kind, first: int = -9, end: int = 10**9) -> list[Outcome]:
    return [o for o in made if o.kind is kind and finished(o) and first <= done_s(o) < end]


def offered(made: list[Outcome], kind: Kind, first: int = -9, end: int = 10**9) -> list[Outcome]:
    return [o for o in made if o.kind is kind and first <= o.due_ns // NS - START < end]


def test_every_query_of_the_document_is_tested():
    tested = {name for name in QUERIES if f'ask("{name}")' in Path(__file__).read_text()}
    assert set(QUERIES) == tested
    assert len(QUERIES) == 7


def test_every_table_and_view_is_in_the_document():
    for series in SERIES:
        assert f"windows_{series.name}" in DOC


def test_windows_of_a_run(filled):
    ask, made = filled
    rows = ask("Windows of a run")
    assert len(rows) >= SECONDS // 10
    for _, elapsed, step, offered_rate, completed_rate, share, p50, p99, _ in rows:
        due = offered(made, Kind.STRESS, elapsed, elapsed + 10)
        done = of(made, Kind.STRESS, elapsed, elapsed + 10)
        assert step == max(o.step for o in due + done)
        assert offered_rate == len(due) / 10
        assert completed_rate == sum(map(answered, done)) / 10
        assert share == (pytest.approx(sum(map(failed_or_5xx, done)) / len(done)) if done else None)
        assert p50 == near(exact(done, 0.5))
        assert p99 == near(exact(done, 0.99))
    assert any(row[6] is not None for row in rows)


def test_sliding_p99_by_route(filled):
    ask, made = filled
    rows = ask("Sliding p99 by route")
    assert len({row[0] for row in rows}) == 2
    assert [row[1] for row in rows if row[0] == "GET /x"][:3] == [0, 5, 10]
    for route, elapsed, p99, count in rows:
        mine = [o for o in made if o.route == route]
        assert count == len(offered(mine, Kind.STRESS, elapsed, elapsed + 60))
        assert p99 == near(exact(of(mine, Kind.STRESS, elapsed, elapsed + 60), 0.99))


def test_production_beside_stress(filled):
    ask, made = filled
    rows = ask("Production beside stress")
    assert len(rows) >= 3
    for elapsed, stress_rate, production_rate, stress_p95, production_p95 in rows:
        for kind, rate, p95 in (
            (Kind.STRESS, stress_rate, stress_p95),
            (Kind.PRODUCTION, production_rate, production_p95),
        ):
            done = of(made, kind, elapsed, elapsed + 60)
            assert rate == pytest.approx(sum(map(answered, done)) / 60)
            assert p95 == near(exact(done, 0.95))
    assert any(row[3] is not None for row in rows) and any(row[4] is not None for row in rows)


def test_capacity_per_step(filled):
    ask, made = filled
    rows = ask("Capacity per step")
    assert [row[0] for row in rows] == [0, 1, 2]
    for step, seconds, offered_rate, completed_rate, share, p99 in rows:
        due = [o for o in offered(made, Kind.STRESS) if o.step == step]
        done = [o for o in of(made, Kind.STRESS) if o.step == step]
        at = [o.due_ns // NS - START for o in due] + [done_s(o) for o in done]
        assert seconds == max(at) - min(at) + 1
        assert offered_rate == pytest.approx(len(due) / seconds)
        assert completed_rate == pytest.approx(sum(map(answered, done)) / seconds)
        assert share == pytest.approx(sum(map(failed_or_5xx, done)) / len(done))
        assert p99 == near(exact(done, 0.99))


def test_slow_routes(filled):
    ask, made = filled
    rows = ask("Slow routes")
    assert {row[0] for row in rows} == {"GET /x", "POST /y"}
    assert rows[0][1] >= rows[1][1]
    for route, worst, longest, count, failed in rows:
        done = [o for o in of(made, Kind.STRESS) if o.route == route]
        spans = range(0, max(map(done_s, done)) + 1, 60)
        p95s = [exact([o for o in done if at <= done_s(o) < at + 60], 0.95) for at in spans]
        assert worst == near(max(p for p in p95s if p is not None))
        assert longest == pytest.approx(
            max(o.done_ns - o.due_ns for o in done if answered(o) or o.failure in (Failure.TIMEOUT, Failure.GIVEN_UP))
            / 1e6
        )
        assert (count, failed) == (sum(map(answered, done)), sum(not answered(o) for o in done))


def test_a_plain_sum_is_right(filled):
    ask, made = filled
    right = []
    for kind in (Kind.PRODUCTION, Kind.STRESS):
        done = of(made, kind)
        count = (
            len(offered(made, kind)),
            sum(map(answered, done)),
            sum(map(failed_or_5xx, done)),
            sum(o.bytes_in for o in done),
        )
        right.append((kind.value, *count))
    assert ask("A plain sum is right") == right


def test_how_far_a_run_has_come(filled):
    ask, _ = filled
    assert ask("How far a run has come") == [("outcomes", "w0", 700), ("outcomes", "w1", 600)]
