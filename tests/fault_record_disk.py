"""Kills `livefire record` inside of a write, and fills the disk under folders of segments; takes its interface away.

The witness is the target's own log, and of a torn write the file: its last bytes are no whole frame.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fault_checks import ROOT, SECOND, Front, Tally, environment, until
from fault_record import Clients, arguments, free_port, read, ready, recording_problems
from http_target import Target

from bus.logfile import LogReader
from wire import codec

_BODY_BYTES = 6 << 20  # a frame of which takes milliseconds to write
_WATCHED_NS = 5 * SECOND


class Bodies:
    """Posts bodies that do not compress, one after another."""

    def __init__(self, port: int, seed: int) -> None:
        self._port, self._over = port, threading.Event()
        self._noise = random.Random(seed).randbytes(_BODY_BYTES)
        self._thread = threading.Thread(target=self._post)
        self._seed = seed

    def _post(self) -> None:
        count = 0
        while not self._over.is_set():
            client = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
            try:
                while not self._over.is_set():
                    count += 1
                    client.request("POST", f"/body?n={self._seed}.{count}", self._noise)
                    client.getresponse().read()
            except (OSError, http.client.HTTPException):
                self._over.wait(0.01)
            finally:
                client.close()

    def __enter__(self) -> Bodies:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def names_in(file: Path) -> tuple[set[str], int]:
    """What is whole in a file, and how many bytes behind it are no whole frame."""
    found: set[str] = set()
    with LogReader(file) as reader:
        while messages := reader.read():
            for message in messages:
                header = codec.decode_header(message.data)
                if header.type is codec.RecordType.EXCHANGE:
                    records = codec.decode(message.data, header).records
                    found |= {e.request.head.split(b" ", 2)[1].decode() for e in records}
        return found, reader.waiting_bytes


def torn_problems(acknowledged: set[str], there: set[str], torn: int, cut: int) -> list[str]:
    """`torn`: bytes behind the last whole frame when it was killed; `cut`: when it had gone on."""
    problems = []
    if lost := acknowledged - there:
        problems.append(f"{len(lost)} were in the file before the kill, and are not there: {sorted(lost)[:5]}")
    if torn and cut:
        problems.append(f"{cut} bytes of half a frame are left")
    return problems


def torn_writes(folder: Path, count: int, seed: int) -> Tally:
    """Kills in the moment in which the file grows. Work in flight: half a frame is in the file."""
    tally, file, listen, acknowledged = Tally(wanted=count), folder / "live.lf", free_port(), set[str]()
    rng = random.Random(seed)
    with Target(folder) as target:
        asked = [*arguments("proxy", file, target.port, listen), "--unmasked"]
        wanted, stood = 0, 0

        def enough() -> bool:
            """Looks at a file only when it has grown: to read it takes a while."""
            nonlocal stood
            size = file.stat().st_size if file.exists() else 0
            if size == stood:
                return False
            stood = size
            acknowledged.update(names_in(file)[0])
            return len(acknowledged) >= wanted

        for number in range(count):
            with Front(folder, *asked) as recorder:
                ready(recorder)
                with Bodies(listen, seed + number):
                    wanted = len(acknowledged) + rng.randrange(1, 3)
                    until(enough, 20, "nothing is written", recorder.err)
                    size, ends = file.stat().st_size, time.monotonic_ns() + _WATCHED_NS
                    while file.stat().st_size == size and time.monotonic_ns() < ends:
                        pass  # a write lasts milliseconds: who sleeps misses it
                    hit = recorder.process.poll() is None
                    recorder.process.kill()
                    recorder.process.wait()
            there, torn = names_in(file)
            problems = torn_problems(acknowledged, there, 0, torn)
            acknowledged |= there
            tally.add(hit=hit, in_flight=torn > 0, problems=[f"kill {number}: {text}" for text in problems])
        with Front(folder, *asked) as recorder:
            ready(recorder)
            recorder.end()
        there, cut = names_in(file)
        tally.problems += torn_problems(acknowledged, there, 1, cut)
        account, exchanges = read(folder, file, tally.problems)
        if account:
            tally.problems += recording_problems(account, exchanges, target.requests(), [])
            if account["notes"].get("blind", 0) != count:
                tally.problems.append(f"{count} kills, and the file tells of {account['notes'].get('blind', 0)}")
    return tally


def ring_problems(served: list[str], recorded: list[str], shed: int) -> list[str]:
    """What a ring of segments has is the newest, without a hole: the oldest went, and nothing else."""
    kept = served[len(served) - len(recorded) :]
    problems = []
    if not recorded or len(recorded) == len(served):
        problems.append(f"{len(recorded)} of {len(served)} are there: nothing had to go")
    if shed:
        problems.append(f"{shed} messages were shed, though there were older ones to go")
    if sorted(kept) != sorted(recorded):
        problems.append(f"not the newest: {sorted(set(kept) ^ set(recorded))[:5]}")
    return problems


def full_ring(folder: Path, seed: int) -> tuple[bool, bool, list[str]]:
    """A disk of its own that is full long before the ring's time is over: its oldest segments go."""
    disk, noise, problems = folder / "disk", random.Random(seed), list[str]()
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={noise.randrange(600, 1200)}k", "tmpfs", str(disk)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        with Target(folder) as target:
            file, listen = disk / "live", free_port()
            base = arguments("proxy", folder / "x", target.port, listen)
            asked = [file if word == folder / "x" else word for word in base]
            with Front(folder, *asked, "--unmasked", "--keep-last", "1h", "--rotate", "100KB") as recorder:
                ready(recorder)
                until(
                    lambda: _posted(listen, noise) and _full_twice(file, disk), 40, "the disk is not full", recorder.err
                )
                recorder.end()
            account, exchanges = read(folder, file, problems)
            if account:
                problems += recording_problems(account, exchanges, target.requests(), [])
                shed = account["ledgers"]["messages"]["drops"].get("no_room", 0)
                served = [request["path"] for request in target.requests()]
                problems += ring_problems(served, [e["target"] for e in exchanges], shed)
            if recorder.process.returncode:
                problems.append(f"exit code {recorder.process.returncode}: {recorder.err()[-300:]}")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    return True, True, problems


def segments_problems(served: int, recorded: int, shed: int) -> list[str]:
    """`recorded` exchanges and `shed` messages of what was served: nothing else may become of them."""
    problems = []
    if not shed or not recorded:
        problems.append(f"{recorded} recorded and {shed} messages shed: the disk was not full")
    if recorded + shed // 2 != served:
        problems.append(f"{served} served, {recorded} recorded, {shed} messages shed")
    return problems


def full_segments(folder: Path, seed: int) -> tuple[bool, bool, list[str]]:
    """A disk of its own under a folder of segments of which none may go: what finds no room is shed. Room comes back,
    or it ends with a line."""
    disk, noise, problems = folder / "disk", random.Random(seed), list[str]()
    disk.mkdir()
    size, room_again = noise.randrange(600, 1200), bool(seed % 2)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(disk)], check=True, capture_output=True)
    try:
        with Target(folder) as target:
            file, listen = disk / "live", free_port()
            base = arguments("proxy", folder / "x", target.port, listen)
            asked = [file if word == folder / "x" else word for word in base]
            with Front(folder, *asked, "--unmasked", "--rotate", "100KB") as recorder:
                ready(recorder)
                full = lambda: _posted(listen, noise) and " shed" in recorder.err()  # noqa: E731
                until(full, 40, "nothing is shed", recorder.err)
                if room_again:
                    stood = _total(file)
                    subprocess.run(["mount", "-o", f"remount,size={size + 40_000}k", str(disk)], check=True)
                    until(lambda: _total(file) > stood + 8192, 30, "it does not go on", recorder.err)
                    _posted(listen, noise)
                recorder.end()
            account, exchanges = read(folder, file, problems)
            shed = account["ledgers"]["messages"]["drops"].get("no_room", 0) if account else 0
            if account:
                problems += recording_problems(account, exchanges, target.requests(), [])
                if room_again:
                    problems += segments_problems(len(target.requests()), len(exchanges), shed)
            if recorder.process.returncode != (0 if room_again else 2):
                problems.append(f"exit code {recorder.process.returncode}: {recorder.err()[-300:]}")
            if not room_again and "no room on the disk" not in recorder.err():
                problems.append(f"it does not say why it ends: {recorder.err()[-300:]}")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    return bool(shed) or "no room" in recorder.err(), True, problems


def _total(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.lf"))


def _posted(port: int, noise: random.Random) -> bool:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    for _ in range(5):
        client.request("POST", f"/{noise.randbytes(8).hex()}", noise.randbytes(4000))
        client.getresponse().read()
    client.close()
    return True


def _full_twice(file: Path, disk: Path) -> bool:
    """Whether so much has been written that the first segments cannot be there any more."""
    numbers = [int(path.stem.rpartition(".")[2]) for path in file.glob("*.lf")]
    return bool(numbers) and max(numbers) * 100_000 > 2 * shutil.disk_usage(disk).total


def mount_error() -> str:
    """Why a disk cannot be made here; "" where it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs root, to make a disk"
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True, text=True, check=False)
        if not done.returncode:
            subprocess.run(["umount", folder], check=True)
    return done.stderr.strip()


# ---------------------------------------------------------------------------- an interface that is taken away


def link_error() -> str:
    if sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
        return "needs root, ip and unshare"
    done = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)
    return done.stderr.strip()


def link(folder: Path, seed: int) -> tuple[bool, bool, list[str]]:
    """The interface goes down and up while clients ask, in a network namespace of its own."""
    command = ["unshare", "--net", sys.executable, __file__, str(folder), str(seed)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env=environment(), cwd=ROOT
    )
    if done.returncode:
        return False, False, [done.stderr[-600:]]
    hit, in_flight, problems = json.loads(done.stdout.splitlines()[-1])
    return hit, in_flight, problems


def link_problems(notes: dict[str, int], times: int, down_ns: int) -> list[str]:
    """Whether the account tells how often and for how long nobody could look (to a quarter of a second each)."""
    told = notes.get("down.lo", 0), notes.get("down_ns.lo", 0)
    if told[0] != times or abs(told[1] - down_ns) > times * SECOND:
        return [f"{times} times down, {down_ns / 1e9:.1f} s: the account tells of {told[0]}, {told[1] / 1e9:.1f} s"]
    return []


def _link_inside(folder: Path, seed: int) -> tuple[bool, bool, list[str]]:
    def set_to(state: str) -> int:
        subprocess.run(["ip", "link", "set", "lo", state], check=True)
        return time.time_ns()

    set_to("up")
    rng, problems, down_ns, times = random.Random(seed), list[str](), 0, 2
    busy = False
    with Target(folder) as target:
        file = folder / "live.lf"
        with Front(folder, *arguments("ring", file, target.port, 0)) as recorder:
            begin_ns = ready(recorder)
            with Clients(target.port) as clients:
                for _ in range(times):
                    count = len(target.requests())
                    until(lambda: len(target.requests()) > count + 3, 20, "nobody is served", recorder.err)  # noqa: B023
                    time.sleep(rng.uniform(0.8, 1.2))  # up long enough to be seen: it looks each quarter of a second
                    busy = True
                    went_ns = set_to("down")
                    time.sleep(rng.uniform(0.7, 1.2))  # how long it is down
                    down_ns += set_to("up") - went_ns
                count = len(target.requests())
                until(lambda: len(target.requests()) > count + 3, 30, "nobody is served again", recorder.err)
            recorder.end()
        account, exchanges = read(folder, file, problems)
        if account:
            served = clients.told(target.requests())
            problems += recording_problems(account, exchanges, served, [(begin_ns, time.time_ns())])
            problems += link_problems(account["notes"], times, down_ns)
    return True, busy, problems


if __name__ == "__main__":
    print(json.dumps(_link_inside(Path(sys.argv[1]), int(sys.argv[2]))))
