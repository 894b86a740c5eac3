"""Kills `livefire record` at random instants, one after another into one file, and fills its disk.

The witness is the target's own log. Clients ask it all along, through the proxy or past the ring.
"""

from __future__ import annotations

import http.client
import random
import resource
import socket
import threading
import time
from collections import Counter
from pathlib import Path

from fault_checks import SECOND, Front, Line, Tally, make_keys, told, until
from http_target import Target

#: What a recorder holds when it is killed: 50 ms in the ring, 250 ms in a batch. A busy machine may stop it, or who
#: writes for it, for longer, so this is what most of them keep to; none goes beyond the other.
_HELD_NS, _HELD_MOST_NS = SECOND, 8 * SECOND
#: A proxy outlives its killed recorder by a second, for what is under way in its connections.
_DRAIN_NS = SECOND * 6 // 5
_KEPT_NS = 6 * SECOND
#: A folder of files; and one that is a ring of time.
_SEGMENTS = {"rotate": ("--rotate", "1s"), "keep-last": ("--keep-last", "6s")}
_SLEEP_NS = 30_000_000  # how long the target takes to answer


class Clients:
    """Ask for one answer after another, whatever becomes of their connections."""

    def __init__(self, port: int, count: int = 4) -> None:
        self._port, self._over = port, threading.Event()
        self._sent_ns: dict[str, int] = {}
        self._done_ns: dict[str, int] = {}
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(count)]

    def _ask(self, number: int) -> None:
        count = 0
        while not self._over.is_set():
            client = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
            try:
                while not self._over.is_set():
                    count += 1
                    path = f"/sleep/30?n={number}.{count}"
                    self._sent_ns[path] = time.time_ns()
                    client.request("GET", path)
                    client.getresponse().read()
                    self._done_ns[path] = time.time_ns()
            except (OSError, http.client.HTTPException):
                self._over.wait(0.01)  # the proxy is away
            finally:
                client.close()

    def told(self, requests: list[Line]) -> list[Line]:
        """The target's log, with when each request was sent: on a busy machine that is long before it was read; and
        when its answer was there, or where it never was, when it was read."""
        return [
            {**r, "sent_ns": self._sent_ns[r["path"]], "done_ns": self._done_ns.get(r["path"], r["at_ns"])}
            for r in requests
        ]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def arguments(kind: str, file: Path, port: int, listen: int) -> list[str | Path]:
    make_keys(file.parent)  # else the first line is about them, and comes before it listens
    base: list[str | Path] = ["record", "--to", file, "--stdin-guard", "--json"]
    if kind == "ring":
        return [*base, "--engine", "ring", "--interface", "lo", "--port", str(port)]
    return [*base, "--engine", "proxy", "--proxy", f"127.0.0.1:{listen}=127.0.0.1:{port}", *_SEGMENTS.get(kind, ())]


def recording_problems(
    account: Line, exchanges: list[Line], served: list[Line], sure: list[tuple[int, int]]
) -> list[str]:
    """`sure`: spans of time (unix ns) in which everything that was sent and answered must be in the file."""
    problems = []
    if not account["balanced"]:
        problems.append(f"the account does not balance: {account['ledgers']}")
    messages = sum(1 + (e["status"] is not None) for e in exchanges)
    if account["ledgers"].get("messages", {"emitted": 0})["emitted"] != messages:
        problems.append(f"{messages} messages in the file: {account['ledgers']}")
    recorded = Counter(e["target"] for e in exchanges)
    if twice := [target for target, times in recorded.items() if times > 1]:
        problems.append(f"recorded twice: {twice[:5]}")
    if made_up := recorded.keys() - {request["path"] for request in served}:
        problems.append(f"recorded, and never served: {sorted(made_up)[:5]}")
    due = [r["path"] for r in served if any(begin <= r["sent_ns"] and r["done_ns"] <= end for begin, end in sure)]
    if missing := [path for path in due if path not in recorded]:
        problems.append(f"{len(missing)} of {len(due)} served while it recorded are missing: {missing[:5]}")
    return problems


def recorded_until(life: tuple[int, int], exchanges: list[Line], served: list[Line]) -> tuple[int, int]:
    """Of a recorder that listened and was killed at these times (unix ns): up to when everything must be there, and what
    it held when it was killed (ns).

    It may lose what came last, and nothing before it: what was answered before a request that is there was sent is
    there, too. That asks nothing of how fast this machine is.
    """
    begin, killed = life
    there = {e["target"] for e in exchanges}
    answered = [r for r in served if begin <= r["sent_ns"] and r["done_ns"] <= killed]
    kept = [r for r in answered if r["path"] in there]
    last_ns = max((r["done_ns"] for r in kept), default=begin)
    return max((r["sent_ns"] for r in kept), default=begin), max(
        (r["done_ns"] for r in answered), default=last_ns
    ) - last_ns


def held_problems(held: list[int]) -> list[str]:
    """What killed recorders held (ns): never long, and mostly no longer than a batch lasts."""
    long = [f"{ns / 1e9:.1f} s" for ns in held if ns > _HELD_NS]
    if len(long) > max(1, len(held) // 2) or max(held, default=0) > _HELD_MOST_NS:
        return [f"of {len(held)} killed recorders {len(long)} have lost more than {_HELD_NS / 1e9:.0f} s: {long[:5]}"]
    return []


def read(folder: Path, file: Path, problems: list[str]) -> tuple[Line, list[Line]]:
    account, _ = told(folder, "show", "--account", "--json", file, problems=problems)
    exchanges, _ = told(folder, "show", "--json", file, problems=problems)
    return (account[0] if account else {}), exchanges


def kills(folder: Path, kind: str, count: int, seed: int) -> Tally:
    """`count` kills of a recorder that is started again each time, and then ends in peace."""
    tally, rng, file = Tally(wanted=count), random.Random(seed), folder / "live.lf"
    listen, lives, held, at_ns = free_port(), list[tuple[int, int]](), list[int](), 0
    with Target(folder) as target:
        asked = arguments(kind, file, target.port, listen)
        with Clients(target.port if kind == "ring" else listen) as clients:
            for number in range(count):
                early = number % 5 == 4  # while it starts
                with Front(folder, *asked) as recorder:
                    if not early:
                        ready_ns = max(ready(recorder), at_ns + _DRAIN_NS)
                    time.sleep(rng.uniform(0, 0.6 if early else 1.8))  # the instant, not a wait for something
                    at_ns = time.time_ns()
                    hit = recorder.process.poll() is None
                    recorder.close()
                requests = target.requests()
                if not early:
                    lives.append((ready_ns, at_ns))
                in_flight = any(at_ns - _SLEEP_NS < request["at_ns"] <= at_ns for request in requests)
                problems: list[str] = [] if hit else [f"the recorder had ended: {recorder.err()}"]
                if file.exists() and not (early and number == 0):
                    account, exchanges = read(folder, file, problems)
                    if account:
                        served = clients.told(target.requests())
                        problems += recording_problems(
                            account, exchanges, served, _sure(kind, lives, exchanges, served, at_ns)
                        )
                        if not early:
                            held.append(recorded_until(lives[-1], exchanges, served)[1])
                tally.add(hit=hit, in_flight=in_flight, problems=problems, last_ns=max(held, default=None))
            with Front(folder, *asked) as recorder:
                before = target.log.stat().st_size
                ready(recorder)
                until(lambda: target.log.stat().st_size > before, 20, "nobody is served", recorder.err)
                recorder.end()
        served = clients.told(target.requests())
        tally.problems += _at_the_end(folder, file, served, lives, count, kind)
    tally.problems += held_problems(held)
    return tally


def _sure(
    kind: str, lives: list[tuple[int, int]], exchanges: list[Line], served: list[Line], now_ns: int
) -> list[tuple[int, int]]:
    """Of these recorders, what must be there now. A ring of time has let go what is older, by its own clock and that of
    its files."""
    oldest_ns = now_ns - _KEPT_NS + _HELD_NS if kind == "keep-last" else 0
    return [(max(life[0], oldest_ns), recorded_until(life, exchanges, served)[0]) for life in lives]


def ready(recorder: Front) -> int:
    """Unix ns from which on everything is recorded: a line says what it listens to, behind one of connecting to a bus."""
    listens = lambda: "until Ctrl-C" in recorder.err() or recorder.process.poll() is not None  # noqa: E731
    until(listens, 30, "the recorder does not say what it listens to", recorder.err)
    return time.time_ns()


def _at_the_end(
    folder: Path, file: Path, served: list[Line], lives: list[tuple[int, int]], count: int, kind: str
) -> list[str]:
    problems: list[str] = []
    now_ns = time.time_ns()
    account, exchanges = read(folder, file, problems)
    if not account:
        return problems
    problems += recording_problems(account, exchanges, served, _sure(kind, lives, exchanges, served, now_ns))
    if kind == "keep-last":  # some of what was told has gone with the oldest files
        return problems
    blind = account["notes"].get("blind", 0)
    if not count - count // 5 <= blind <= count or (blind and not account["notes"]["blind_ns"] > 0):
        problems.append(f"{count} kills, and the file tells of {blind} blind spells")
    if any(ledger["in_flight"] for ledger in account["ledgers"].values()):
        problems.append(f"something is in flight after the end: {account['ledgers']}")
    return problems


def full_disk(folder: Path, seed: int) -> tuple[bool, bool, list[str]]:
    """The file may not grow any more: what finds no room is shed and counted. Room comes back, or it ends with a line."""
    file, noise = folder / "live.lf", random.Random(seed)
    comes_back = bool(seed % 2)
    problems: list[str] = []
    with Target(folder) as target:
        listen = free_port()
        asked = [*arguments("proxy", file, target.port, listen), "--unmasked"]  # masked noise is none
        with Front(folder, *asked) as recorder:
            ready(recorder)
            begun = file.stat().st_size
            _ask(listen, noise)  # a batch that is there: on a busy machine the first could be larger than the room
            until(lambda: file.stat().st_size > begun, 30, "it does not begin")
            limit = file.stat().st_size + 30_000 + noise.randrange(60_000)
            _, most = resource.prlimit(recorder.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(recorder.pid, resource.RLIMIT_FSIZE, (limit, most))
            deadline = time.monotonic() + 4.0  # the writer holds 2 s
            while time.monotonic() < deadline:
                _ask(listen, noise)
            stood = file.stat().st_size
            if comes_back:
                resource.prlimit(recorder.pid, resource.RLIMIT_FSIZE, (most, most))
                until(lambda: file.stat().st_size > limit, 30, "it does not go on")
                _ask(listen, noise)
            recorder.end()
        account, exchanges = read(folder, file, problems)
        if account:
            problems += recording_problems(account, exchanges, target.requests(), [])
        shed = account["ledgers"]["messages"]["drops"].get("no_room", 0) if account else 0
        if recorder.process.returncode != (0 if comes_back else 2):
            problems.append(f"exit code {recorder.process.returncode}: {recorder.err()[-300:]}")
        if comes_back and (not shed or len(exchanges) + shed // 2 != len(target.requests())):
            problems.append(f"{len(target.requests())} served, {len(exchanges)} recorded, {shed} messages shed")
        if not comes_back and "no room on the disk" not in recorder.err():
            problems.append(f"it does not say why it ends: {recorder.err()[-300:]}")
        if not comes_back and "; account balanced" not in recorder.err():
            problems.append(f"it ends without its account: {recorder.err()[-300:]}")
        if stood > limit or not exchanges:
            problems.append(f"the file had {stood} bytes, {len(exchanges)} exchanges are left")
    return bool(shed) or "no room" in recorder.err(), True, problems


def _ask(port: int, noise: random.Random) -> None:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    for _ in range(10):
        client.request("GET", f"/{noise.randbytes(600).hex()}")
        client.getresponse().read()
    client.close()
    time.sleep(0.02)  # a rate, not a wait for something
