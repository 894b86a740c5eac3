"""`livefire record --processes N`: N recorders share the interfaces, by the hash of a connection, and one folder.

Each is this command once more, told by its environment which of them it is. They are started one after the other,
so that the kernel's groups have them in the same order on every interface: then copies of a packet on two interfaces
come to the same one. A recorder tells how far it is on stdout, and ends when its stdin does.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Final, TextIO

import msgspec

from bus.logreader import LogReader
from bus.parts import parts_of
from bus.ports import BusError
from capture.privileges import become, give, user_of
from capture.progress import Progress
from capture.record import RecordingFailed
from capture.settings import RecordSettings
from livefire.supervisor import Supervisor
from wire.account import Account, Ledger
from wire.ids import ulid

_PLACE: Final = "LIVEFIRE_RECORDER_PLACE"
_START_S: Final = 30.0
_END_S: Final = 60.0
MAX_PROCESSES: Final = 16


class Place(msgspec.Struct, frozen=True):
    """Which of them this is."""

    process: int
    fanout: int
    recording: str


class _Told(msgspec.Struct):
    """A line of a recorder: how far it is, or at the end its account."""

    progress: Progress | None = None
    ledgers: dict[str, Ledger] | None = None
    notes: dict[str, int] | None = None


def place() -> Place | None:
    """None in a recorder that is alone, and in the one that starts the others."""
    text = os.environ.get(_PLACE)
    return msgspec.json.decode(text, type=Place) if text else None


def placed(settings: RecordSettings, mine: Place) -> RecordSettings:
    """With this process's share of the budget."""
    return msgspec.structs.replace(
        settings,
        process=mine.process,
        fanout=mine.fanout,
        recording=mine.recording,
        max_disk_bytes=settings.max_disk_bytes // settings.processes,
    )


def tell(now: Progress | None = None, account: Account | None = None, *, to: TextIO | None = None) -> None:
    """Say to who started this process how far it is, or what came of it."""
    told = _Told(now, account.ledgers if account else None, account.notes if account else None)
    stream = to or sys.stdout
    stream.write(msgspec.json.encode(told).decode() + "\n")
    stream.flush()


def record_together(
    settings: RecordSettings,
    arguments: Sequence[str],
    stop: Callable[[], bool],
    progress: Callable[[Progress], None],
    *,
    now_ns: int,
) -> Account:
    """Start this command's recorders, and wait until all have ended; their accounts together.

    `arguments` are those of the command line. Raises BusError when one of them does not begin, RecordingFailed when one
    fails later; the others are ended then.
    """
    folder, user = Path(settings.to), user_of(settings.user) if settings.user else None
    recording = _begun(folder) or ulid(now_ns)
    with tempfile.TemporaryDirectory(prefix="livefire-record-") as logs, Supervisor(Path(logs), _END_S) as supervisor:
        workers: list[_Worker] = []
        for process in range(settings.processes):
            mine = Place(process, os.getpid() * MAX_PROCESSES & 0xFFFF, recording)
            workers.append(_Worker(supervisor, f"recorder-{process}", arguments, mine))
        if user is not None:  # what it opens, looks at and removes from here on is theirs, too
            give(Path(logs), user, ("*.err",))
            become(user)
        next_told = time.monotonic()
        while any(worker.running for worker in workers):
            failed = next((worker for worker in workers if worker.failed), None)
            if failed is not None:
                break
            if stop():
                for worker in workers:
                    worker.end()
            if time.monotonic() >= next_told:
                next_told += 1.0
                progress(_sum([worker.latest for worker in workers]))
            time.sleep(0.05)
        for worker in workers:
            worker.end()
        total, failures = Account(), []
        for worker in workers:
            account, failure = worker.account()
            if account is not None:
                total.merge(account)
            if failure:
                failures.append(failure)
        progress(_sum([worker.latest for worker in workers]))
        if failures:
            raise RecordingFailed(failures[0], total)
        return total


class _Worker:
    def __init__(self, supervisor: Supervisor, name: str, arguments: Sequence[str], mine: Place) -> None:
        """Waits until it captures. Raises BusError when it does not."""
        self._supervisor, self._name = supervisor, name
        self._child = supervisor.spawn(
            name,
            [sys.executable, "-m", "livefire", *arguments],
            environment={_PLACE: msgspec.json.encode(mine).decode()},
            output=True,
        )
        self._account: Account | None = None
        self._heard = threading.Event()
        self.latest: Progress | None = None
        assert self._child.stdout is not None
        self._thread = threading.Thread(target=self._listen, args=(self._child.stdout,), daemon=True)
        self._thread.start()
        self._heard.wait(_START_S)
        if self.latest is None:
            raise self._error("did not begin")

    def _listen(self, lines: IO[bytes]) -> None:
        for line in lines:
            told = msgspec.json.decode(line, type=_Told)
            self.latest = told.progress or self.latest
            if told.ledgers is not None:
                self._account = Account(told.ledgers, told.notes)
            self._heard.set()
        self._heard.set()

    @property
    def running(self) -> bool:
        return self._child.poll() is None

    @property
    def failed(self) -> bool:
        return bool(self._child.poll())

    def end(self) -> None:
        """Its stdin is its lifeline."""
        if self._child.stdin is not None:
            with contextlib.suppress(OSError):
                self._child.stdin.close()

    def account(self) -> tuple[Account | None, str]:
        """Its account (None: it was killed), and why it failed; "" when it did not."""
        code = self._child.poll()  # what it ended with by itself
        self._supervisor.stop(self._child)
        self._thread.join(_END_S)
        failed = self._account is None or self._child.returncode
        what = f"was killed by signal {-code}" if code is not None and code < 0 else "failed"
        return self._account, str(self._error(what)) if failed else ""

    def _error(self, what: str) -> BusError:
        lines = self._supervisor.errors_of(self._name, 1)
        return BusError(lines[-1].removeprefix("livefire: ") if lines else f"{self._name} {what}")


def _begun(folder: Path) -> str:
    """The recording that is there already, to be gone on with; "" when there is none."""
    for part in _parts(folder):
        with LogReader(part) as reader:
            if reader.manifest is not None:
                return reader.manifest.owner_id
    return ""


def _parts(folder: Path) -> Iterator[Path]:
    if folder.is_dir() and any(folder.glob("raw-*.lf")):
        yield from parts_of(folder)


def _sum(parts: Sequence[Progress | None]) -> Progress:
    """How far all are together: times and words of the first, numbers of all."""
    known = [part for part in parts if part is not None]
    summed = {
        name: sum(getattr(part, name) for part in known)
        for name in (
            "exchanges", "exchanges_per_s", "connections", "file_bytes", "lost_packets", "shed", "written_bytes",
        )
    }  # fmt: skip
    first, full = known[0], any(part.full for part in known)
    return msgspec.structs.replace(first, source=f"{len(known)} processes, each {first.source}", full=full, **summed)
