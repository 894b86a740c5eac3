"""The one supervisor of processes: what it starts ends with it, however it ends.

A child's stdin is its lifeline: it is held open here and nowhere else, so that a child sees its end when this
process is gone, also after kill -9. Children get a session of their own: Ctrl-C reaches the supervisor alone,
which then ends them in order, newest first.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType

log = logging.getLogger("livefire.supervisor")


class Supervisor:
    """Starts processes and ends them. Use it as a context manager."""

    def __init__(self, log_dir: Path | None = None, grace_s: float = 3.0) -> None:
        """`log_dir` takes `<name>.err` of each child; without one they write to our stderr."""
        self._log_dir = log_dir
        self._grace_s = grace_s
        self._children: list[tuple[str, subprocess.Popen[bytes]]] = []

    def spawn(
        self,
        name: str,
        argv: Sequence[str],
        first_line: bytes = b"",
        *,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        output: bool = False,
    ) -> subprocess.Popen[bytes]:
        """Start a child. `first_line` is written to its stdin, which then stays open.

        `output`: its stdout is a pipe for the caller; otherwise it goes where stderr goes.
        """
        errors: int | None = None
        if self._log_dir is not None:
            self._log_dir.mkdir(parents=True, exist_ok=True)
            errors = os.open(self._log_dir / f"{name}.err", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            child = subprocess.Popen(
                list(argv),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if output else (errors if errors is not None else sys.stderr.fileno()),
                stderr=errors,
                cwd=folder,
                env={**os.environ, **environment} if environment is not None else None,
                start_new_session=True,
            )
        finally:
            if errors is not None:
                os.close(errors)
        self._children.append((name, child))
        log.info("started %s, pid %d", name, child.pid)
        if first_line:
            assert child.stdin is not None
            try:
                child.stdin.write(first_line if first_line.endswith(b"\n") else first_line + b"\n")
                child.stdin.flush()
            except BrokenPipeError:
                log.warning("%s ended before it read its settings", name)
        return child

    def errors_of(self, name: str, lines: int = 5) -> list[str]:
        """The last lines that a child wrote to its log."""
        if self._log_dir is None or not (self._log_dir / f"{name}.err").exists():
            return []
        return (self._log_dir / f"{name}.err").read_text("utf-8", "replace").strip().splitlines()[-lines:]

    def ended(self) -> list[tuple[str, int]]:
        """Children that are gone, with their exit codes (negative: the signal)."""
        return [(name, child.returncode) for name, child in self._children if child.poll() is not None]

    def stop(self, child: subprocess.Popen[bytes], grace_s: float | None = None) -> int:
        """End one child: close its stdin, then SIGTERM, then SIGKILL to it and what it started."""
        grace = self._grace_s if grace_s is None else grace_s
        if child.stdin is not None:
            try:
                child.stdin.close()
            except OSError:
                pass
        for wait_s, signal_number in ((grace / 2, signal.SIGTERM), (grace / 2, signal.SIGKILL)):
            try:
                return child.wait(wait_s)
            except subprocess.TimeoutExpired:
                self._kill(child, signal_number)
        return child.wait()

    def _kill(self, child: subprocess.Popen[bytes], signal_number: signal.Signals) -> None:
        try:
            if signal_number is signal.SIGKILL:
                os.killpg(child.pid, signal_number)
            else:
                child.send_signal(signal_number)
        except ProcessLookupError:
            pass

    def stop_all(self) -> None:
        """End all children, newest first."""
        for _, child in reversed(self._children):
            if child.poll() is None and child.stdin is not None:
                try:
                    child.stdin.close()
                except OSError:
                    pass
        for name, child in reversed(self._children):
            code = self.stop(child)
            log.info("%s ended with %d", name, code)

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A second Ctrl-C must not leave children behind.
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self.stop_all()
        finally:
            signal.signal(signal.SIGINT, previous)


class StopFlag:
    """SIGINT, SIGTERM and SIGHUP as a question to ask: `flag()` is True once one of them arrived."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self) -> bool:
        return self.asked

    def install(self) -> StopFlag:
        signal.signal(signal.SIGINT, self._set)
        signal.signal(signal.SIGTERM, self._set)
        _on_hangup(self._set)
        return self

    def with_stdin(self) -> StopFlag:
        """Also True once stdin has closed: the supervisor that held it is gone."""

        def wait() -> None:
            # Not sys.stdin: a thread that holds its lock at exit aborts the interpreter.
            while os.read(0, 4096):
                pass
            self.asked = True

        threading.Thread(target=wait, daemon=True).start()
        return self

    def _set(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt  # asked twice: do not wait any longer
        self.asked = True


def terminate_as_interrupt() -> None:
    """SIGTERM and SIGHUP end this process as Ctrl-C does: through its `finally` blocks."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    _on_hangup(interrupt)


def _on_hangup(what: Callable[[int, FrameType | None], None]) -> None:
    """When the terminal is closed (an ssh session that breaks), unless that was to be outlived: nohup."""
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, what)
