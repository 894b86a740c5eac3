"""Kills recorders that write to Kafka, takes their broker away, and fills the disk under their spool.

The witness is the target's own log: what was served while a recorder ran is in `raw`, once.
"""

from __future__ import annotations

import http.client
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fault_checks import SECOND, Front, Line, Tally, make_keys, until
from fault_record import Clients, free_port, held_problems, ready, recorded_until, recording_problems
from http_target import Target
from servers.kafka import Kafka
from servers.process import Missing

from bus.address import open_bus, parse_kafka
from bus.kafka_topics import Topics, Wanted
from bus.ports import BusAway
from wire import codec
from wire.account import Account
from wire.codec import RecordType

_DRAIN_NS = SECOND * 6 // 5  # a proxy outlives its killed recorder
_SLEEP_NS = 30_000_000  # how long the target takes to answer
_BACK_S = 15.0  # from a broker's return to the first commit
_RECORDING = "monday"
_A_CONNECTION = 20  # requests on each


@contextmanager
def topics(server: str) -> Iterator[str]:
    """An address with topics of its own."""
    address = f"kafka://{server}/fault-{uuid.uuid4().hex[:8]}"
    with Topics(parse_kafka(address)) as made:
        made.create(Wanted(retention_ms=3_600_000))
        try:
            yield address
        finally:
            made.delete()


def arguments(address: str, folder: Path, spool: Path, port: int, listen: int) -> list[str | Path]:
    make_keys(folder)
    return [
        "record", "--bus", address, "--recording", _RECORDING, "--agent", "a", "--spool", spool, "--stdin-guard",
        "--json", "--proxy", f"127.0.0.1:{listen}=127.0.0.1:{port}",
    ]  # fmt: skip


def read(address: str) -> tuple[Line, list[Line], bool]:
    """The account of all streams, the exchanges, and whether all streams are whole."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return _read(address)
        except BusAway:
            if time.monotonic() > deadline:
                raise


def _read(address: str) -> tuple[Line, list[Line], bool]:
    bus = open_bus(address, _RECORDING)
    account, exchanges, whole = Account(), [], True
    try:
        for name in bus.partitions("raw"):
            reader = bus.reader("raw", name)
            increments = []
            while messages := reader.read():
                for message in messages:
                    batch = codec.decode(message.data)
                    increments.append(batch.header.increment)
                    if batch.header.type == RecordType.EXCHANGE:
                        exchanges += batch.records
            account.merge(Account.total(increments))
            whole = whole and reader.ended
            reader.close()
    finally:
        bus.close()
    lines: list[Line] = [
        {
            "target": e.request.head.split(b" ", 2)[1].decode(),
            "status": e.response.status if e.response is not None else None,
        }
        for e in exchanges
    ]
    return dict(account.as_json()), lines, whole


def kills(folder: Path, server: str, count: int, seed: int) -> Tally:
    """`count` kills of a recorder that is started again each time, and then ends in peace."""
    tally, rng = Tally(wanted=count), random.Random(seed)
    listen, lives, at_ns = free_port(), list[tuple[int, int]](), 0
    with Target(folder) as target, topics(server) as address:
        asked = arguments(address, folder, folder / "spool", target.port, listen)
        with Clients(listen) as clients:
            for number in range(count):
                early = number % 5 == 4  # while it starts
                with Front(folder, *asked) as recorder:
                    if not early:
                        ready_ns = max(ready(recorder), at_ns + _DRAIN_NS)
                    time.sleep(rng.uniform(0, 1.0 if early else 2.5))  # the instant, not a wait for something
                    at_ns = time.time_ns()
                    hit = recorder.process.poll() is None
                    recorder.close()
                if not early:
                    lives.append((ready_ns, at_ns))
                in_flight = any(at_ns - _SLEEP_NS < request["at_ns"] <= at_ns for request in target.requests())
                problems = [] if hit else [f"the recorder had ended: {recorder.err()}"]
                account, exchanges, _ = read(address)
                problems += [
                    p for p in recording_problems(account, exchanges, target.requests(), []) if "missing" not in p
                ]
                tally.add(hit=hit, in_flight=in_flight, problems=problems)
            with Front(folder, *asked) as recorder:
                ready(recorder)
                before = target.log.stat().st_size
                until(lambda: target.log.stat().st_size > before, 20, "nobody is served", recorder.err)
                recorder.end()
                if recorder.process.returncode:
                    tally.problems.append(f"exit code {recorder.process.returncode}: {recorder.err()[-300:]}")
        account, exchanges, whole = read(address)
        served = clients.told(target.requests())
        found = [(life[0], *recorded_until(life, exchanges, served)) for life in lives]
        tally.problems += recording_problems(account, exchanges, served, [(begin, end) for begin, end, _ in found])
        tally.problems += held_problems([held for *_, held in found])
        tally.worst_ns = max(held for *_, held in found)
        tally.problems += _end_problems(account, whole, folder / "spool")
        blind = account["notes"].get("blind", 0)
        # Who is killed before it has the stream, which its killed forerunner's hold may delay, goes on with one spell.
        if not 1 <= blind <= count:
            tally.problems.append(f"{count} kills, and the account tells of {blind} blind spells")
    return tally


def _end_problems(account: Line, whole: bool, spool: Path) -> list[str]:
    problems = [] if whole else ["a stream has no end mark"]
    if any(ledger["in_flight"] for ledger in account["ledgers"].values()):
        problems.append(f"something is in flight after the end: {account['ledgers']}")
    if left := list(spool.glob("**/*.lf")):
        problems.append(f"the spool is not empty: {[path.name for path in left]}")
    return problems


def outage(folder: Path, seed: int) -> tuple[bool, bool, list[str]]:
    """The broker is killed and comes back; every second time the recorder is killed meanwhile, too."""
    rng = random.Random(seed)
    kill_recorder = bool(seed % 2)
    listen, problems = free_port(), []
    with Kafka() as broker, Target(folder) as target, topics(broker.address) as address:
        asked = arguments(address, folder, folder / "spool", target.port, listen)
        recorder = Front(folder, *asked)
        try:
            with Clients(listen) as clients:
                begun_ns = ready(recorder)
                time.sleep(rng.uniform(0.5, 2.0))  # the instant, not a wait for something
                broker.kill()
                killed_ns = time.time_ns()
                time.sleep(rng.uniform(2.0, 8.0))  # the same
                lives = [(begun_ns, 0)]
                if kill_recorder:
                    at_ns = time.time_ns()
                    recorder.close()
                    lives = [(begun_ns, at_ns)]
                    recorder = Front(folder, *asked)  # with its broker away
                    lives.append((max(ready(recorder), at_ns + _DRAIN_NS), 0))
                    time.sleep(rng.uniform(0.5, 2.0))  # the same
                broker.start()
                back = time.monotonic()
                late = [r["path"] for r in target.requests() if r["at_ns"] > killed_ns][-1]
                until(lambda: late in {e["target"] for e in read(address)[1]}, 60, "nothing arrives", recorder.err)
                took_s = time.monotonic() - back
                if took_s > _BACK_S:
                    problems.append(f"{took_s:.1f} s until the first commit")
            recorder.end()
            if recorder.process.returncode:
                problems.append(f"exit code {recorder.process.returncode}: {recorder.err()[-300:]}")
            account, exchanges, whole = read(address)
            requests = clients.told(target.requests())
            ended = max(r["done_ns"] for r in requests)
            found = [recorded_until(life, exchanges, requests) for life in lives if life[1]]
            spans = [(begin, found[0][0] if killed else ended) for begin, killed in lives]
            problems += recording_problems(account, exchanges, requests, spans)
            problems += held_problems([held for _, held in found])
            problems += _end_problems(account, whole, folder / "spool")
        finally:
            recorder.close()
    return True, any(r["at_ns"] > killed_ns for r in requests), problems


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[bool]:
    """A file system of its own at `folder`; False where this process may not make one."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "livefire-test", str(folder)], capture_output=True, check=False
    )
    try:
        yield done.returncode == 0
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", str(folder)], check=True)


def full_spool(folder: Path, seed: int) -> tuple[bool, bool, list[str]]:
    """The disk under the spool is full while the broker is away: what finds no room is shed and counted."""
    noise, listen, problems = random.Random(seed), free_port(), []
    spool = folder / "spool"
    with (
        Kafka() as broker, Target(folder) as target, topics(broker.address) as address,
        small_disk(spool, 768 << 10) as mounted,
    ):  # fmt: skip
        asked = [*arguments(address, folder, spool, target.port, listen), "--unmasked"]  # masked noise is none
        with Front(folder, *asked) as recorder:
            ready(recorder)
            _ask(listen, noise)
            broker.kill()
            if not mounted:
                _, most = resource.prlimit(recorder.pid, resource.RLIMIT_FSIZE)
                resource.prlimit(recorder.pid, resource.RLIMIT_FSIZE, (40_000, most))
            deadline = time.monotonic() + 25
            while time.monotonic() < deadline:  # more than disk and memory hold of the time
                _ask(listen, noise)
            if not mounted:
                resource.prlimit(recorder.pid, resource.RLIMIT_FSIZE, (most, most))
            broker.start()
            _ask(listen, noise)
            recorder.end()
        if recorder.process.returncode:
            problems.append(f"exit code {recorder.process.returncode}: {recorder.err()[-300:]}")
        account, exchanges, whole = read(address)
        requests = target.requests()
        problems += recording_problems(account, exchanges, requests, [])
        problems += _end_problems(account, whole, spool)
        shed = account["ledgers"]["messages"]["drops"].get("no_room", 0)
        # A recorder that stands still is left behind by its proxy, which gives up connections, and says how many.
        given_up = account["notes"].get("shed_connections", 0)
        if not shed or not 0 <= len(requests) - len(exchanges) - shed // 2 <= given_up * _A_CONNECTION:
            problems.append(
                f"{len(requests)} served, {len(exchanges)} recorded, {shed} messages and {given_up} connections shed"
            )
    return bool(shed), True, problems


def _ask(port: int, noise: random.Random) -> None:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    for _ in range(_A_CONNECTION):
        client.request("GET", f"/{noise.randbytes(1500).hex()}")
        client.getresponse().read()
    client.close()


# ---------------------------------------------------------------------------- as `soak.py` calls them


def recorder_kills(count: int, seed: int) -> Tally:
    try:
        with Kafka() as broker, tempfile.TemporaryDirectory() as folder:
            return kills(Path(folder), broker.address, count, seed)
    except Missing as missing:
        return Tally(skipped=str(missing))


def _each(one: Callable[[Path, int], tuple[bool, bool, list[str]]], share: int) -> Callable[[int, int], Tally]:
    def fault(count: int, seed: int) -> Tally:
        tally = Tally(wanted=-(-count // share))
        for number in range(tally.wanted):
            try:
                with tempfile.TemporaryDirectory() as folder:
                    hit, in_flight, problems = one(Path(folder), seed + number)
            except Missing as missing:
                return Tally(skipped=str(missing))
            tally.add(hit=hit, in_flight=in_flight, problems=[f"seed {seed + number}: {text}" for text in problems])
        return tally

    return fault


outages = _each(outage, 4)
full_spools = _each(full_spool, 8)


def main() -> int:
    """python tests/fault_record_bus.py: as often as LIVEFIRE_FAULTS says."""
    seed, count = random.SystemRandom().randrange(1 << 30), int(os.environ.get("LIVEFIRE_FAULTS", "5"))
    print(f"seed {seed}", flush=True)
    bad = 0
    for name, fault in (("kills", recorder_kills), ("outages", outages), ("full spool", full_spools)):
        tally = fault(count, seed)
        wrong = tally.verdict()
        print(f"{name}: {tally.skipped or f'{tally.hits}, {tally.in_flight} in flight'}; {wrong or 'none'}", flush=True)
        bad += bool(wrong)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
