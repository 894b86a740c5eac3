"""Kills one process of a fleet at a random instant of a drill over Kafka, or takes the broker away; the real commands.

    python tests/fault_fleet.py            LIVEFIRE_FAULTS times each (5), on the broker of LIVEFIRE_KAFKA or one of its own

The witness is the target's own log. Workers stand by again after each fault, and take the next drill.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import msgspec
from fault_checks import LEASE_NS, SECOND, Line, Tally, alive, children_of, run_problems, shot_of, until
from fleet import Cluster, Fleet, Process
from http_target import Target
from recordings import even, id_of
from servers.kafka import Kafka
from servers.process import Missing

from bus.address import open_bus
from replay.recover import recover, unfinished

#: Who is killed: the drill (and with it the conductor), or, of a worker, the one that stands by, its feeder, its firer.
VICTIMS = ("conductor", "worker", "feeder", "firer")
#: How a broker goes away, and for how long.
OUTAGES = {"dead": (1.0, 6.0), "frozen": (0.5, 8.0)}


class Found(NamedTuple):
    """What one fault came to."""

    hit: bool
    open_shots: int  # received by the target and not answered at that instant
    last_ns: int  # from the fault to the last request
    problems: list[str]


class Ground:
    """Two workers that stand by, a target, a bus. Use as a context manager."""

    def __init__(self, folder: Path, server: str) -> None:
        self._stack = contextlib.ExitStack()
        self._folder, self._server = folder, server
        self._number = 0

    def __enter__(self) -> Ground:
        self.target = self._stack.enter_context(Target(self._folder))
        address = self._stack.enter_context(Cluster(self._server))
        self.fleet = self._stack.enter_context(Fleet(self._folder, address, self.target))
        self.workers = {name: self.fleet.worker(name) for name in ("w0", "w1")}
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def fault(self, seed: int, strike: Callable[[random.Random, Process], bool], *, ends_by_lease: bool) -> Found:
        """One drill; `strike` some time after load has begun. It says whether it hit anything."""
        rng = random.Random(seed)
        self._number += 1
        shots = [
            msgspec.structs.replace(one, exchange_id=id_of(seed, self._number, index))
            for index, one in enumerate(even(200, 100.0, target="/sleep/20"))
        ]
        mine = {one.exchange_id.hex() for one in shots}
        self.fleet.publish(shots)
        for attempt in range(3):
            until(self._idle, 90, "the workers do not stand by", self._said)
            drill = self.fleet.drill(seconds=60, name=f"drill{self._number}-{attempt}")
            until(
                lambda drill=drill: self._received(mine) or drill.process.poll() is not None, 60, "no load", self._said
            )
            if self._received(mine):
                break
            # On a machine that is too busy a lease may run out before load has begun: no ground for a fault.
        else:
            raise AssertionError(f"no load in three drills: {self._said()}")
        time.sleep(rng.uniform(0, 3.0))  # the instant is what is random here
        at_ns = time.time_ns()
        hit = strike(rng, drill)
        drill.ended(150)
        run_dir = max((self.fleet.folder / "runs").glob("0*"))
        until(lambda: self._settled(run_dir.name), 90, "the books do not settle", self._said)
        requests = self._received(mine)
        problems, outcomes, summed = run_problems(
            self.fleet.folder, run_dir, requests, at_ns + LEASE_NS if hit and ends_by_lease else None
        )
        if not summed.planned:
            problems.append("nothing was planned")
        begun = {request["fields"]["livefire-shot"] for request in requests if request["at_ns"] <= at_ns}
        answered = {shot_of(o) for o in outcomes if o["status"] and o["done_ns"] <= at_ns}
        last_ns = max(request["at_ns"] for request in requests) - at_ns
        if last_ns > (LEASE_NS if ends_by_lease else 5 * SECOND) + SECOND:
            problems.append(f"load went on for {last_ns / 1e9:.1f} s")
        return Found(hit, len(begun - answered), last_ns, problems)

    def _received(self, mine: set[str]) -> list[Line]:
        return [r for r in self.target.requests() if r["fields"].get("livefire-shot", "").partition(".")[0] in mine]

    def _idle(self) -> bool:
        now = time.time_ns()
        beats = self.fleet.beats()
        return all(
            name in beats and beats[name].state == "idle" and now - beats[name].at_ns < 2 * SECOND
            for name in self.workers
        )

    def _settled(self, run_id: str) -> bool:
        with contextlib.closing(open_bus(self.fleet.address, run_id)) as bus:
            recover(bus)
            return not unfinished(bus)

    def _said(self) -> str:
        return "\n".join(f"{process.name}: {process.err()[-400:]}" for process in self.fleet.processes)

    def victim(self, what: str, rng: random.Random, drill: Process) -> int | None:
        """Its process; None when it is not there."""
        if what == "conductor":
            return drill.pid
        worker = self.workers[rng.choice(sorted(self.workers))]
        if what == "worker":
            return worker.pid
        pid = worker.pid
        for _ in range(("feeder", "firer").index(what) + 1):
            children = children_of(pid)
            if not children:
                return None
            pid = children[0]
        return pid

    def replace_dead(self) -> None:
        for name, worker in self.workers.items():
            if worker.process.poll() is not None:
                self.workers[name] = self.fleet.worker(name)


@contextlib.contextmanager
def broker() -> Iterator[str]:
    """The one that is running, or one of our own."""
    if address := os.environ.get("LIVEFIRE_KAFKA"):
        yield address
        return
    with Kafka() as kafka:
        yield kafka.address


def kills(what: str) -> Callable[[int, int], Tally]:
    """`what`: one of VICTIMS."""

    def fault(count: int, seed: int) -> Tally:
        tally = Tally(wanted=count)
        with tempfile.TemporaryDirectory() as folder, broker() as server, Ground(Path(folder), server) as ground:

            def strike(rng: random.Random, drill: Process) -> bool:
                pid = ground.victim(what, rng, drill)
                if pid is None or not alive(pid):
                    return False
                os.kill(pid, signal.SIGKILL)
                return True

            for number in range(seed, seed + 2 * count):
                if tally.hits == count:
                    break
                _add(tally, number, ground.fault(number, strike, ends_by_lease=what == "conductor"))
                ground.replace_dead()
        return tally

    return fault


def outages(how: str) -> Callable[[int, int], Tally]:
    """`how`: one of OUTAGES. The broker comes back while the drill waits for it."""

    def fault(count: int, seed: int) -> Tally:
        tally = Tally(wanted=count)
        with tempfile.TemporaryDirectory() as folder, Kafka() as kafka, Ground(Path(folder), kafka.address) as ground:

            def strike(rng: random.Random, drill: Process) -> bool:
                (kafka.freeze if how == "frozen" else kafka.kill)()
                time.sleep(rng.uniform(*OUTAGES[how]))  # how long it is away
                (kafka.thaw if how == "frozen" else kafka.start)()
                if drill.process.poll() is None:  # what was short enough ended nothing
                    time.sleep(1.5)
                    drill.process.send_signal(signal.SIGTERM)
                return True

            for number in range(seed, seed + count):
                _add(tally, number, ground.fault(number, strike, ends_by_lease=False))
                ground.replace_dead()
        return tally

    return fault


def _or_skipped(fault: Callable[[int, int], Tally]) -> Callable[[int, int], Tally]:
    def tried(count: int, seed: int) -> Tally:
        try:
            return fault(count, seed)
        except Missing as missing:
            return Tally(skipped=str(missing))

    return tried


def _add(tally: Tally, seed: int, found: Found) -> None:
    problems = [f"seed {seed}: {text}" for text in found.problems]
    tally.add(hit=found.hit, in_flight=found.open_shots > 0, problems=problems, last_ns=found.last_ns)


#: Every fault of a fleet, by its name.
FAULTS: dict[str, Callable[[int, int], Tally]] = {
    **{f"kill -9: {what} of a fleet": _or_skipped(kills(what)) for what in VICTIMS},
    **{f"broker {how} under a fleet's load": _or_skipped(outages(how)) for how in OUTAGES},
}


def main() -> int:
    """python tests/fault_fleet.py: as often as LIVEFIRE_FAULTS says. Arguments: words of the faults' names."""
    seed, count = random.SystemRandom().randrange(1 << 30), int(os.environ.get("LIVEFIRE_FAULTS", "5"))
    print(f"seed {seed}", flush=True)
    bad = 0
    for name, fault in FAULTS.items():
        if sys.argv[1:] and not any(word in name for word in sys.argv[1:]):
            continue
        tally = fault(count, seed)
        worst = "" if tally.worst_ns is None else f", the last request {tally.worst_ns / 1e9:.2f} s after"
        print(
            f"{name}: {tally.hits} hits, {tally.in_flight} in flight{worst}: {tally.verdict() or 'nothing wrong'}",
            flush=True,
        )
        bad += bool(tally.verdict())
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
