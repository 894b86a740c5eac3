"""The workers of a run: started, watched, ended. Their stdin is their lifeline."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import IO, Protocol

import msgspec

from replay.settings import WorkerSettings


class Process(Protocol):
    """A Popen, or what a supervisor gives instead."""

    @property
    def stdin(self) -> IO[bytes] | None: ...

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


Spawn = Callable[[str, Sequence[str], bytes], Process]


def plain_spawn(name: str, argv: Sequence[str], first_line: bytes) -> Process:
    """Without a supervisor: a child in a session of its own, so that Ctrl-C reaches us alone."""
    child = subprocess.Popen(list(argv), stdin=subprocess.PIPE, start_new_session=True)
    assert child.stdin is not None
    try:
        child.stdin.write(first_line.rstrip(b"\n") + b"\n")
        child.stdin.flush()
    except BrokenPipeError:
        pass  # it is gone already, which `gone` will say
    return child


class Fleet:
    """Use as a context manager: whatever happens, no worker stays."""

    def __init__(self, spawn: Spawn, workers: Sequence[WorkerSettings], *, prefix: str = "") -> None:
        self._spawn = spawn
        self._settings = {settings.worker: settings for settings in workers}
        self._prefix = prefix
        self._processes: dict[str, Process] = {}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._settings)

    def start(self) -> None:
        argv = [sys.executable, "-m", "replay.worker"]
        for name, settings in self._settings.items():
            line = msgspec.json.encode(settings)
            self._processes[name] = self._spawn(f"{self._prefix}worker-{name}", argv, line)

    def gone(self) -> dict[str, str]:
        """Workers whose process ended, and how."""
        ended = {}
        for name, process in self._processes.items():
            code = process.poll()
            if code is not None:
                ended[name] = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        return ended

    @property
    def all_gone(self) -> bool:
        return all(process.poll() is not None for process in self._processes.values())

    def bounds(self) -> dict[str, str]:
        """By which bounds of their own workers fire less than the plan allows: none, these are the plan's."""
        return {}

    def failed(self) -> dict[str, str]:
        """Workers that ended otherwise than with exit code 0."""
        return {name: how for name, how in self.gone().items() if how != "exit code 0"}

    def close(self, grace_s: float = 3.0) -> None:
        for process in self._processes.values():
            if process.stdin is not None:
                try:
                    process.stdin.close()
                except OSError:
                    pass
        for process in self._processes.values():
            for end in (None, process.terminate, process.kill):
                if end is not None:
                    end()
                try:
                    process.wait(grace_s)
                    break
                except subprocess.TimeoutExpired:
                    continue

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
