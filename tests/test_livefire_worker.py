"""A worker that stands by: which plans it takes, and within which bounds."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fault_checks import environment, make_keys, until
from fleet import Fleet
from http_target import Target

from bus.address import open_bus
from bus.topic import TopicReader
from replay.clock import clock_of
from replay.hearing import FLEET
from replay.settings import SECOND_NS, WorkerSettings
from replay.standing import Standing, StandingSettings
from wire import topics
from wire.codec import RecordType
from wire.config import ConfigError
from wire.ids import ulid
from wire.records import Action, Control, Manifest

RUN = "01M7Y0G536XVSYDKWW6TW8C4BN"


def settings(folder: Path, **changed: Any) -> StandingSettings:
    given: dict[str, Any] = {
        "bus": str(folder / "bus"), "name": "w0", "targets": ("http://127.0.0.1:8080",), "folder": folder / "workers",
        "key_id": "k1", "key_hex": "11" * 32, **changed,
    }  # fmt: skip
    return StandingSettings(**given)


def plan(**changed: Any) -> WorkerSettings:
    given: dict[str, Any] = {
        "run_id": RUN, "run_dir": "", "worker": "w0", "index": 0, "workers": 1, "recording": "", "fetch": "monday",
        "target": "http://127.0.0.1:8080", "pinned": "127.0.0.1", "max_rate": 500.0, "max_open": 100, "key_id": "k1",
        "key_hex": "", **changed,
    }  # fmt: skip
    return WorkerSettings(**given)


class Bench:
    """A worker whose clock the test holds, and that starts nothing."""

    def __init__(self, folder: Path, **changed: Any) -> None:
        self.now = time.time_ns()
        self.told: list[str] = []
        self.started: list[WorkerSettings] = []
        self.worker = Standing(settings(folder, **changed), lambda: self.now, self.told.append)
        self.worker._start = self.started.append  # type: ignore[method-assign]
        self.bus = open_bus(str(folder / "bus"), FLEET)
        self.count = 0

    def hear(self, asked: WorkerSettings, *, age_ns: int = 0, data: bytes | None = None) -> None:
        self.count += 1
        name = f"plan-{self.count}"
        issued = self.now - age_ns
        control = Control(
            asked.run_id, 1, Action.PLAN, issued, issued_ns=issued, until_ns=issued + 20 * SECOND_NS,
            plan=msgspec.json.encode(asked) if data is None else data,
        )  # fmt: skip
        writer = self.bus.writer(topics.CONTROL, name, Manifest(topics.CONTROL, name, FLEET, 1, "tests"))
        writer.write_records((control,))
        writer.close()
        self.worker._turn()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    made.worker._turn()
    yield made
    made.worker.run(lambda: True)


def test_a_plan_inside_the_bounds_is_taken_with_this_machines_keys_and_folder(bench: Bench, tmp_path: Path) -> None:
    bench.hear(plan())
    (taken,) = bench.started
    assert (taken.key_hex, taken.bus, taken.fetch) == ("11" * 32, str(tmp_path / "bus"), "monday")
    assert taken.recording == str(tmp_path / "workers" / f"{RUN}.lf")
    assert (taken.max_rate, taken.max_open, taken.pinned) == (500.0, 100, "127.0.0.1")


@pytest.mark.parametrize(
    ("changed", "age_s", "told"),
    [
        ({"target": "http://127.0.0.1:8081"}, 0, "is not in the allow-list (http://127.0.0.1:8080)"),
        ({"target": "http://169.254.169.254:8080", "pinned": ""}, 0, "link-local (metadata services live there)"),
        ({"pinned": "10.9.9.9"}, 0, "is 127.0.0.1 on worker w0, and 10.9.9.9 to the drill"),
        ({"key_id": "k2"}, 0, "it signs with marker key k2, worker w0 has k1: give both one key file"),
        ({"accounts": "users.csv"}, 0, "start worker w0 with --accounts FILE"),
        ({"lease_ns": 3600 * SECOND_NS}, 0, "its lease_ns is 3.6e+12: 1 to 3e+10"),
        ({"workers": 10**12}, 0, "its workers is 1e+12: 1 to 10000"),
        ({"index": 1}, 0, "its index is 1: 0 to 0"),
        ({"marker_lifetime_s": 86_400}, 0, "its marker_lifetime_s is 86400: 1 to 3600"),
        ({"speed": 0.0}, 0, "its speed is 0: 1e-06 to 1e+06"),
        ({}, 25, "the plan is stale since 5 s (do the machines' clocks agree?)"),
    ],
)
def test_what_is_refused_is_one_line_here_and_in_the_beat(
    bench: Bench, changed: dict[str, Any], age_s: int, told: str
) -> None:
    bench.hear(plan(**changed), age_ns=age_s * SECOND_NS)
    assert bench.started == []
    (line,) = bench.told
    assert line.startswith(f"run {RUN}: refused: ") and line.endswith(told)
    assert bench.worker._reason.endswith(told) and bench.worker._run_id == RUN


def test_a_run_id_that_leads_out_of_the_folder_is_refused(bench: Bench, tmp_path: Path) -> None:
    """Files are named by it, and removed in the end."""
    (tmp_path / "precious.lf").write_text("not a recording of ours")
    bench.hear(plan(run_id="../precious"))
    assert bench.started == [] and bench.told == ["run ../precious: refused: '../precious' is no id of a run"]
    assert (tmp_path / "precious.lf").read_text() == "not a recording of ours"
    bench.hear(plan())
    assert len(bench.started) == 1  # negative control


def test_a_machine_that_cannot_start_a_run_refuses_it_and_stands_by_on(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    del bench.worker._start  # the real one
    bench.worker._turn()
    (tmp_path / "workers").write_text("in the way of the folder")
    bench.hear(plan())
    assert "refused: its process cannot be started" in bench.told[0] and bench.worker._child is None
    (tmp_path / "workers").unlink()
    bench.hear(plan())
    assert bench.worker._child is not None
    bench.worker.run(lambda: True)


def test_a_run_that_still_fetches_leaves_when_it_is_let_go(tmp_path: Path) -> None:
    """The recording never becomes whole."""
    taken = msgspec.structs.replace(
        plan(), bus=str(tmp_path / "bus"), key_hex="11" * 32, recording=str(tmp_path / "here.lf")
    )
    child = subprocess.Popen(
        (sys.executable, "-m", "replay.worker"), stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdin is not None and child.stderr is not None
    child.stdin.write(msgspec.json.encode(taken).decode() + "\n")
    child.stdin.flush()
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(1.5)  # negative control: it waits
    child.stdin.close()
    assert child.wait(10) == 1
    assert child.stderr.read().strip() == "told to leave while the recording was fetched"
    child.stderr.close()


def test_what_is_for_another_or_unreadable_is_passed_over(bench: Bench) -> None:
    bench.hear(plan(worker="w1"))
    assert bench.told == [] and bench.started == []
    bench.hear(plan(), data=b'{"run_id": "x", "from_the_future": 1}')
    assert bench.started == [] and "cannot be read" in bench.told[0]
    bench.hear(plan())
    assert len(bench.started) == 1


def test_own_caps_are_upper_bounds(tmp_path: Path) -> None:
    bench = Bench(tmp_path, max_rate=50.0, max_open=7)
    bench.worker._turn()
    bench.hear(plan())
    bench.hear(plan(max_rate=20.0, max_open=3))
    assert [(taken.max_rate, taken.max_open) for taken in bench.started] == [(50.0, 7), (20.0, 3)]
    bench.worker.run(lambda: True)


def test_a_plan_of_before_it_stood_by_is_not_taken(tmp_path: Path) -> None:
    before = Bench(tmp_path, name="w1")
    before.now -= SECOND_NS
    before.hear(plan())
    after = Bench(tmp_path)
    after.worker._turn()
    assert after.started == [] and after.told == []
    for bench in (before, after):
        bench.worker.run(lambda: True)


def test_a_folder_does_not_grow_with_the_months_that_a_worker_stands_by(bench: Bench) -> None:
    long_ago = bench.now - 3 * 86_400 * SECOND_NS
    for at_ns in (long_ago, bench.now):
        said = f"stop-{ulid(at_ns)}"
        bench.bus.writer(topics.CONTROL, said, Manifest(topics.CONTROL, said, FLEET, 1, "tests")).close()
    neighbour = f"w0-b:{ulid(long_ago)}"
    bench.bus.writer(topics.BEATS, neighbour, Manifest(topics.BEATS, neighbour, FLEET, 1, "tests")).close()
    drill = TopicReader(bench.bus, topics.BEATS)
    heard = 0
    for _ in range(40):
        for _ in range(3):
            bench.now += 1200 * SECOND_NS
            bench.worker._turn()
        heard += sum(batch.header.type is RecordType.BEAT for _, batch in drill.batches())
    there = bench.bus.partitions(topics.BEATS)
    assert len(there) == 4 and there[0] == "w0" and neighbour in there  # its name, the last hour and this one
    assert bench.bus.partitions(topics.CONTROL) == [said]
    assert heard == 121  # who listens misses none
    drill.close()


@pytest.mark.parametrize("name", ["", "a b", "../x", "x" * 64])
def test_names_that_are_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="--name"):
        Standing(settings(tmp_path, name=name), clock_of(0), print)


def test_no_default_target(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs to be told where it may fire"):
        Standing(settings(tmp_path, targets=()), clock_of(0), print)


def test_without_a_bus_or_a_target_it_says_what_is_missing(tmp_path: Path) -> None:
    make_keys(tmp_path)

    def said(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            (sys.executable, "-m", "livefire", "--keys", str(tmp_path / "keys.json"), "worker", *arguments),
            capture_output=True, text=True, cwd=tmp_path, env=environment(), timeout=30, check=False,
        )  # fmt: skip
        return done.returncode, done.stderr.strip()

    assert said("--target", "http://t:1") == (
        2, "livefire: a worker stands by on a bus: livefire worker --bus kafka://host:port ..."
    )  # fmt: skip
    code, line = said("--bus", str(tmp_path))
    assert code == 2 and "--target" in line
    code, line = said("--bus", str(tmp_path), "--target", "https://t")
    assert code == 2 and "https is not supported" in line


@pytest.mark.parametrize("how", ["stdin", "terminate"])
def test_it_leaves_when_it_is_let_go(tmp_path: Path, how: str) -> None:
    with Target(tmp_path) as target, Fleet(tmp_path, str(tmp_path / "bus"), target) as fleet:
        worker = fleet.worker("w0")
        until(lambda: "w0" in fleet.beats(), 20, "it does not stand by", worker.err)
        if how == "stdin":
            worker.let_go()
        else:
            worker.process.terminate()
        assert worker.ended(30) == 0
        again = fleet.worker("w0")  # its name is free
        until(lambda: fleet.beats_as("w0", pid=again.pid), 20, "it does not stand by", again.err)
