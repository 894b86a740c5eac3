"""The demo over real servers, whole: every count that it compares against an independent one, with negative controls."""

from __future__ import annotations

import json
import os
import random
import secrets
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
from clickhouse_driver import Client
from servers.fixtures import Running
from servers.process import Server
from shop_rename import rename_fields
from test_livefire_demo import SHOP, Ran, gone, lines, processes_of, rows

from analytics.store_address import open_store
from wire.records import SourceRange

SEED = int(os.environ.get("LIVEFIRE_SEED", random.SystemRandom().randrange(1 << 32)))
DATABASE = f"fleet_{secrets.token_hex(4)}"


@pytest.fixture(scope="module")
def clickhouse(clickhouse_server: Server | Running) -> Client:
    host, _, port = clickhouse_server.address.rpartition(":")
    client = Client(host, int(port))
    client.execute(f"CREATE DATABASE {DATABASE}")
    yield client
    client.execute(f"DROP DATABASE {DATABASE}")
    client.disconnect()


@pytest.fixture(scope="module")
def stores(
    clickhouse: Client, clickhouse_server: Server | Running, elasticsearch_server: Server | Running
) -> list[str]:
    search = elasticsearch_server.address.removeprefix("http://")
    return [f"clickhouse://{clickhouse_server.address}/{DATABASE}", f"elasticsearch://{search}/{DATABASE}"]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, kafka_server: Server | Running, stores: list[str]) -> Ran:
    root = tmp_path_factory.mktemp("fleet")
    print(f"seed {SEED} (LIVEFIRE_SEED)")
    rename_fields(SHOP, root / "shop", SEED)
    bus = ["--bus", f"kafka://{kafka_server.address}/{DATABASE}"]
    ran = Ran(root, root / "shop", more=[*bus, *(word for store in stores for word in ("--store", store))])
    assert ran.code == 0, f"seed {SEED}: {ran.told}\n{ran.process.stdout}"
    return ran


def test_one_drill_one_verdict_by_two_workers(fleet: Ran) -> None:
    drill = fleet.figures["drill"]
    assert drill["exit_code"] == 97, fleet.told
    assert [step["cut"] for step in drill["steps"]] == [False] * (len(drill["arithmetic"]) - 1) + [True]
    outcomes = fleet.livefire("outcomes", "--json")
    shares = Counter(o["worker"] for o in outcomes if o["kind"] == "stress" and o["status"])
    assert set(shares) == {"w0", "w1"} and min(shares.values()) > 0.2 * max(shares.values()), shares
    last = max(o["sent_ns"] for o in outcomes if o["kind"] == "stress")
    assert last - drill["decision_ns"] <= 1_000_000_000


def test_what_one_stage_passed_on_the_next_one_saw(fleet: Ran) -> None:
    chain = fleet.figures["chain"]
    assert [(n, m) for _, n, _, m in chain if n != m] == [] and len(chain) == 3
    assert all(n > 100 for _, n, _, _ in chain)
    assert fleet.figures["disagreements"] == []
    assert all(fleet.figures[stage]["balanced"] for stage in ("record", "cleanse", "replay"))
    drops = fleet.figures["cleanse"]["ledgers"]["messages"]
    assert fleet.figures["recorded"] == drops["emitted"] + sum(drops["drops"].values()) + sum(
        drops["intentional"].values()
    )


def test_every_shot_is_in_the_storefronts_own_log(fleet: Ran) -> None:
    assert fleet.shots_beside_the_log() == (0, 0)


def test_stress_writes_are_in_the_shadow_alone_and_no_third_party_was_reached(fleet: Ran) -> None:
    isolation = fleet.figures["drill"]["isolation"]
    assert isolation["verdict"] == "proven", isolation
    assert rows(fleet.folder / "orders.db", marked=True) == 0
    assert rows(fleet.folder / "orders-shadow.db", marked=True) == isolation["rows_in_shadow"] > 0
    assert sum(1 for line in lines(fleet.folder / "payments.log") if line["marked"]) == 0


def test_a_naive_sum_in_either_database_is_what_the_outcomes_say(
    fleet: Ran, clickhouse: Client, stores: list[str]
) -> None:
    run_id = fleet.figures["drill"]["run_id"]
    stress = [o for o in fleet.livefire("outcomes", "--json") if o["kind"] == "stress"]
    offered, completed = len(stress), sum(1 for o in stress if o["status"])
    found = clickhouse.execute(
        f"SELECT sum(offered), sum(completed) FROM {DATABASE}.windows_tumbling_10s WHERE run = %(run)s AND kind = 'stress'",
        {"run": run_id},
    )
    assert found == [(offered, completed)]
    host = stores[1].removeprefix("elasticsearch://").partition("/")[0]
    query = {
        "size": 0,
        "query": {"bool": {"filter": [{"term": {"livefire.run_id": run_id}}, {"term": {"livefire.kind": "stress"}}]}},
        "aggs": {name: {"sum": {"field": f"livefire.{name}"}} for name in ("offered", "count")},
    }
    request = urllib.request.Request(
        f"http://{host}/{DATABASE}-windows-tumbling-10s-*/_search", json.dumps(query).encode(),
        {"Content-Type": "application/json"},
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=30) as answer:
        sums = json.load(answer)["aggregations"]
    assert (sums["offered"]["value"], sums["count"]["value"]) == (offered, completed)


def test_the_windows_are_the_same_everywhere_and_a_pane_more_is_noticed(fleet: Ran, stores: list[str]) -> None:
    run_id = fleet.figures["drill"]["run_id"]
    assert fleet.figures["windows"] == {"clickhouse": True, "elasticsearch": True}
    own = counts(fleet, run_id)
    assert len(own) > 20
    for store in stores:
        assert counts(fleet, run_id, "--store", store) == own
    writer = open_store(stores[0], run_id)
    try:
        pane = next(pane for pane in writer.panes(run_id) if pane.kind == "stress" and pane.offered)
        assert writer.apply([pane], [SourceRange("outcomes", "somebody-else", 0, 1)])
    finally:
        writer.close()
    assert counts(fleet, run_id, "--store", stores[0]) != own


def counts(fleet: Ran, run_id: str, *arguments: str) -> list[tuple[object, ...]]:
    names = ("start_ns", "route", "offered", "completed", "failed", "errors", "shed", "p50_ms", "p95_ms", "max_ms")
    windows = fleet.livefire("windows", run_id, "--json", "--every", "10s", *arguments)
    return sorted(tuple(w[name] for name in names) for w in windows if w["kind"] == "stress")


def test_nothing_secret_is_in_what_was_written(fleet: Ran) -> None:
    accounts = (fleet.folder.parent / "shop" / "accounts.csv").read_text().splitlines()[1:]
    logins = [row.split(",")[1] for row in accounts]
    shown = "\n".join(json.dumps(o) for o in fleet.livefire("show", str(fleet.folder / "clean.lf"), "--json"))
    written = shown.encode() + fleet.told.encode()
    for path in (fleet.folder / "logs").iterdir():
        written += path.read_bytes()
    assert not [login for login in logins if login.encode() in written]


def test_nothing_is_left_running(fleet: Ran) -> None:
    assert gone(fleet.folder), processes_of(fleet.folder)


def test_stores_without_a_bus_are_refused(tmp_path: Path) -> None:
    ran = Ran(tmp_path, SHOP, more=["--store", "x.db"])
    assert ran.code == 2 and "--store goes with --bus" in ran.told
