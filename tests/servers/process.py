"""A server of a test's own: started on a free loopback port, killed, frozen, thawed, started again on the same data."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import IO, ClassVar, NamedTuple, Self

_KEEPER = Path(__file__).with_name("keeper.py")


class Missing(Exception):
    """A server's software is not here. One line that says how to get it."""


class Died(Exception):
    """A server did not start, or is not running. The end of what it wrote."""


class Command(NamedTuple):
    argv: list[str]
    env: dict[str, str] | None = None
    cwd: Path | None = None
    user: str = "-"


def cache() -> Path:
    """Where `make servers` puts software, and tests look for it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "livefire"


def free_port() -> int:
    """A port below the ephemeral range, so that no outgoing connection takes it between a kill and the next start."""
    try:
        low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        low = 32768
    for _ in range(200):
        port = random.randrange(max(10000, low - 15000), low)
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise Died("no free port on 127.0.0.1")


def rss_mb(pid: int) -> float:
    """Resident memory of a process in MB."""
    done = subprocess.run(("ps", "-o", "rss=", "-p", str(pid)), capture_output=True, text=True, check=False)
    return int(done.stdout or 0) / 1024


class Server:
    """What all servers have in common. A context manager: starts, and in the end kills and removes the data."""

    name: ClassVar[str]
    wait_s: ClassVar[float] = 60.0
    address: str

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"livefire-{self.name}-"))
        self._keeper: subprocess.Popen[bytes] | None = None
        self._group = 0

    def _command(self) -> Command:
        raise NotImplementedError

    def _ready(self) -> bool:
        raise NotImplementedError

    @property
    def pid(self) -> int:
        """The process that serves."""
        if self._keeper is None:
            raise Died(f"{self.name} is not running")
        return self._group

    @property
    def running(self) -> bool:
        return self._keeper is not None and self._keeper.poll() is None

    def launch(self, *, stdin: int | IO[bytes] | None = subprocess.DEVNULL, stdout: int | None = None) -> None:
        """Starts, and does not wait until it answers."""
        assert not self.running, f"{self.name} is running already"
        self.folder.mkdir(exist_ok=True)
        command = self._command()
        read, write = os.pipe()
        with os.fdopen(read, "rb") as told, (self.folder / "stdout.log").open("ab") as log:
            argv = (sys.executable, "-I", "-S", _KEEPER, write, os.getpid(), self.folder, command.user, *command.argv)
            self._keeper = subprocess.Popen(
                tuple(map(str, argv)), env=command.env, cwd=command.cwd, stdin=stdin, stdout=stdout or log, stderr=log,
                pass_fds=(write,), start_new_session=True,
            )  # fmt: skip
            os.close(write)
            self._group = int(told.readline() or 0)
        if not self._group:
            raise Died(f"{self.name} did not start: {self.tail()}")

    def start(self) -> Self:
        """Starts on the data that is there, and returns when it answers."""
        self.launch()
        deadline = time.monotonic() + self.wait_s
        while not self._ready():
            if not self.running or time.monotonic() > deadline:
                self.kill()
                raise Died(f"{self.name} did not start: {self.tail()}")
            time.sleep(0.05)
        return self

    def _signal(self, number: int) -> None:
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._group, number)

    def kill(self) -> None:
        """kill -9, and returns when it is gone. The data stays."""
        self._signal(signal.SIGKILL)
        self._wait(20)

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """Ends it in peace; killed when that takes longer than 30 s. The data stays."""
        self.thaw()
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)  # a launcher would leave before its server
        try:
            self._wait(30)
        except subprocess.TimeoutExpired:
            self.kill()

    def _wait(self, timeout_s: float) -> None:
        if self._keeper is not None:
            self._keeper.wait(timeout_s)
            self._keeper = None

    def close(self) -> None:
        """Kills it and removes its data."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def rss_mb(self) -> float:
        return rss_mb(self.pid)

    def tail(self) -> str:
        """The end of what it wrote."""
        logs = sorted(path for path in self.folder.rglob("*.log") if path.is_file())
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-3000:]}" for log in logs)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
