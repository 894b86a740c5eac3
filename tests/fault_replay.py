"""Kills one process of a running replay or drill at a random instant: the real commands, the target's log as witness."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fault_checks import LEASE_NS, SECOND, Front, Line, alive, children_of, make_keys, run_problems, shot_of, until
from http_target import Target
from recordings import even, make_clean

COPIES = 3


class Case(NamedTuple):
    """What is killed, and how."""

    drill: bool  # `livefire drill`, else `livefire replay`
    victim: str  # front, feeder, firer
    held: bool = False  # another process keeps the worker's stdin open: only the lease can end the load


CASES = {
    "firer": Case(False, "firer"),
    "feeder": Case(False, "feeder"),
    "conductor": Case(False, "front"),
    "conductor, lease alone": Case(False, "front", held=True),
    "controller": Case(True, "front"),
    "controller, lease alone": Case(True, "front", held=True),
}


class Found(NamedTuple):
    """What one kill came to."""

    killed: bool  # False: it was over before the kill
    open_shots: int  # received by the target and not answered when the process was killed
    planned: int
    unknown: int
    received: int
    last_ns: int | None  # from the kill to the last request; None: load went on, as it should
    problems: list[str]


def recording_for(folder: Path, case: Case, count: int) -> Path:
    """`count` requests a lap; with lease alone the load lasts longer than the lease."""
    rate = 100.0 if case.held else 200.0
    return make_clean(folder / "clean.lf", even(count, rate, target="/sleep/20"))


def arguments(folder: Path, target: Target, case: Case) -> list[str | Path]:
    recording = folder / "clean.lf"
    if not case.drill:
        return ["replay", recording, "--target", target.url, "--copies", str(COPIES), "--spread", "500ms", "--json"]
    plan = folder / "plan.yaml"
    plan.write_text(
        f"recording: {recording}\ntarget: {target.url}\nspread: 500ms\nsteps: [{{load: 1x, for: 60s}}]\n"
        "thresholds: [p50 < 10s over 1s]\ncaps: {rate: 2000/s, open: 500}\n"
    )
    make_keys(folder)
    return ["drill", plan, "--disposable-target"]


def the_run(folder: Path) -> Path | None:
    runs = [path for path in (folder / "runs").glob("*") if path.is_dir()]
    return runs[0] if runs else None


def processes(front: int) -> dict[str, int]:
    """Those that are there: front, feeder (its child), firer (the feeder's child)."""
    found = {"front": front}
    for name, parent in (("feeder", "front"), ("firer", "feeder")):
        if parent in found and (children := children_of(found[parent])):
            found[name] = children[0]
    return found


@contextlib.contextmanager
def held_open(pid: int | None) -> Iterator[None]:
    """A second writer of a process's stdin: it does not see that the first one is gone."""
    fd = None if pid is None else os.open(f"/proc/{pid}/fd/0", os.O_WRONLY)
    try:
        yield
    finally:
        if fd is not None:
            os.close(fd)


def fault(folder: Path, case: Case, seed: int, count: int = 200) -> Found:
    """One run, one kill. `count`: how many requests the recording has."""
    rng = random.Random(seed)
    recording_for(folder, case, 4 * count if case.held else count)
    with Target(folder) as target, Front(folder, *arguments(folder, target, case)) as front:
        until(lambda: "firer" in processes(front.pid), 30, "no worker was started", front.err)
        if case.held:
            until(lambda: target.log.stat().st_size, 20, "no shot was fired")
            time.sleep(rng.uniform(0, 2.0))  # the instant is what is random here, and in what follows
        else:
            time.sleep(rng.uniform(0, 3.5 if case.drill else 0.8 + count / 200))
        pids = processes(front.pid)
        with held_open(pids.get("feeder") if case.held else None):
            killed = _kill(pids.get(case.victim))
            at_ns = time.time_ns()
            everyone = [*pids.values()]
            try:
                front.process.wait(60)
                until(lambda: not any(map(alive, everyone)), 15, f"processes of {pids} were left behind")
            finally:
                for pid in everyone[1:]:
                    if alive(pid):
                        os.kill(pid, signal.SIGKILL)
        requests = target.requests()
    return _judged(folder, case, count, at_ns, killed, requests, front)


def _kill(pid: int | None) -> bool:
    if pid is None or not alive(pid):  # the run was over by then, and this proves nothing
        return False
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _judged(
    folder: Path, case: Case, count: int, at_ns: int, killed: bool, requests: list[Line], front: Front
) -> Found:
    run_dir = the_run(folder)
    if run_dir is None:
        return Found(killed, 0, 0, 0, 0, None, ["there is no run"])
    ends = killed and case.victim == "front"
    problems, outcomes, summed = run_problems(folder, run_dir, requests, at_ns + LEASE_NS if ends else None)
    last_ns = max((request["at_ns"] - at_ns for request in requests), default=0) if ends else None
    if ends and case.held and last_ns is not None and last_ns < LEASE_NS - SECOND:
        problems.append(f"load ended {last_ns / 1e9:.2f} s after the kill: it was not the lease that ended it")
    if not ends and not case.drill:
        result = json.loads(front.out() or "{}")
        if result.get("planned") != COPIES * count or not result.get("balanced"):
            problems.append(f"{result.get('planned')} of {COPIES * count} planned: {result}; {front.err()[-300:]}")
    # By the stamps of both sides, not by when this process got round to reading.
    begun = {request["fields"]["livefire-shot"] for request in requests if request["at_ns"] <= at_ns}
    answered = {shot_of(o) for o in outcomes if o["status"] and o["done_ns"] <= at_ns}
    return Found(killed, len(begun - answered), summed.planned, summed.unknown, len(requests), last_ns, problems)
