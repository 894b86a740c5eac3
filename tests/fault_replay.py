"""Kills one process of a running replay at a random instant, and checks what must hold then.

    python tests/fault_replay.py --count 20 --seed 7 [--victim firer|feeder|conductor]

After each kill: every log file opens, the account balances, load has stopped within 3 s of a conductor's death, and
the target's own log holds no shot twice, none that was not claimed, and none that is booked as never sent.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from http_target import Target
from recordings import SECOND, even, make_clean

from bus.logfile import FileBus
from replay import app, summary
from replay.book import records_of
from replay.recover import recover
from replay.settings import ReplaySettings
from wire import topics
from wire.codec import RecordType

VICTIMS = ("firer", "feeder", "conductor")
COPIES = 3
_ROOT = Path(__file__).parent.parent


class Fault(NamedTuple):
    """What one kill came to."""

    victim: str
    seed: int
    killed: bool  # False: the run was over before the kill
    open_shots: int  # received by the target and not booked as answered when the process was killed
    planned: int
    unknown: int
    received: int
    problems: list[str]


def conduct(settings: dict[str, Any]) -> None:
    """In a process of its own: a replay."""
    result = app.run(msgspec.convert({**settings, "recording": Path(settings["recording"]),
                                      "runs": Path(settings["runs"])}, ReplaySettings))  # fmt: skip
    print(msgspec.json.encode(result).decode(), flush=True)


def fault(folder: Path, victim: str, seed: int, count: int = 400, rate: float = 400.0) -> Fault:
    rng = random.Random(f"{victim}-{seed}")
    exchanges = even(count, rate, target="/sleep/20")
    recording = make_clean(folder / "clean.lf", exchanges)
    run_id = f"fault-{seed}"
    with Target(folder) as target:
        asked = {
            "recording": str(recording), "target": target.url, "runs": str(folder), "key_id": "k1",
            "key_hex": "11" * 32,
            "copies": COPIES, "spread_ns": SECOND // 2, "run_id": run_id,
        }  # fmt: skip
        process = subprocess.Popen(
            (sys.executable, __file__, "--conduct", json.dumps(asked)), stdout=subprocess.PIPE, cwd=_ROOT,
            env={**os.environ, "PYTHONPATH": f"{_ROOT}{os.pathsep}{_ROOT / 'sdk/src'}"},
        )  # fmt: skip
        try:
            _await(lambda: target.log.stat().st_size > 0, 20, "no shot was fired")
            time.sleep(rng.random() * (count / rate + 0.4))  # the instant is what is random here
            pids = _pids(process.pid)
            killed = False
            at_ns = time.time_ns()
            if victim in pids and _alive(pids[victim]):  # else the run was over by then, and this proves nothing
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pids[victim], signal.SIGKILL)
                    killed = True
            out, _ = process.communicate(timeout=60)
            _await(lambda: not any(_alive(pid) for pid in pids.values()), 10, "a process was left behind")
        finally:
            process.kill()
            process.wait()
        recover(folder / run_id)
        requests = target.requests()
    summed, account = summary.read(folder / run_id)
    result = json.loads(out) if out.strip() else None
    problems = problems_of(folder / run_id, requests, summed, account.balanced)
    if recover(folder / run_id):
        problems.append("recovering twice found something")
    if victim == "conductor":
        last = max(request["at_ns"] for request in requests)
        if last > at_ns + 3 * SECOND:
            problems.append(f"a request left {(last - at_ns) / 1e9:.2f} s after the conductor died")
    elif result is None or result["planned"] != COPIES * count:
        problems.append(f"planned {result and result['planned']} of {COPIES * count}: {result}")
    # By the stamps of both sides, not by when this process got round to reading.
    begun = {request["fields"]["livefire-shot"] for request in requests if request["at_ns"] <= at_ns}
    answered = {_name(o) for o in _outcomes(folder / run_id) if o.status and o.done_ns <= at_ns}
    return Fault(victim, seed, killed, len(begun - answered), summed.planned, summed.unknown, len(requests), problems)


def _name(outcome: Any) -> str:
    return f"{outcome.exchange_id.hex()}.{outcome.copy}.{outcome.lap}"


def problems_of(run_dir: Path, requests: list[dict[str, Any]], summed: summary.Summary, balanced: bool) -> list[str]:
    problems = []
    if not balanced or not summed.balanced:
        problems.append(f"the account does not balance: {summed}")
    bus = FileBus(run_dir)
    for topic in (topics.CLAIMS, topics.OUTCOMES, topics.BEATS):
        for worker in bus.partitions(topic):
            with bus.reader(topic, worker) as reader:
                while reader.read():
                    pass
                if not reader.ended or reader.corrupt_frames:
                    problems.append(f"{topic}-{worker} is not whole")
    received = Counter(request["fields"]["livefire-shot"] for request in requests)
    if twice := [shot for shot, times in received.items() if times > 1]:
        problems.append(f"fired twice: {twice[:5]}")
    booked = {_name(o): o for o in _outcomes(run_dir)}
    if unclaimed := [shot for shot in received if shot not in booked]:
        problems.append(f"fired without a claim: {unclaimed[:5]}")
    denied = [shot for shot in received if shot in booked and booked[shot].failure.startswith("shed")]
    if denied:
        problems.append(f"received, but booked as never sent: {denied[:5]}")
    if lost := [shot for shot, o in booked.items() if o.status and shot not in received]:
        problems.append(f"booked as answered, but never received: {lost[:5]}")
    return problems


def _outcomes(run_dir: Path) -> list[Any]:
    bus = FileBus(run_dir)
    found: list[Any] = []
    for worker in bus.partitions(topics.OUTCOMES):
        with bus.reader(topics.OUTCOMES, worker) as reader:
            found += records_of(reader, RecordType.OUTCOME)
    return found


def children_of(pid: int) -> list[int]:
    out = subprocess.run(("ps", "-o", "pid=", "--ppid", str(pid)), capture_output=True, text=True, check=False).stdout
    return [int(word) for word in out.split()]


def _pids(conductor: int) -> dict[str, int]:
    """The processes that are there: conductor, feeder (its child), firer (the feeder's child)."""
    pids = {"conductor": conductor}
    for name, parent in (("feeder", "conductor"), ("firer", "feeder")):
        if parent in pids and (children := children_of(pids[parent])):
            pids[name] = children[0]
    return pids


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _await(check: Any, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            raise AssertionError(what)
        time.sleep(0.01)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20, help="kills of each victim")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--victim", choices=VICTIMS)
    parser.add_argument("--conduct", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.conduct:
        conduct(json.loads(args.conduct))
        return 0
    bad = 0
    for victim in (args.victim,) if args.victim else VICTIMS:
        kills = in_flight = 0
        for number in range(args.count):
            with tempfile.TemporaryDirectory() as folder:
                found = fault(Path(folder), victim, args.seed + number)
            kills += found.killed
            in_flight += found.killed and found.open_shots > 0
            bad += bool(found.problems)
            print(f"{found._asdict()}", flush=True)
        print(f"{victim}: {args.count} runs, {kills} kills, {in_flight} with work in flight", flush=True)
        bad += not kills or 3 * in_flight < kills
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
