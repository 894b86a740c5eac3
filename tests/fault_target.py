"""Faults that are no kills of ours: firer or conductor stand still, target dies or hangs, a run's disk is full."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import time
from pathlib import Path

from fault_checks import LEASE_NS, SECOND, Front, Line, run_problems, until
from fault_replay import COPIES, processes, the_run
from http_target import Target
from recordings import even, make_clean

from bus.logfile import FileBus
from replay.book import records_of
from wire import topics
from wire.codec import RecordType

_RATE = 100.0
Result = tuple[bool, bool, list[str]]  # hit, work in flight, problems


def _begin(folder: Path, target: Target, seconds: float, *more: str) -> Front:
    recording = make_clean(folder / "clean.lf", even(int(seconds * _RATE), _RATE, target="/sleep/20"))
    copies = ("--copies", str(COPIES), "--spread", "500ms")
    return Front(folder, "replay", recording, "--target", target.url, *copies, "--json", *more)


def _shots(target: Target) -> int:
    return target.log.read_bytes().count(b"\n")


def _end(folder: Path, target: Target, front: Front, seconds: float) -> tuple[list[str], list[Line]]:
    front.process.wait(60)
    problems, outcomes, summed = run_problems(folder, _run_of(folder), target.requests())
    if summed.planned != COPIES * int(seconds * _RATE) or summed.unknown:
        problems.append(f"nobody was killed: {summed}")
    return problems, outcomes


def stalled_firer(folder: Path, seed: int, seconds: float = 3.0) -> Result:
    """Its shots stay due: those that are too late are shed and counted, and latency tells how late the others were."""
    rng = random.Random(seed)
    with Target(folder) as target, _begin(folder, target, seconds) as front:
        until(lambda: _shots(target) > rng.randrange(1, 150), 30, "no shot was fired", front.err)
        firer = processes(front.pid)["firer"]
        os.kill(firer, signal.SIGSTOP)
        stopped_ns = time.time_ns()
        time.sleep(2)  # how long it stands still
        resumed_ns = time.time_ns()
        os.kill(firer, signal.SIGCONT)
        problems, outcomes = _end(folder, target, front, seconds)
    late = [o for o in outcomes if o["failure"] == "shed_late"]
    waited = [o for o in outcomes if o["status"] and o["sent_ns"] - o["due_ns"] > SECOND // 2]
    within = [o for o in outcomes if stopped_ns < o["sent_ns"] < resumed_ns]
    if len(late) < COPIES * _RATE * 0.8 or len(waited) < COPIES * _RATE * 0.3 or len(within) > 5:
        problems.append(f"2 s of standing still: {len(late)} shed late, {len(waited)} late, {len(within)} sent in it")
    if waited and max(o["done_ns"] - o["due_ns"] for o in waited) < SECOND * 8 // 10:
        problems.append("latency does not tell of the second that the latest of them waited")
    return True, bool(late), problems


def dead_target(folder: Path, seed: int, seconds: float = 3.0) -> Result:
    """kill -9 of the target, and it comes back on its port: failures while it is away, answers afterwards."""
    rng = random.Random(seed)
    with Target(folder) as target, _begin(folder, target, seconds) as front:
        until(lambda: _shots(target) > rng.randrange(1, 300), 30, "no shot was fired", front.err)
        target.kill()
        gone_ns = time.time_ns()
        time.sleep(0.3)  # how long it is away, at least
        target.start()
        back_ns = time.time_ns()
        problems, outcomes = _end(folder, target, front, seconds)
    cut = [o for o in outcomes if o["failure"] == "reset"]
    away = [o for o in outcomes if o["failure"] == "connect"]
    after = [o for o in outcomes if o["status"] and o["sent_ns"] > back_ns]
    strange = {o["failure"] for o in outcomes} - {None, "reset", "connect"}
    answered = [o for o in outcomes if o["status"] and gone_ns < o["sent_ns"] and o["done_ns"] < back_ns - SECOND // 5]
    if not away or not after or strange or answered:
        problems.append(f"{len(away)} refused, {len(after)} answered after it, {len(answered)} while dead, {strange}")
    return True, bool(cut), problems


def hung_target(folder: Path, seed: int, seconds: float = 3.0) -> Result:
    """Nothing answers for 2 s: the ages of open shots tell it, long before the timeout of 10 s."""
    rng = random.Random(seed)
    with Target(folder) as target, _begin(folder, target, seconds) as front:
        until(lambda: _shots(target) > rng.randrange(1, 150), 30, "no shot was fired", front.err)
        os.kill(target.process.pid, signal.SIGSTOP)
        hung_ns = time.time_ns()
        time.sleep(2)  # how long it hangs
        os.kill(target.process.pid, signal.SIGCONT)
        back_ns = time.time_ns()
        problems, outcomes = _end(folder, target, front, seconds)
    with FileBus(_run_of(folder)).reader(topics.BEATS, "w0") as reader:
        beats = list(records_of(reader, RecordType.BEAT))
    told = [beat for beat in beats if beat.at_ns < back_ns and beat.oldest_open_ns > SECOND]
    if not told or told[0].at_ns > hung_ns + SECOND * 8 // 5 or told[-1].open_shots < _RATE:
        problems.append(f"{len(told)} beats tell of a shot that is open for a second")
    if failed := [o for o in outcomes if o["failure"]]:
        problems.append(f"it came back before the timeout, and yet: {failed[:2]}")
    return True, bool(told), problems


def stalled_conductor(folder: Path, seed: int, seconds: float = 8.0) -> Result:
    """It stands still for longer than its lease: load ends by then, and does not begin again."""
    rng = random.Random(seed)
    with Target(folder) as target, _begin(folder, target, seconds) as front:
        until(lambda: _shots(target) > rng.randrange(1, 150), 30, "no shot was fired", front.err)
        os.kill(front.pid, signal.SIGSTOP)
        stopped_ns = time.time_ns()
        time.sleep(4)  # how long it stands still
        os.kill(front.pid, signal.SIGCONT)
        front.process.wait(60)
        requests = target.requests()
    problems, outcomes, summed = run_problems(folder, _run_of(folder), requests, stopped_ns + LEASE_NS)
    result = json.loads(front.out() or "{}")
    if "lease" not in result.get("reason", "") or not summed.shed:
        problems.append(f"it does not say that its lease ran out: {result}; {summed}")
    if max(o["sent_ns"] for o in outcomes) < stopped_ns + LEASE_NS - SECOND:
        problems.append("load ended long before the lease")
    return True, bool(summed.shed), problems


def full_run_disk(folder: Path, seed: int, seconds: float = 3.0) -> Result:
    """No more claims or outcomes can be written: load ends, and what was under way is unknown, not sent again."""
    rng = random.Random(seed)
    with Target(folder) as target, _begin(folder, target, seconds) as front:
        until(lambda: _shots(target) > rng.randrange(1, 150), 30, "no shot was fired", front.err)
        feeder = processes(front.pid)["feeder"]
        sizes = [path.stat().st_size for path in _run_of(folder).glob("*-w0.lf")]
        limit = max(sizes) + rng.randrange(4_000)
        _, most = resource.prlimit(feeder, resource.RLIMIT_FSIZE)
        resource.prlimit(feeder, resource.RLIMIT_FSIZE, (limit, most))
        front.process.wait(60)
        requests = target.requests()
    problems, _, summed = run_problems(folder, _run_of(folder), requests)
    if "no room" not in front.err():
        problems.append(f"it does not say why: {front.err()[-500:]}")
    return True, summed.unknown > 0, problems


def _run_of(folder: Path) -> Path:
    run_dir = the_run(folder)
    assert run_dir is not None
    return run_dir
