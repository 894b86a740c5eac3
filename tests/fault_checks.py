"""What must hold of a run after a fault, and the real command line that says it.

The witness is the target's own log (`http_target.py`); the run's side is what `livefire outcomes` and
`livefire windows` print of its files.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bus.logfile import FileBus
from livefire import keyring
from replay import summary
from replay.recover import recover
from wire import topics

ROOT = Path(__file__).parent.parent
LINUX = sys.platform == "linux"
SECOND = 1_000_000_000
LEASE_NS = 3 * SECOND
#: A request is stamped by the target when it gets round to reading it: what a busy machine may add to 3 s.
SLACK_NS = SECOND // 4

Line = dict[str, Any]


@dataclass
class Tally:
    """What the tries of one fault came to."""

    wanted: int = 0
    hits: int = 0  # how often the fault took place
    in_flight: int = 0  # hits while work was under way
    worst_ns: int | None = None  # from a hit to the last request that the target saw
    problems: list[str] = field(default_factory=list)
    skipped: str = ""  # why it could not be tried here

    def add(self, *, hit: bool, in_flight: bool, problems: Sequence[str], last_ns: int | None = None) -> None:
        self.hits += hit
        self.in_flight += hit and in_flight
        self.problems += problems
        if hit and last_ns is not None:
            self.worst_ns = max(last_ns, self.worst_ns or last_ns)

    def join(self, other: Tally) -> None:
        """Tries of the same fault on other ground."""
        self.wanted += other.wanted
        self.problems += other.problems
        self.hits += other.hits
        self.in_flight += other.in_flight
        self.skipped = self.skipped or other.skipped
        if other.worst_ns is not None:
            self.worst_ns = max(other.worst_ns, self.worst_ns or other.worst_ns)

    def verdict(self) -> list[str]:
        """Every reason why this fault has not passed."""
        if self.skipped:
            return []
        found = list(self.problems)
        if self.hits < self.wanted or not self.hits:
            found.append(f"only {self.hits} of {self.wanted} took place")
        if self.hits >= 6 and 3 * self.in_flight < self.hits:  # of fewer, a third is a matter of luck
            found.append(f"only {self.in_flight} of {self.hits} hit work in flight")
        return found


# ---------------------------------------------------------------------------- the command line


def command(folder: Path, *arguments: str | Path, program: Sequence[str | Path] = ()) -> list[str]:
    """`program`: what runs instead of this `livefire`."""
    base = (*(program or (sys.executable, "-m", "livefire")), "--runs", folder / "runs", "--keys", folder / "keys.json")
    return [str(word) for word in (*base, *arguments)]


def make_keys(folder: Path) -> None:
    keyring.load_or_make(folder / "keys.json")


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'sdk/src'}"}


class Front:
    """A `livefire` command that goes on for a while. Its stdin is held open, its output is in files."""

    def __init__(self, folder: Path, *arguments: str | Path, program: Sequence[str | Path] = ()) -> None:
        self._files = [folder / "front.out", folder / "front.err"]
        with open(self._files[0], "wb") as out, open(self._files[1], "wb") as err:
            self.process = subprocess.Popen(
                command(folder, *arguments, program=program), stdin=subprocess.PIPE, stdout=out, stderr=err, cwd=folder,
                env=environment(),
            )  # fmt: skip
        self.pid = self.process.pid

    def out(self) -> str:
        return self._files[0].read_text()

    def err(self) -> str:
        return self._files[1].read_text()

    def end(self) -> None:
        """It ends by itself when its stdin closes."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)

    def close(self) -> None:
        """Whatever state it is in, it is gone after this."""
        assert self.process.stdin is not None
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()

    def __enter__(self) -> Front:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def told(folder: Path, *arguments: str | Path, problems: list[str] | None = None) -> tuple[list[Line], str]:
    """The lines of JSON that a command printed, and what it said beside them. That it failed is a problem, or raises."""
    done = subprocess.run(
        command(folder, *arguments), capture_output=True, text=True, env=environment(), timeout=60, check=False
    )
    if done.returncode:
        said = f"livefire {' '.join(map(str, arguments))}: exit code {done.returncode}: {done.stderr.strip()}"
        if problems is None:
            raise AssertionError(said)
        problems.append(said)
        return [], done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")], done.stderr


def children_of(pid: int) -> list[int]:
    """The processes that a process has started and that are alive, the oldest first."""
    if not LINUX:
        words = subprocess.run(("pgrep", "-P", str(pid)), capture_output=True, text=True, check=False).stdout.split()
        return sorted(filter(alive, map(int, words)))
    states = ((int(entry.name), _state_of(entry)) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return sorted(child for child, state in states if state[1:2] == [str(pid)] and state[0] != "Z")


def alive(pid: int) -> bool:
    if not LINUX:
        words = ("ps", "-o", "stat=", "-p", str(pid))
        return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()[:1] not in ("", "Z")
    return _state_of(Path(f"/proc/{pid}"))[:1] not in ([], ["Z"])


def _state_of(process: Path) -> list[str]:
    """State, parent and so on (proc(5), behind the name); [] when it is gone."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def until(check: Callable[[], Any], seconds: float, what: str, more: Callable[[], str] = str) -> None:
    """Waits for an event, but not for ever."""
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} {more()}")
        time.sleep(0.01)


# ---------------------------------------------------------------------------- the checks


def shot_of(outcome: Line) -> str:
    """What the shot's Livefire-Shot header says."""
    return f"{outcome['exchange']}.{outcome['copy']}.{outcome['lap']}"


def witness_problems(requests: Sequence[Line], outcomes: Sequence[Line], last_allowed_ns: int | None) -> list[str]:
    """What the target saw, beside what is booked. `last_allowed_ns`: when load must have ended, None = it may go on."""
    problems = []
    received = Counter(request["fields"].get("livefire-shot", "?") for request in requests)
    booked = {shot_of(o): o for o in outcomes}
    if twice := [shot for shot, times in received.items() if times > 1]:
        problems.append(f"fired twice: {twice[:5]}")
    if unclaimed := [shot for shot in received if shot not in booked]:
        problems.append(f"fired, and not in the books: {unclaimed[:5]}")
    if denied := [shot for shot in received if shot in booked and (booked[shot]["failure"] or "").startswith("shed")]:
        problems.append(f"received, but booked as never sent: {denied[:5]}")
    if lost := [shot for shot, o in booked.items() if o["status"] and shot not in received]:
        problems.append(f"booked as answered, but never received: {lost[:5]}")
    if last_allowed_ns is not None and requests:
        over = max(request["at_ns"] - request["late_ns"] for request in requests) - last_allowed_ns
        if over > SLACK_NS:
            problems.append(f"a request came {over / 1e9:.2f} s after load had to end")
    return problems


def account_problems(outcomes: Sequence[Line], windows: Sequence[Line], summed: summary.Summary) -> list[str]:
    """Claims, outcomes and windows count the same shots."""
    problems = []
    if not summed.balanced:
        problems.append(f"the account does not balance: {summed}")
    if len({shot_of(o) for o in outcomes}) != len(outcomes):
        problems.append("a shot has more than one outcome")
    failures = Counter(o["failure"] for o in outcomes)
    whole = [w for w in windows if w["route"] == "*"]
    for name, planned, listed, windowed in (
        ("planned", summed.planned, len(outcomes), sum(w["offered"] for w in whole)),
        ("unknown", summed.unknown, failures["unknown"], sum(w["unknown"] for w in whole)),
        (
            "shed", summed.shed, sum(n for failure, n in failures.items() if (failure or "").startswith("shed")),
            sum(w["shed"] for w in whole),
        ),
        ("answered", summed.answered, failures[None], summed.answered),
    ):  # fmt: skip
        if not planned == listed == windowed:
            problems.append(f"{name}: {planned} in the account, {listed} in the outcomes, {windowed} in the windows")
    return problems


def file_problems(run_dir: Path) -> list[str]:
    """Every log file of a run is whole and undamaged."""
    problems = []
    bus = FileBus(run_dir)
    for topic in (topics.CLAIMS, topics.OUTCOMES, topics.BEATS):
        for worker in bus.partitions(topic):
            with bus.reader(topic, worker) as reader:
                while reader.read():
                    pass
                if not reader.ended or reader.corrupt_frames:
                    problems.append(f"{topic}-{worker} is not whole")
    return problems


def run_problems(
    folder: Path, run_dir: Path, requests: Sequence[Line], last_allowed_ns: int | None = None
) -> tuple[list[str], list[Line], summary.Summary]:
    """Everything that must hold of a run whose processes are gone, asked for by the commands that users have."""
    problems: list[str] = []
    outcomes, _ = told(folder, "outcomes", run_dir.name, "--json", problems=problems)
    windows, _ = told(folder, "windows", run_dir.name, "--json", "--every", "1s", problems=problems)
    if found := recover(run_dir):
        problems.append(f"looking twice changes it: {found} more are unknown")
    summed, _ = summary.read(run_dir)
    problems += witness_problems(requests, outcomes, last_allowed_ns)
    problems += account_problems(outcomes, windows, summed)
    problems += file_problems(run_dir)
    return problems, outcomes, summed
