"""A drill over a bus: workers that stand by elsewhere, the same verdict, the same books."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fault_checks import LEASE_NS, SECOND, children_of, environment, shot_of, until
from fleet import Cluster, Fleet
from http_target import Target
from recordings import id_of
from servers.fixtures import started
from servers.kafka import Kafka

from bus.address import open_bus
from replay import summary
from replay.book import records_of
from replay.recover import recover, unfinished
from wire import topics
from wire.codec import RecordType
from wire.records import Exchange, Manifest, Request, Response


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    with Target(tmp_path) as running:
        yield running


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[str]:
    with Cluster(request.getfixturevalue("kafka_server").address) as address:
        yield address


BUSES: dict[str, Callable[[pytest.FixtureRequest], str]] = {
    "folder": lambda request: str(request.getfixturevalue("tmp_path") / "bus"),
    "kafka": lambda request: str(request.getfixturevalue("cluster")),
}


@pytest.fixture(params=sorted(BUSES))
def fleet(request: pytest.FixtureRequest, tmp_path: Path, target: Target) -> Iterator[Fleet]:
    with Fleet(tmp_path, BUSES[request.param](request), target) as running:
        running.publish()
        yield running


def problems_of(fleet: Fleet, run_id: str) -> list[str]:
    """What is wrong with a run's books, beside the target's own log."""
    found = []
    outcomes = fleet.outcomes(run_id)
    received = fleet.target.shots()
    if twice := [name for name, count in received.items() if count > 1]:
        found.append(f"fired twice: {twice[:3]}")
    booked = [shot_of(outcome) for outcome in outcomes]
    if len(booked) != len(set(booked)):
        found.append("a shot has two outcomes")
    sent = {shot_of(o) for o in outcomes if o["sent_ns"]} | {shot_of(o) for o in outcomes if o["failure"] == "unknown"}
    if stray := set(received) - sent:
        found.append(f"{len(stray)} shots were received that nobody says he sent")
    home = summary.read(fleet.folder / "runs" / run_id)[0]
    if not home.balanced:
        found.append(f"the books at home do not balance: {home}")
    bus = open_bus(fleet.address, run_id)
    try:
        there = summary.read(bus)[0]
        if unfinished(bus) or recover(bus):
            found.append("the books on the bus are not whole")
        for name in ("planned", "sent", "answered", "failed", "shed", "unknown", "balanced"):
            if getattr(there, name) != getattr(home, name):
                found.append(f"{name}: {getattr(home, name)} at home, {getattr(there, name)} on the bus")
    finally:
        bus.close()
    return found


def test_a_drill_by_two_workers_that_stood_by(fleet: Fleet) -> None:
    workers = [fleet.worker(f"w{index}") for index in range(2)]
    drill = fleet.drill()
    assert drill.ended() == 0, drill.err() + workers[0].err()
    result = fleet.result(drill)
    account = result["account"]
    assert account["balanced"] and account["sent"] == account["planned"] == len(fleet.target.requests()) > 300
    assert {outcome["worker"] for outcome in fleet.outcomes(result["run_id"])} == {"w0", "w1"}
    assert problems_of(fleet, result["run_id"]) == []
    with contextlib.closing(open_bus(fleet.address, result["run_id"])) as bus:
        exemplars = [
            exemplar
            for worker in bus.partitions(topics.EXEMPLARS)
            for exemplar in records_of(bus.reader(topics.EXEMPLARS, worker), RecordType.EXEMPLAR)
        ]
    assert {exemplar.outcome.worker for exemplar in exemplars} == {"w0", "w1"} and len(exemplars) <= 8
    assert all(exemplar.request_head.startswith(b"GET /sleep/20 ") for exemplar in exemplars)
    # They stand by again, and leave when they are let go.
    until(lambda: {b.state for b in fleet.beats().values()} == {"idle"}, 20, "they are not idle again")
    for worker in workers:
        worker.let_go()
    assert [worker.ended(30) for worker in workers] == [0, 0]
    assert not list((fleet.folder / "runs" / "workers").rglob("*.lf")), "recordings stay with no worker"


def test_too_few_workers_are_told_before_anything_is_fired(fleet: Fleet) -> None:
    worker = fleet.worker("w0")
    until(lambda: "w0" in fleet.beats(), 15, "it does not stand by", worker.err)
    drill = fleet.drill(workers=2)
    assert drill.ended() == 2
    assert drill.err().strip().splitlines()[-1] == (
        f"livefire: 2 workers asked for, 1 idle (w0): start more: livefire worker --bus {fleet.address} "
        "--name NAME --target URL"
    )
    assert fleet.target.requests() == [] and not (fleet.folder / "runs" / "workers" / "w0").exists()


def test_a_recording_that_nobody_made_is_told_at_once(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "recording", "nosuch")
    worker = fleet.worker("w0")
    until(lambda: "w0" in fleet.beats(), 15, "it does not stand by", worker.err)
    drill = fleet.drill(workers=1)
    assert drill.ended(30) == 2
    assert drill.err().strip().splitlines()[-1] == f"livefire: {fleet.address}: holds no recording nosuch"


def test_stop_all_needs_no_run_and_ends_the_load_within_a_second(fleet: Fleet) -> None:
    fleet.worker("w0")
    drill = fleet.drill(seconds=40, workers=1)
    fleet.until_load(30, drill)
    before = time.time_ns()
    stop = subprocess.run(
        fleet.command("stop", "--all", "--reason", "lunch"), capture_output=True, text=True, env=environment(),
        timeout=30, check=True,
    )  # fmt: skip
    told_ns = time.time_ns()
    assert stop.stdout == "every run and recorder on the bus: told to stop\n"
    assert drill.ended() == 96, drill.err()
    last_ns = max(request["at_ns"] for request in fleet.target.requests())
    assert before < last_ns, "there was load when it was stopped"
    assert last_ns < told_ns + SECOND
    result = fleet.result(drill)
    assert any("stop was asked for: lunch" in reason for reason in result["reasons"]), result["reasons"]
    assert problems_of(fleet, result["run_id"]) == []


def test_a_stop_of_before_stops_nothing_that_comes_later(fleet: Fleet) -> None:
    fleet.worker("w0")
    subprocess.run(fleet.command("stop", "--all"), capture_output=True, env=environment(), timeout=30, check=True)
    drill = fleet.drill(workers=1, seconds=2)
    assert drill.ended() == 0, drill.err()


def test_a_worker_refuses_other_targets_and_says_so_to_the_drill(fleet: Fleet) -> None:
    """Also where another would have fired: it is the refusal that is told, not that the other was let go."""
    fleet.worker("w0")
    worker = fleet.worker("w1", target="http://127.0.0.1:1")
    drill = fleet.drill(workers=2)
    assert drill.ended() == 96
    told = f"refused: target '{fleet.target.url}' (127.0.0.1:{fleet.target.port}) is not in the allow-list"
    assert told in drill.err() and told in worker.err() and "is gone" not in drill.err()
    assert not [reason for reason in fleet.result(drill)["reasons"] if "is gone" in reason]
    assert fleet.target.requests() == [] and len(worker.err().splitlines()) == 2


def test_a_workers_own_cap_holds_whatever_the_plan_says(fleet: Fleet) -> None:
    fleet.worker("w0", "--max-rate", "20/s")
    drill = fleet.drill(workers=1)
    drill.ended()
    assert "worker w0 fires 20/s at most, as its --max-rate says" in drill.err()
    result = fleet.result(drill)
    assert result["account"]["shed"] > result["account"]["sent"] > 0
    assert len(fleet.target.requests()) <= 20 * 5 + 4
    assert problems_of(fleet, result["run_id"]) == []


def test_a_worker_that_is_killed_ends_the_load_and_loses_no_shot(fleet: Fleet) -> None:
    worker = fleet.worker("w0")
    fleet.worker("w1")
    drill = fleet.drill(seconds=40)
    fleet.until_load(50)
    (feeder,) = children_of(worker.pid)
    os.kill(feeder, signal.SIGKILL)
    assert drill.ended() == 96
    result = fleet.result(drill)
    assert any("worker w0" in reason for reason in result["reasons"]), result["reasons"]
    assert result["account"]["balanced"], result["account"]
    assert problems_of(fleet, result["run_id"]) == []


def test_a_second_worker_of_a_name_is_refused(fleet: Fleet) -> None:
    first = fleet.worker("w0")
    until(lambda: "w0" in fleet.beats(), 15, "it does not stand by", first.err)
    second = fleet.start("again", "worker", "--name", "w0", "--target", fleet.target.url)
    assert second.ended(30) == 2
    assert "another worker of this name is there already" in second.err()
    assert first.process.poll() is None


def test_production_is_seen_beside_the_load_from_a_live_recording_on_the_bus(fleet: Fleet) -> None:
    """What was recorded before the load is no part of it."""
    fleet.worker("w0")
    with contextlib.closing(open_bus(fleet.address, "live")) as bus, contextlib.ExitStack() as stack:
        manifest = Manifest(topics.RAW, f"a{uuid.uuid4().hex[:4]}.0", "live", 1, "tests")
        writer = stack.enter_context(contextlib.closing(bus.writer(topics.RAW, manifest.partition, manifest)))
        writer.write_records([_seen(time.time_ns() - 3600 * SECOND, number) for number in range(500)])
        drill = fleet.drill(seconds=6, workers=1, more="production: {recording: live, servers: [':8080']}\n")
        count = 0
        while drill.process.poll() is None:
            writer.write_records([_seen(time.time_ns(), count)])
            count += 1
            time.sleep(0.05)  # the pace of production
    assert drill.ended() == 0, drill.err()
    done = subprocess.run(
        fleet.command("windows", fleet.result(drill)["run_id"], "--json"), capture_output=True, text=True,
        env=environment(), timeout=60, check=True,
    )  # fmt: skip
    windows = [json.loads(line) for line in done.stdout.splitlines()]
    beside = sum(w["offered"] for w in windows if w["kind"] == "production" and w["route"] == "*")
    assert 20 < beside <= count


def _seen(at_ns: int, number: int) -> Exchange:
    head = b"GET /item HTTP/1.1\r\nHost: shop\r\n\r\n"
    return Exchange(
        id_of("seen", at_ns, number), id_of(0), id_of(0), "10.0.0.1:5", "10.0.0.2:8080", Request(head),
        Response(200, b"HTTP/1.1 200 OK\r\n\r\n"), at_ns, at_ns, at_ns + 1000, at_ns + 1000,
    )  # fmt: skip


# ---------------------------------------------------------------------------- a broker that is away


@pytest.fixture(scope="module")
def broker() -> Iterator[Kafka]:
    with started(Kafka) as kafka:
        yield kafka


@pytest.mark.parametrize("how", ["frozen", "dead"])
def test_a_broker_that_is_away_ends_the_load_by_the_lease_and_loses_nothing(
    tmp_path: Path, target: Target, broker: Kafka, how: str
) -> None:
    cluster = Cluster(broker.address)
    with Fleet(tmp_path, cluster.__enter__(), target) as fleet:
        fleet.publish()
        worker = fleet.worker("w0")
        drill = fleet.drill(seconds=60, workers=1)
        fleet.until_load(50)
        at_ns = time.time_ns()
        broker.freeze() if how == "frozen" else broker.kill()
        until(lambda: "the bus is away" in drill.err(), 15, "the drill says nothing", drill.err)
        last_ns = max(request["at_ns"] for request in target.requests())
        assert at_ns < last_ns + SECOND // 2 and last_ns < at_ns + LEASE_NS + SECOND // 4
        broker.thaw() if how == "frozen" else broker.start()
        assert drill.ended() == 96, drill.err()
        result = fleet.result(drill)
        assert any("the bus is away for" in reason for reason in result["reasons"]), result["reasons"]
        assert result["account"]["balanced"] and result["account"]["unknown"] == 0, result["account"]
        assert problems_of(fleet, result["run_id"]) == []
        assert max(request["at_ns"] for request in target.requests()) == last_ns, "load came back"
        until(lambda: fleet.beats_as("w0", state="idle"), 30, "it does not stand by again", worker.err)


def test_a_broker_that_is_away_for_a_moment_ends_nothing(tmp_path: Path, target: Target, broker: Kafka) -> None:
    with Fleet(tmp_path, Cluster(broker.address).__enter__(), target) as fleet:
        fleet.publish()
        fleet.worker("w0")
        drill = fleet.drill(seconds=10, workers=1, more="")
        fleet.until_load(50)
        broker.freeze()
        time.sleep(1.0)  # the length of the outage is what is tested
        broker.thaw()
        drill.ended()
        result = fleet.result(drill)
        assert not any("away" in reason or "sign of life" in reason for reason in result["reasons"]), result["reasons"]
        assert result["decision"] is None
        assert result["account"]["balanced"] and problems_of(fleet, result["run_id"]) == []
