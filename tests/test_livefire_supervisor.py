"""What a supervisor starts ends with it, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from livefire.supervisor import Supervisor

LIFELINE = "import sys; sys.stdin.read()"
STUBBORN = (
    "import pathlib, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "pathlib.Path('stubborn').touch(); time.sleep(60)"
)


def until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        pass
    if os.path.isdir("/proc/self"):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_children_end_with_the_block(tmp_path: Path) -> None:
    there = f"import os; os.chdir({str(tmp_path)!r});"
    with Supervisor(tmp_path, grace_s=0.4) as supervisor:
        polite = supervisor.spawn("polite", [sys.executable, "-c", LIFELINE])
        stubborn = supervisor.spawn("stubborn", [sys.executable, "-c", there + STUBBORN])
        assert until((tmp_path / "stubborn").exists), "it does not begin"
        assert polite.poll() is None and stubborn.poll() is None
    assert polite.returncode == 0
    assert stubborn.returncode == -signal.SIGKILL


def test_children_see_the_end_of_a_killed_supervisor() -> None:
    program = (
        "import sys, time\n"
        "from livefire.supervisor import Supervisor\n"
        f"child = Supervisor().spawn('x', [sys.executable, '-c', {LIFELINE!r}])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert alive(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert until(lambda: not alive(pid)), "the child outlived its killed supervisor"


def test_the_first_line_arrives_and_last_words_are_kept(tmp_path: Path) -> None:
    program = "import sys; print('got', sys.stdin.readline().strip(), file=sys.stderr)"
    with Supervisor(tmp_path) as supervisor:
        child = supervisor.spawn("talker", [sys.executable, "-c", program], b'{"a": 1}')
        assert child.wait(10) == 0
        assert supervisor.errors_of("talker") == ['got {"a": 1}']
        assert supervisor.ended() == [("talker", 0)]
