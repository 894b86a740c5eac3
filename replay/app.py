"""Puts a finite replay together: judges what is asked, starts the workers, conducts them, counts what came of it."""

from __future__ import annotations

import ipaddress
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import msgspec

from bus.logfile import FileBus
from replay import summary as summaries
from replay import targets
from replay.clock import clock_of
from replay.conductor import Conductor
from replay.recording import Recording, refuse_unsafe
from replay.recover import recover
from replay.settings import LEAD_NS, RENEW_NS, ReplaySettings, WorkerSettings, check
from replay.summary import Summary
from wire import ids, topics
from wire.config import ConfigError
from wire.records import Beat

_START_S: Final = 30.0
_POLL_S: Final = 0.05


class Process(Protocol):
    """The part of subprocess.Popen that is used. Its stdin stays open: the worker ends when it closes."""

    stdin: Any
    pid: int

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def kill(self) -> None: ...


#: name, argv, the first line for its stdin (with its newline)
Spawn = Callable[[str, Sequence[str], bytes], Process]
OnProgress = Callable[[dict[str, Beat]], None]
Stop = Callable[[], str | None]


def anchor_ns() -> int:
    """What to add to the monotonic clock to get unix time: read once by each process that needs it."""
    return time.time_ns() - time.monotonic_ns()


def spawn_plain(name: str, argv: Sequence[str], first_line: bytes) -> Process:
    process = subprocess.Popen(argv, stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(first_line)
    process.stdin.flush()
    return process


def worker_settings(settings: ReplaySettings, run_id: str, index: int, lap_ns: int, pinned: str) -> WorkerSettings:
    """One worker's part: caps are divided, everything else is the same on all."""
    return WorkerSettings(
        run_id=run_id,
        run_dir=str(settings.runs / run_id),
        worker=f"w{index}",
        index=index,
        workers=settings.workers,
        recording=str(settings.recording),
        target=settings.target,
        pinned=pinned,
        named_sources=settings.named_sources,
        refused_sources=settings.refused_sources,
        speed=settings.speed,
        spread_ns=settings.spread_ns,
        laps=settings.laps,
        lap_ns=lap_ns,
        max_rate=settings.max_rate / settings.workers,
        max_open=max(settings.max_open // settings.workers, 1),
        timeout_ns=settings.timeout_ns,
        late_ns=settings.late_ns,
        lease_ns=settings.lease_ns,
        key_id=settings.key_id,
        key_hex=settings.key_hex,
        marker_lifetime_s=settings.marker_lifetime_s,
        accounts=str(settings.accounts or ""),
        allow_unsafe=settings.allow_unsafe,
        skip_unsafe=settings.skip_unsafe,
        host=settings.host,
        length_tolerance=settings.length_tolerance,
    )


def worker_argv() -> tuple[str, ...]:
    return (sys.executable, "-m", "replay.worker")


def first_line(settings: WorkerSettings) -> bytes:
    return msgspec.json.encode(settings) + b"\n"


def run(
    settings: ReplaySettings,
    spawn: Spawn = spawn_plain,
    on_progress: OnProgress | None = None,
    stop: Stop | None = None,
) -> Summary:
    """A finite replay, to its end. `stop` is asked every 50 ms; a text stops the run with it as reason.

    Raises ConfigError or BusError, before the first shot, for what must not or cannot be run.
    A worker that dies is started once more; what it had claimed and not booked is `unknown`.
    """
    check(settings)
    recording = Recording(settings.recording)
    survey = recording.survey()
    if not (settings.allow_unsafe or settings.skip_unsafe):
        refuse_unsafe(survey, settings.recording)
    if settings.skip_unsafe and survey.unsafe_count == survey.exchanges:
        raise ConfigError(f"{settings.recording}: every request may change state; with --skip-unsafe nothing is left")
    settings = _with_sources(settings, recording)
    target = targets.admit(
        settings.target,
        allowed=settings.allowed_targets,
        refused_sources=settings.refused_sources,
        named_sources=settings.named_sources,
    )
    clock = clock_of(anchor_ns())
    run_id = settings.run_id or ids.ulid(clock())
    run_dir = settings.runs / run_id
    run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    asked = msgspec.to_builtins(settings, enc_hook=str)
    del asked["key_hex"]
    _write_once(run_dir / "run.json", msgspec.json.format(msgspec.json.encode({**asked, "run_id": run_id}), indent=2))
    used = _cpu_s()
    conductor = Conductor(FileBus(run_dir), run_id, clock, lease_ns=settings.lease_ns)
    crew = _Crew(settings, spawn, run_id, survey.lap_ns, target.address)
    reason = "done"
    try:
        conductor.renew()
        crew.start()
        reason = _conduct(crew, conductor, clock, settings, on_progress, stop)
    finally:
        crew.end()
        beats = conductor.beats()
        conductor.close(reason if reason in ("done", "failed") else "stopped")
    recover(run_dir)
    summary, _ = summaries.read(run_dir)
    summary.run_id = run_id
    summary.reason = next((beat.reason for beat in beats.values() if beat.state == "failed"), reason)
    own, children = (now - before for now, before in zip(_cpu_s(), used, strict=True))
    summary.cpu_s = round(own + max(children, sum(beat.cpu_s for beat in beats.values())), 3)
    return summary


def _with_sources(settings: ReplaySettings, recording: Recording) -> ReplaySettings:
    """Where the recording was captured is refused, too. Who writes that very address as the target has named it; a name
    that happens to lead there has not."""
    host, _ = targets.split_url(settings.target)
    try:
        ipaddress.ip_address(host)
        return settings
    except ValueError:
        refused = (*settings.refused_sources, *recording.manifest.servers)
        return msgspec.structs.replace(settings, refused_sources=refused)


class _Crew:
    """The worker processes of one run."""

    def __init__(self, settings: ReplaySettings, spawn: Spawn, run_id: str, lap_ns: int, pinned: str) -> None:
        self._spawn = spawn
        self._settings = {
            index: worker_settings(settings, run_id, index, lap_ns, pinned) for index in range(settings.workers)
        }
        self._bus = FileBus(settings.runs / run_id)
        self.processes: dict[int, Process] = {}
        self.restarted: set[int] = set()

    def start(self) -> None:
        for index in self._settings:
            self._start(index)

    def _start(self, index: int) -> None:
        settings = self._settings[index]
        self.processes[index] = self._spawn(settings.worker, worker_argv(), first_line(settings))

    @property
    def names(self) -> set[str]:
        return {settings.worker for settings in self._settings.values()}

    def restart_dead(self) -> bool:
        """Start each worker that died, once. False when all have left."""
        running = False
        for index, process in list(self.processes.items()):
            code = process.poll()
            if code is None:
                running = True
            elif code not in (0, 2) and index not in self.restarted and not self._ended(self._settings[index].worker):
                self.restarted.add(index)
                _close_stdin(process)
                self._start(index)
                running = True
        return running

    def _ended(self, worker: str) -> bool:
        """Whether its outcomes have an end mark: it left on purpose, with its books in order."""
        if worker not in self._bus.partitions(topics.OUTCOMES):
            return False
        with self._bus.reader(topics.OUTCOMES, worker) as reader:
            while reader.read():
                pass
            return reader.ended

    def refused(self) -> bool:
        return any(process.poll() == 2 for process in self.processes.values())

    def end(self) -> None:
        """Every worker leaves: the end of stdin says so, and what does not listen is killed."""
        for process in self.processes.values():
            _close_stdin(process)
        for process in self.processes.values():
            try:
                process.wait(5.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _conduct(
    crew: _Crew,
    conductor: Conductor,
    clock: Callable[[], int],
    settings: ReplaySettings,
    on_progress: OnProgress | None,
    stop: Stop | None,
) -> str:
    begun = time.monotonic()
    next_renewal = clock() + RENEW_NS
    stepped = False
    reason = "done"
    while True:
        now = clock()
        if now >= next_renewal:
            conductor.renew()
            next_renewal = now + RENEW_NS
            if on_progress is not None:
                on_progress(conductor.beats())
        if not stepped:
            ready = {name for name, beat in conductor.beats().items() if beat.state == "ready"}
            if ready >= crew.names:
                conductor.step(0, settings.copies, clock() + LEAD_NS, reason="replay")
                stepped = True
            elif crew.refused() or time.monotonic() - begun > _START_S:
                raise ConfigError("a worker could not start; the line above says why")
        if reason == "done":
            try:
                asked = stop() if stop is not None else None
                time.sleep(_POLL_S)
            except KeyboardInterrupt:
                asked = "interrupted"
            if asked:
                reason = asked
                conductor.stop(asked)
                crew.restarted |= set(crew.processes)
        else:
            time.sleep(_POLL_S)
        if not crew.restart_dead():
            return reason


def _close_stdin(process: Process) -> None:
    if process.stdin is not None:
        try:
            process.stdin.close()
        except OSError:
            pass


def _cpu_s() -> tuple[float, float]:
    """CPU seconds of this process, and of its children that have ended (and of theirs)."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime, children.ru_utime + children.ru_stime


def _write_once(path: os.PathLike[str], data: bytes) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    with os.fdopen(fd, "wb") as file:
        file.write(data)


__all__ = ["Process", "Spawn", "first_line", "run", "spawn_plain", "worker_argv", "worker_settings"]
