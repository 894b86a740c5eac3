"""Kills the aggregator at random instants, and kills, freezes and takes away the stores under it; real servers.

    python tests/fault_stores.py            LIVEFIRE_FAULTS times each (5); arguments: words of the faults' names

A run's outcomes are written (`store_books.py`) while the command brings them into its stores. In the end each store holds
exactly what they come to, and Elasticsearch's documents are what `analytics.windows` says.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fault_checks import ROOT, SECOND, Tally, command, environment, until
from fleet import Cluster
from servers.clickhouse import ClickHouse
from servers.elasticsearch import Elasticsearch
from servers.kafka import Kafka
from servers.process import Missing, Server, rss_mb
from store_books import Books, Stores

_ROUND: Final = 20  # kills of one run
_LATER_S: Final = 15.0  # how long anything that has to happen may take on a busy machine
_MEMORY_MB: Final = 80.0  # that an aggregator may grow by while a store is away


class Aggregator:
    """The command, into all stores, until the run is over. `words` in front of it: another interpreter's."""

    def __init__(self, folder: Path, bus: str, run_id: str, stores: Stores, python: Sequence[str] = ()) -> None:
        asked = ["aggregate", "--bus", bus, "--run", run_id, "--stdin-guard"]
        for address in stores.addresses.values():
            asked += ["--store", address]
        words = command(folder, *asked)
        if python:
            words[1:3] = python  # instead of -m livefire
        self._said = folder / f"aggregate-{secrets.token_hex(3)}.err"
        with open(self._said, "wb") as err:
            self.process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=err, stderr=err, cwd=folder, env=environment()
            )

    def said(self) -> str:
        return self._said.read_text()

    def lines_of(self, address: str) -> list[str]:
        """What it said of one store, line by line."""
        parts = (part for line in self.said().splitlines() for part in line.split("; "))
        return [part for part in parts if part.startswith(address)]

    def ended(self, seconds: float = 120.0) -> list[str]:
        """It ends by itself once the run is over; what is wrong about that."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return [f"it goes on for {seconds:.0f} s after the run's end: {self.said()[-600:]}"]
        return [f"exit code {code}: {self.said()[-600:]}"] if code else []

    def kill(self) -> bool:
        """Whether it was there to be killed."""
        hit = self.process.poll() is None
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()
        return hit


# ---------------------------------------------------------------------------- the aggregator is killed


def kill_round(
    folder: Path, bus: str, stores: Stores, tally: Tally, count: int, seed: int, python: Sequence[str] = ()
) -> None:
    """`count` kills in one run, which is then brought to its end."""
    rng = random.Random(seed)
    with Books(bus, seed) as books:
        held = dict.fromkeys(stores.addresses, 0)
        for number in range(count):
            running = Aggregator(folder, bus, books.run_id, stores, python)
            try:
                if number % 5 == 4:  # while it starts
                    time.sleep(rng.uniform(0, 1.5))  # the instant, not a wait for something
                else:
                    until(lambda: "aggregating" in running.said(), 60, "it does not start", running.said)  # noqa: B023
                    if number % 5 < 3:  # in the midst of it, however slowly it begins
                        before = held
                        until(
                            lambda before=before: any(stores.held(n, books.run_id) > before[n] for n in before),
                            60, "it takes nothing in", running.said,
                        )  # fmt: skip
                    time.sleep(rng.uniform(0, 1.0 if number % 5 < 3 else 2.5))  # the same
                written = books.count
            finally:
                hit = running.kill()
            now = {name: stores.held(name, books.run_id) for name in stores.addresses}
            took = any(now[name] > held[name] for name in now)
            left = any(now[name] < written for name in now)
            held = now
            problems = [] if hit else [f"seed {seed}: it had ended: {running.said()[-600:]}"]
            tally.add(hit=hit, in_flight=took and left, problems=problems)
        books.end()
        running = Aggregator(folder, bus, books.run_id, stores, python)
        try:
            tally.problems += [f"seed {seed}: {text}" for text in running.ended()]
        finally:
            running.kill()
        tally.problems += [f"seed {seed}: {text}" for text in stores.problems(books)]


@contextlib.contextmanager
def running(variable: str, make: Callable[[], Server]) -> Iterator[str]:
    """The address of the server that the environment names, or of one of our own. Raises Missing."""
    if address := os.environ.get(variable):
        yield address
        return
    with make() as server:
        yield server.address


def kills(*, kafka: bool) -> Callable[[int, int], Tally]:
    """Into a file, ClickHouse and Elasticsearch at once."""

    def fault(count: int, seed: int) -> Tally:
        tally = Tally(wanted=count)
        try:
            with contextlib.ExitStack() as stack:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                clickhouse = stack.enter_context(running("LIVEFIRE_CLICKHOUSE", ClickHouse))
                elasticsearch = stack.enter_context(running("LIVEFIRE_ELASTICSEARCH", Elasticsearch))
                bus = str(folder / "bus")
                if kafka:
                    bus = stack.enter_context(Cluster(stack.enter_context(running("LIVEFIRE_KAFKA", Kafka))))
                for first in range(0, count, _ROUND):
                    with Stores(folder, clickhouse=clickhouse, elasticsearch=elasticsearch) as stores:
                        kill_round(folder, bus, stores, tally, min(_ROUND, count - first), seed + first)
        except Missing as missing:
            return Tally(skipped=str(missing))
        return tally

    return fault


# ---------------------------------------------------------------------------- a store is taken away


class Outage(NamedTuple):
    """How a store goes, and for how long (s)."""

    name: str
    shortest_s: float
    longest_s: float


DEAD, FROZEN = Outage("dead", 0, 2), Outage("frozen", 2, 6)
AWAY, AWAY_LONG = Outage("away", 30, 30), Outage("away", 120, 180)
_TOLD_S: Final = 12.0  # an outage that is longer is told: a line comes every 5 s


def strike(server: Server, outage: Outage, rng: random.Random, meanwhile: Callable[[], None]) -> float:
    """How long it could not be asked (s)."""
    began = time.monotonic()
    (server.freeze if outage is FROZEN else server.kill)()
    meanwhile()
    lasts = rng.uniform(outage.shortest_s, outage.longest_s)
    time.sleep(max(0.0, began + lasts - time.monotonic()))  # the length of an outage, not a wait for something
    (server.thaw if outage is FROZEN else server.start)()
    return time.monotonic() - began


def outage_round(folder: Path, server: Server, name: str, outages: Sequence[Outage], seed: int, tally: Tally) -> None:
    """One run, into a file and one store whose server goes and comes back."""
    rng = random.Random(seed)
    addresses = {name.lower(): server.address}
    bus = str(folder / "bus")
    with Stores(folder, **addresses) as stores, Books(bus, seed) as books:
        address = stores.addresses[name]
        running = Aggregator(folder, bus, books.run_id, stores)
        try:
            for store in stores.addresses:
                until(lambda: stores.held(store, books.run_id), 60, f"nothing is in {store}", running.said)  # noqa: B023
            until(lambda: rss_mb(running.process.pid), 20, "no memory")
            memory_mb = rss_mb(running.process.pid)
            for outage in outages:
                time.sleep(rng.uniform(0.2, 1.5))  # the instant, not a wait for something
                held, written, problems = stores.held(name, books.run_id), books.count, list[str]()

                def others(problems: list[str] = problems) -> None:
                    before = stores.held("file", books.run_id)
                    try:
                        until(lambda: stores.held("file", books.run_id) > before, _LATER_S, "the file waits, too")
                    except AssertionError as error:
                        problems.append(str(error))

                said = len(running.lines_of(address))
                lasted_s = strike(server, outage, rng, others)
                back = time.monotonic()
                try:
                    until(lambda: stores.held(name, books.run_id) >= written, 60, "it does not catch up", running.said)  # noqa: B023
                except AssertionError as error:
                    problems.append(str(error)[-600:])
                took_ns = int((time.monotonic() - back) * SECOND)
                waits = [line for line in running.lines_of(address)[said:] if ", waiting: " in line]
                if lasted_s > _TOLD_S and not any(re.search(r"waiting: \S+://\S+: \S", line) for line in waits):
                    problems.append(f"away for {lasted_s:.0f} s, and nothing is said of it: {running.said()[-600:]}")
                grown = rss_mb(running.process.pid) - memory_mb
                if grown > _MEMORY_MB:
                    problems.append(f"{grown:.0f} MB more in memory")
                problems = [f"seed {seed}: {name} {outage.name}: {text}" for text in problems]
                tally.add(hit=True, in_flight=held < written, problems=problems, last_ns=took_ns)
            books.end()
            tally.problems += [f"seed {seed}: {text}" for text in running.ended()]
        finally:
            running.kill()
        tally.problems += [f"seed {seed}: {text}" for text in stores.problems(books)]


def outages(
    name: str, make: Callable[[], Server], chosen: Callable[[int], list[Outage]]
) -> Callable[[int, int], Tally]:
    """`chosen(count)`: the outages of a server, several of which belong to one run."""

    def fault(count: int, seed: int) -> Tally:
        todo = chosen(count)
        tally = Tally(wanted=len(todo))
        try:
            with make() as server, tempfile.TemporaryDirectory() as folder:
                for first in range(0, len(todo), 5):
                    outage_round(Path(folder), server, name, todo[first : first + 5], seed + first, tally)
        except Missing as missing:
            return Tally(skipped=str(missing))
        return tally

    return fault


def _pauses(count: int) -> list[Outage]:
    """Of a few, most stand still; one is away for half a minute, with the full count for minutes."""
    wanted = -(-min(count, 25) // 4)
    return [FROZEN] * (wanted - 1) + [AWAY if count <= 5 else AWAY_LONG]


#: Every fault of stores, by its name.
FAULTS: dict[str, Callable[[int, int], Tally]] = {
    "kill -9: aggregator, files": kills(kafka=False),
    "kill -9: aggregator, Kafka": kills(kafka=True),
    "kill -9: ClickHouse": outages("ClickHouse", ClickHouse, lambda count: [DEAD] * min(count, 25)),
    "kill -9: Elasticsearch": outages("Elasticsearch", Elasticsearch, lambda count: [DEAD] * min(count, 25)),
    "ClickHouse stands still, is away": outages("ClickHouse", ClickHouse, _pauses),
    "Elasticsearch stands still, is away": outages("Elasticsearch", Elasticsearch, _pauses),
}


#: An aggregator that forgets what it has taken in, run in the place of `-m livefire`.
FORGETFUL: Final = (
    "-c",
    f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    "from analytics.source_ranges import SourceRanges\n"
    "SourceRanges.hold = lambda *_: False\n"
    "SourceRanges.end_of = lambda *_: 0\n"
    "from livefire.__main__ import main; main()",
)


def main() -> int:
    seed, count = random.SystemRandom().randrange(1 << 30), int(os.environ.get("LIVEFIRE_FAULTS", "5"))
    print(f"seed {seed}", flush=True)
    bad = 0
    for name, fault in FAULTS.items():
        if sys.argv[1:] and not any(word in name for word in sys.argv[1:]):
            continue
        tally = fault(count, seed)
        wrong = tally.verdict()
        worst = "" if tally.worst_ns is None else f", caught up after {tally.worst_ns / 1e9:.1f} s"
        found = tally.skipped or f"{tally.hits} hits, {tally.in_flight} in flight{worst}: {wrong or 'nothing wrong'}"
        print(f"{name}: {found}", flush=True)
        bad += bool(wrong)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
