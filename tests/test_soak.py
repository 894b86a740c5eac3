"""Each fault of `soak.py` strikes once (by LIVEFIRE_FAULTS more often); and the checks see what they look for."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fault_panes
import msgspec
import pytest
import soak
from fault_checks import (
    LEASE_NS,
    SECOND,
    SLACK_NS,
    Front,
    Line,
    Tally,
    account_problems,
    file_problems,
    run_problems,
    told,
    witness_problems,
)
from fault_record import held_problems, recorded_until, recording_problems
from fault_record_clock import APART_NS, step_problems, time_problems
from fault_record_disk import link_problems, names_in, ring_problems, segments_problems, torn_problems
from fault_replay import the_run
from http_target import Target
from recordings import even, make_clean

from replay import summary

SEED = random.SystemRandom().randrange(1 << 30)
TIMES = int(os.environ.get("LIVEFIRE_FAULTS", "1"))


def times(name: str) -> int:
    """A recorder is killed so often; of the other faults, which take longer, three in the place of five are tried."""
    return TIMES if name.startswith("kill -9: recorder") else -(-TIMES * 3 // 5)


@pytest.fixture(scope="module")
def tried(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[subprocess.CompletedProcess[str]]]]:
    """All faults, four at a time: they mostly wait. Each in a process of its own, as what one does to a broker must not
    be heard by another's driver."""

    def try_it(name: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, soak.__file__, "--only", name, "--count", str(times(name)), "--seed", str(SEED)]
        return subprocess.run(command, capture_output=True, text=True, timeout=1500)

    asked = {item.callspec.params["name"] for item in request.session.items if hasattr(item, "callspec")
             and getattr(item, "originalname", "") == "test_fault"}  # fmt: skip
    # What starts servers again and again takes longest, so it begins first.
    slow = ("Elasticsearch", "ClickHouse", "fleet", "broker")
    order = sorted(asked, key=lambda name: [word in name for word in slow], reverse=True)
    with ThreadPoolExecutor(4) as pool:
        yield {name: pool.submit(try_it, name) for name in order}


def _id(name: str) -> str:
    """Without blanks: what reads a list of failed tests often ends a name at the first."""
    return re.sub(r"\W+", "_", name)


@pytest.mark.parametrize("name", soak.FAULTS, ids=_id)
def test_fault(name: str, tried: dict[str, Future[subprocess.CompletedProcess[str]]]) -> None:
    done = tried[name].result()
    print(done.stdout)
    (row,) = [line for line in done.stdout.splitlines() if line.startswith(f"| {name} |")] or [done.stderr[-3000:]]
    if "| skipped: " in row:
        pytest.skip(row.partition("| skipped: ")[2].partition(" |")[0])
    problems = [line.strip() for line in done.stdout.splitlines() if line.startswith("    ")]
    said = "; ".join(problems)  # one line: it stands in the summary, too
    assert done.returncode == 0 and row.endswith("| none |"), f"{said}\n{done.stdout}{done.stderr[-3000:]}"


# ---------------------------------------------------------------------------- the controls


class Whole:
    """A replay that nothing went wrong with, and all that is said of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        recording = make_clean(folder / "clean.lf", even(60, 300.0))
        with Target(folder) as target:
            with Front(folder, "replay", recording, "--target", target.url) as front:
                assert front.process.wait(30) == 0, front.err()
            self.requests = target.requests()
        found = the_run(folder)
        assert found is not None
        self.run_dir = found
        self.problems, self.outcomes, self.summed = run_problems(folder, found, self.requests)
        self.windows, _ = told(folder, "windows", found.name, "--json", "--every", "1s")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole(tmp_path_factory.mktemp("whole"))


def test_the_witness_tells_what_does_not_fit(whole: Whole) -> None:
    assert whole.problems == [] and len(whole.requests) == len(whole.outcomes) == 60
    last = max(request["at_ns"] for request in whole.requests)

    def seen(requests: list[Line], outcomes: list[Line] = whole.outcomes, limit: int | None = None) -> str:
        return " ".join(witness_problems(requests, outcomes, limit))

    first = whole.requests[0]
    other = {**first, "fields": {**first["fields"], "livefire-shot": "00.0.0"}}
    assert "fired twice" in seen([*whole.requests, first])
    assert "not in the books" in seen([*whole.requests, other])
    assert "never received" in seen(whole.requests[1:])
    assert "not in the books" in seen(whole.requests, whole.outcomes[1:])
    assert "never sent" in seen(whole.requests, [{**whole.outcomes[0], "failure": "shed_stop"}, *whole.outcomes[1:]])
    killed = last - LEASE_NS
    assert seen(whole.requests, limit=killed + LEASE_NS) == ""
    late = {**other, "at_ns": last + SLACK_NS + 1, "late_ns": 0}
    assert "1 s after" not in seen([*whole.requests, late]) and "had to end" in seen(
        [*whole.requests, late], limit=killed + LEASE_NS
    )
    waited = {**late, "late_ns": 2}  # until the target got round to reading it
    assert "had to end" not in seen([*whole.requests, waited], limit=killed + LEASE_NS)


def test_the_accounts_tell_what_is_missing_or_too_much(whole: Whole) -> None:
    def counted(**changed: Any) -> str:
        asked = {"outcomes": whole.outcomes, "windows": whole.windows, "summed": whole.summed, **changed}
        return " ".join(account_problems(**asked))

    assert counted() == ""
    assert "planned: 60 in the account, 59 in the outcomes" in counted(outcomes=whole.outcomes[1:])
    assert "more than one outcome" in counted(outcomes=[*whole.outcomes, whole.outcomes[0]])
    assert "in the windows" in counted(
        windows=[w for w in whole.windows if w["start_ns"] != whole.windows[0]["start_ns"]]
    )
    assert "unknown" in counted(outcomes=[{**whole.outcomes[0], "failure": "unknown"}, *whole.outcomes[1:]])
    assert "not balance" in counted(summed=msgspec.structs.replace(whole.summed, balanced=False))


def test_a_file_without_its_end_is_told(whole: Whole, tmp_path: Path) -> None:
    copied = tmp_path / whole.run_dir.name
    copied.mkdir()
    for path in whole.run_dir.glob("*.lf"):
        (copied / path.name).write_bytes(path.read_bytes())
    assert file_problems(copied) == []
    beats = copied / "beats-w0.lf"
    beats.write_bytes(beats.read_bytes()[:-20])
    assert "not whole" in " ".join(file_problems(copied))
    outcomes = copied / "outcomes-w0.lf"
    data = bytearray(outcomes.read_bytes())
    data[len(data) // 2] ^= 0xFF
    outcomes.write_bytes(data)
    assert "outcomes-w0 is not whole" in " ".join(file_problems(copied))
    assert not summary.read(copied)[0].balanced


def test_a_recording_that_lost_or_made_up_something_is_told() -> None:
    served = [{"path": f"/{n}", "sent_ns": n, "at_ns": n, "done_ns": n} for n in range(10)]
    exchanges = [{"target": f"/{number}", "status": 200} for number in range(10)]
    ledgers = {"messages": {"emitted": 20}}

    def seen(found: list[Line] = exchanges, *, balanced: bool = True, emitted: int = 20) -> str:
        account = {"balanced": balanced, "ledgers": {"messages": {**ledgers["messages"], "emitted": emitted}}}
        return " ".join(recording_problems(account, found, served, [(2, 7)]))

    assert seen() == ""
    assert seen(exchanges[2:8], emitted=12) == ""
    assert "1 of 6 served while it recorded are missing: ['/2']" in seen(exchanges[3:], emitted=14)
    served[2]["sent_ns"] = 1  # read while it recorded, and on the wire before
    assert seen(exchanges[3:], emitted=14) == ""
    assert "1 of 5 served while it recorded are missing: ['/7']" in seen(exchanges[:7], emitted=14)
    served[7]["done_ns"] = 8  # read while it recorded, and answered when it was gone
    assert seen(exchanges[:7], emitted=14) == ""
    assert "recorded twice" in seen([*exchanges, exchanges[0]], emitted=22)
    assert "never served" in seen([*exchanges, {"target": "/x", "status": 200}], emitted=22)
    assert "20 messages in the file" in seen(emitted=21)
    assert "not balance" in seen(balanced=False)


def test_a_killed_recorder_that_lost_more_than_what_came_last_is_told() -> None:
    served = [{"path": f"/{n}", "sent_ns": n * SECOND, "at_ns": 0, "done_ns": n * SECOND + 5} for n in range(10)]
    life = (2 * SECOND, 7 * SECOND)  # of /2 to /6: what was answered after the kill is not its own

    def there(*numbers: int) -> tuple[int, int]:
        return recorded_until(life, [{"target": f"/{number}", "status": 200} for number in numbers], served)

    assert there(*range(10)) == (6 * SECOND, 0)
    assert there(2, 3, 4, 8, 9) == (4 * SECOND, 2 * SECOND)
    assert there(0, 1, 9) == (2 * SECOND, 4 * SECOND + 5)  # nothing of it: all the time that it lived
    assert recorded_until((20 * SECOND, 21 * SECOND), [], served) == (20 * SECOND, 0)  # nobody asked
    gap = [{"target": f"/{number}", "status": 200} for number in (2, 4, 5)]
    account = {"balanced": True, "ledgers": {"messages": {"emitted": 6}}}
    until_ns, _ = recorded_until(life, gap, served)
    assert "missing: ['/3']" in recording_problems(account, gap, served, [(life[0], until_ns)])[0]

    assert held_problems([SECOND // 3] * 5) == [] == held_problems([])
    assert held_problems([2 * SECOND, 2 * SECOND, 1, 1, 1]) == []
    assert "of 5 killed recorders 3 have" in held_problems([2 * SECOND] * 3 + [1, 1])[0]
    assert "of 5 killed recorders 1 have" in held_problems([9 * SECOND, 1, 1, 1, 1])[0]


def test_times_that_followed_the_clock_and_steps_that_nobody_told_are_told() -> None:
    served = [{"path": "/1", "at_ns": 5 * 10**9}, {"path": "/2", "at_ns": 6 * 10**9}]
    exchanges = [{"target": line["path"], "request_start_ns": line["at_ns"] - 10**6} for line in served]
    assert time_problems(exchanges, served) == []
    set_back = {**exchanges[1], "request_start_ns": 6 * 10**9 - APART_NS - 1}
    assert "1 of 2 were not recorded when" in time_problems([exchanges[0], set_back], served)[0]
    steps = [10**12, -(10**9)]
    assert step_problems({"clock_steps": 2, "clock_step_ns": sum(steps)}, steps) == []
    assert step_problems({"clock_steps": 1, "clock_step_ns": sum(steps)}, steps)
    assert step_problems({"clock_steps": 2, "clock_step_ns": steps[0]}, steps)
    assert step_problems({}, steps)


def test_what_a_torn_write_or_a_full_ring_lost_is_told(whole: Whole, tmp_path: Path) -> None:
    assert torn_problems({"/a"}, {"/a", "/b"}, 5, 0) == []
    assert "1 were in the file before the kill" in torn_problems({"/a", "/c"}, {"/a"}, 0, 0)[0]
    assert "bytes of half a frame are left" in torn_problems(set(), set(), 5, 5)[0]
    copied = tmp_path / "outcomes.lf"
    copied.write_bytes((whole.run_dir / "outcomes-w0.lf").read_bytes())
    assert names_in(copied)[1] == 0
    copied.write_bytes(copied.read_bytes()[:-20])
    assert names_in(copied)[1] > 0
    served = ["/1", "/2", "/3", "/4"]
    assert ring_problems(served, ["/4", "/3"], 0) == []
    assert "not the newest" in ring_problems(served, ["/4", "/2"], 0)[0]
    assert "nothing had to go" in ring_problems(served, served, 0)[0]
    assert "2 messages were shed" in ring_problems(served, ["/3", "/4"], 2)[0]
    assert segments_problems(9, 6, 6) == []
    assert "9 served, 6 recorded, 4 messages shed" in segments_problems(9, 6, 4)[0]
    assert "the disk was not full" in segments_problems(9, 9, 0)[0]
    second = 10**9
    assert link_problems({"down.lo": 2, "down_ns.lo": 3 * second}, 2, 3 * second) == []
    assert link_problems({"down.lo": 1, "down_ns.lo": 3 * second}, 2, 3 * second)
    assert link_problems({"down.lo": 2, "down_ns.lo": 9 * second}, 2, 3 * second)


def test_windows_that_count_otherwise_are_told() -> None:
    fates = [fault_panes.Fate(1, ""), fault_panes.Fate(1, "unknown"), fault_panes.Fate(2, "shed_late")]
    windows = [
        {"route": "*", "start_ns": 10**9, "offered": 2, "unknown": 1, "shed": 0},
        {"route": "*", "start_ns": 2 * 10**9, "offered": 1, "unknown": 0, "shed": 1},
    ]
    assert fault_panes.pane_problems(windows, fates) == []
    assert len(fault_panes.pane_problems(windows[1:], fates)) == 2
    assert len(fault_panes.pane_problems(windows, fates[:2])) == 2


@pytest.mark.parametrize(
    ("tally", "says"),
    [
        (Tally(wanted=9, hits=9, in_flight=3), ""),
        (Tally(wanted=9, hits=9, in_flight=2), "only 2 of 9 hit work in flight"),
        (Tally(wanted=9, hits=8, in_flight=8), "only 8 of 9 took place"),
        (Tally(wanted=1, hits=1, in_flight=1, problems=["fired twice"]), "fired twice"),
        (Tally(skipped="not permitted"), ""),
        (Tally(), "only 0 of 0 took place"),
    ],
)
def test_the_command_fails_on_any_problem(
    tally: Tally, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(soak, "FAULTS", {"one": lambda count, seed: asked.append((count, seed)) or tally})
    monkeypatch.setattr("sys.argv", ["soak.py", "--count", "9", "--seed", "77", "--write", str(tmp_path / "soak.md")])
    assert soak.main() == (1 if says else 0)
    out, page = capsys.readouterr().out, (tmp_path / "soak.md").read_text()
    assert asked == [(9, 77)] and "seed 77" in out and "| 77 |" in page
    assert says in out and ("| one |" in page)
    assert json.dumps(tally.skipped)[1:-1] in page


def test_what_was_not_tried_now_stays_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "soak.md"
    monkeypatch.setattr(
        soak, "FAULTS", {name: lambda count, seed: Tally(count, count, count) for name in ("one", "two")}
    )
    for arguments in (["--seed", "1"], ["--seed", "2", "--only", "two"]):
        monkeypatch.setattr("sys.argv", ["soak.py", "--count", "3", "--write", str(path), *arguments])
        assert soak.main() == 0
    rows = [line.rsplit(" | ", 1) for line in path.read_text().splitlines() if line.startswith(("| one", "| two"))]
    assert [(row[0].split(" | ")[0], row[1]) for row in rows] == [("| one", "1 |"), ("| two", "2 |")]
