"""Sets the wall clock under a `livefire record` that reads packets, for that process alone (`stepped_clock.py`).

The witness is the target's own log, whose clock is the true one: what was served is recorded once, at the time at which
it was served, and the account tells of each step.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import stepped_clock
from fault_checks import SECOND, Front, Line, until
from fault_record import Clients, arguments, read, ready, recording_problems
from http_target import Target

from capture.source_ring import explained, open_error
from capture.steps import LEAST_NS

_AHEAD_NS = SECOND * 3 // 10  # from the line that says it to the step: longer than the recorder looks away
_SETTLED_NS = SECOND // 2
#: How far a recorded time may be from the target's: a request is logged when it was read, on a busy machine.
APART_NS = SECOND


def step(rng: random.Random) -> int:
    """By how much, ns: from what no one would see to days, forward or back."""
    size = round(10 ** rng.uniform(7.0, 14.4))  # 10 ms to 3 days
    return rng.choice((-1, 1)) * size


def time_problems(exchanges: Sequence[Line], served: Sequence[Line]) -> list[str]:
    """Recorded times, beside the target's."""
    at_ns = {request["path"]: request["at_ns"] for request in served}
    apart = {e["target"]: e["request_start_ns"] - at_ns[e["target"]] for e in exchanges if e["target"] in at_ns}
    if wrong := [f"{target} by {ns / 1e9:.3f} s" for target, ns in apart.items() if abs(ns) > APART_NS]:
        return [f"{len(wrong)} of {len(apart)} were not recorded when they were served: {wrong[:3]}"]
    return []


def step_problems(notes: dict[str, int], steps: Sequence[int]) -> list[str]:
    """What the account tells of the steps (ns)."""
    found, total = notes.get("clock_steps", 0), notes.get("clock_step_ns", 0)
    if found != len(steps) or abs(total - sum(steps)) > LEAST_NS * (1 + len(steps)):
        return [f"the account tells of {found} steps, {total} ns together; there were {list(steps)}"]
    return []


def clock(folder: Path, seed: int) -> tuple[bool, bool, list[str]]:
    """One to three steps while clients ask."""
    rng, file, said = random.Random(seed), folder / "live.lf", folder / "steps"
    said.touch()
    steps: list[int] = []
    problems: list[str] = []
    with Target(folder) as target:
        asked = arguments("ring", file, target.port, 0)
        started = [sys.executable, stepped_clock.__file__, said]
        with Clients(target.port) as clients, Front(folder, *asked, program=started) as recorder:
            begin_ns = ready(recorder)
            for _ in range(rng.randint(1, 3)):
                at_ns = time.time_ns() + _AHEAD_NS + round(rng.uniform(0, 0.3) * SECOND)
                steps.append(step(rng))
                with said.open("a") as out:
                    out.write(f"{at_ns} {steps[-1]}\n")
                until(lambda at=at_ns: time.time_ns() > at, 5, "the clock stands still")
                # Steps that follow each other within a block are one: what is tried is each by itself.
                until(lambda at=at_ns: _served_after(target, at + _SETTLED_NS), 20, "nobody is served", recorder.err)
            end_ns = time.time_ns()
            recorder.end()
        if recorder.process.returncode:
            problems.append(f"exit code {recorder.process.returncode}: {recorder.err()[-300:]}")
        requests = target.requests()
    account, exchanges = read(folder, file, problems)
    if account:
        served = clients.told(requests)
        problems += recording_problems(account, exchanges, served, [(begin_ns, end_ns - SECOND)])
        problems += time_problems(exchanges, requests)
        problems += step_problems(account["notes"], steps)
    return True, any(r["at_ns"] > end_ns - SECOND for r in requests), problems


def _served_after(target: Target, at_ns: int) -> bool:
    requests = target.requests()
    return bool(requests) and requests[-1]["at_ns"] > at_ns


def refused() -> str:
    """Why it cannot be tried here; "" when it can."""
    why = open_error()
    return explained(why) if why is not None else ""
