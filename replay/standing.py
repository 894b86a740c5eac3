"""A worker that stands by for runs of others: idle on the fleet's bus until a plan comes that it may and can carry out.

It fires nothing itself. Each run is a process of its own (`replay.worker`), whose stdin is held here: when this process
is gone, the load ends. What a plan may ask for is bounded here, by what this machine's user said: targets, caps, keys.

Beats on the scope `fleet` say `idle` or `running`. A running one says by which bound of its own it fires less than the
plan allows (`reason`). An idle one also says how its last run ended (`run_id`, `reason`; "" = well), so that who missed
the moment learns it all the same.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from bus.address import KafkaSecurity, open_bus
from bus.ports import Bus, BusHeld, Writer
from replay import targets
from replay.away import Away
from replay.clock import NowNs
from replay.hearing import FLEET, TURN_NS, FleetControl, made_ms
from replay.settings import MS_NS, SECOND_NS, WorkerSettings, check_plan
from wire import topics
from wire.config import ConfigError
from wire.ids import ulid
from wire.records import Action, Beat, Control, End, Manifest

BEAT_NS: Final = SECOND_NS // 2
_TICK_S: Final = 0.05
_HELD_NS: Final = 6 * SECOND_NS  # the hold of a killed worker of this name lapses within this
_LEAVE_S: Final = 10.0
_CUT_NS: Final = SECOND_NS
_DAYS_MS: Final = 2 * 86_400_000  # so long what was said to all stays
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")


class StandingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What this machine's user allows. `targets`: http://host:port, host:port or CIDR; never empty."""

    bus: str
    name: str
    targets: tuple[str, ...]
    folder: Path  # its recordings, while they are needed
    key_id: str
    key_hex: str
    mask_hex: str = ""  # the key that masks exemplars
    security: KafkaSecurity | None = None
    max_rate: float = 0.0  # 0 = what the plan says
    max_open: int = 0
    accounts: Path | None = None
    once: bool = False


class Refused(Exception):
    """A plan that is not carried out; the text is one line."""


class Standing:
    """Raises ConfigError or BusError at once for what cannot be; afterwards it stands a bus that is away."""

    def __init__(self, settings: StandingSettings, now: NowNs, tell: Callable[[str], None]) -> None:
        if not _NAME.fullmatch(settings.name):
            raise ConfigError(f"--name {settings.name!r}: letters, digits and _ . -, at most 63")
        if not settings.targets:
            raise ConfigError("a worker needs to be told where it may fire: --target http://host:port")
        self._settings, self._now, self._tell = settings, now, tell
        bus = open_bus(settings.bus, FLEET, settings.security)
        self._bus = bus
        manifest = Manifest(topics.BEATS, settings.name, FLEET, now(), "livefire worker")
        self._name = _writer(lambda: bus.writer(topics.BEATS, settings.name, manifest), now)  # no other has it now
        self._beats = BeatLog(bus, settings.name, now)
        self._control = FleetControl(bus, now())
        self._away = Away(now)
        self._child: subprocess.Popen[bytes] | None = None
        self._files: list[Path] = []
        self._run_id = ""
        self._reason = ""
        self._bound = ""
        self._cut_ns = 0  # when the run's process is cut off, if it has not left; 0 = it goes on
        self._beat_ns = 0
        self._runs = 0

    def run(self, stop: Callable[[], bool]) -> int:
        """Until `stop()`, or after one run if that was asked for. The exit code."""
        try:
            while not stop():
                self._turn()
                if self._settings.once and self._runs and self._child is None:
                    self._away.attempt(self._beat)
                    return 1 if self._reason else 0
                time.sleep(_TICK_S)
            return 0
        finally:
            self._end_child("the worker was told to leave")
            self._away.attempt(self._beats.close)
            self._away.attempt(self._name.close)
            self._control.close()
            self._bus.close()

    def _turn(self) -> None:
        if self._child is not None and self._child.poll() is not None:
            self._ended(self._child)
        if self._child is not None and self._cut_ns and self._now() >= self._cut_ns:
            self._lifeline("told to stop")
        self._away.attempt(self._hear)
        if self._now() - self._beat_ns >= BEAT_NS:
            self._away.attempt(self._beat)

    def _hear(self) -> None:
        for control in self._control.poll():
            if control.action is Action.PLAN:
                self._plan(control)
            elif control.action is Action.STOP and self._child is not None and control.run_id in (self._run_id, "*"):
                # The run hears it, too, and leaves in order; this is for one that does not listen (it may be fetching).
                self._cut_ns = self._cut_ns or self._now() + _CUT_NS

    # -- a plan

    def _plan(self, control: Control) -> None:
        try:
            asked = msgspec.json.decode(control.plan, type=WorkerSettings)
        except msgspec.MsgspecError as error:
            self._tell(f"a plan of run {control.run_id[:40]!r} cannot be read: {error}: is that livefire newer?")
            return
        if asked.worker != self._settings.name:
            return
        try:
            settings = self._judged(control, asked)
            self._bound = _bound(asked, settings)
            self._start(settings)
        except (Refused, ConfigError) as error:
            self._tell(f"run {asked.run_id[:40]}: refused: {error}")
            if self._child is None:
                self._run_id, self._reason = asked.run_id[:40], f"refused: {error}"
                self._away.attempt(self._beat)
            return
        self._tell(f"run {asked.run_id}: {settings.max_rate:g}/s at most to {settings.target}")

    def _judged(self, control: Control, asked: WorkerSettings) -> WorkerSettings:
        """The settings to run with: the plan's, inside what this machine's user allows. Raises Refused, ConfigError."""
        mine = self._settings
        if self._child is not None:
            raise Refused(f"worker {mine.name} is on run {self._run_id}")
        check_plan(asked)
        late_ns = self._now() - control.until_ns
        if late_ns > 0:
            raise Refused(f"the plan is stale since {late_ns / SECOND_NS:.0f} s (do the machines' clocks agree?)")
        if asked.key_id != mine.key_id:
            raise Refused(
                f"it signs with marker key {asked.key_id}, worker {mine.name} has {mine.key_id}: give both one key file"
            )
        found = targets.admit(asked.target, allowed=mine.targets)
        if asked.pinned and asked.pinned != found.address:
            host, port = targets.split_url(asked.target)
            if asked.pinned not in targets.resolve(host, port):
                raise Refused(
                    f"{asked.target} is {found.address} on worker {mine.name}, and {asked.pinned} to the drill"
                )
            found = targets.admit(asked.target, allowed=mine.targets, pinned=asked.pinned)
        if asked.accounts and mine.accounts is None:
            raise Refused(f"it wants seeded accounts: start worker {mine.name} with --accounts FILE")
        recording = mine.folder / f"{asked.run_id}.lf"
        return msgspec.structs.replace(
            asked,
            run_dir="",
            bus=mine.bus,
            security=mine.security,
            recording=str(recording),
            pinned=found.address,
            key_hex=mine.key_hex,
            mask_hex=mine.mask_hex,
            accounts=str(mine.accounts) if asked.accounts else "",
            max_rate=min(asked.max_rate, mine.max_rate or asked.max_rate),
            max_open=min(asked.max_open, mine.max_open or asked.max_open),
        )

    # -- the run's process

    def _start(self, settings: WorkerSettings) -> None:
        """Raises Refused when this machine cannot: its disk is full, say."""
        said = self._settings.folder / f"{settings.run_id}.err"
        self._files = [said, Path(settings.recording)]
        try:
            self._settings.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with open(said, "wb") as errors:
                child = subprocess.Popen(
                    (sys.executable, "-m", "replay.worker"), stdin=subprocess.PIPE, stdout=errors, stderr=errors,
                    start_new_session=True,
                )  # fmt: skip
        except OSError as error:
            raise Refused(f"its process cannot be started: {error}") from None
        assert child.stdin is not None
        try:
            child.stdin.write(msgspec.json.encode(settings) + b"\n")
            child.stdin.flush()
        except BrokenPipeError:
            pass  # it is gone already, which the next turn sees
        self._child, self._run_id, self._reason, self._cut_ns = child, settings.run_id, "", 0
        self._away.attempt(self._beat)

    def _ended(self, child: subprocess.Popen[bytes]) -> None:
        code = child.wait()
        said = _text(self._files[0]).strip().splitlines()
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        self._reason = "" if code == 0 else f"{how}: {said[-1]}" if said else how
        self._tell(f"run {self._run_id}: {self._reason or 'done'}")
        assert child.stdin is not None
        child.stdin.close()
        for path in self._files:
            path.unlink(missing_ok=True)
        self._child = None
        self._runs += 1
        self._away.attempt(self._beat)

    def _lifeline(self, why: str) -> None:
        assert self._child is not None and self._child.stdin is not None
        self._cut_ns = 0
        self._tell(f"run {self._run_id}: {why}")
        try:
            self._child.stdin.close()
        except OSError:
            pass

    def _end_child(self, why: str) -> None:
        if self._child is None:
            return
        self._lifeline(why)
        try:
            self._child.wait(_LEAVE_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
        self._ended(self._child)

    # -- signs of life

    def _beat(self) -> None:
        now = self._now()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        beat = Beat(
            self._run_id, self._settings.name, now, os.getpid(), -1, 0, 0, 0, 0, 0, usage.ru_utime + usage.ru_stime,
            state="idle" if self._child is None else "running",
            reason=self._reason if self._child is None else self._bound,
        )  # fmt: skip
        self._beats.write(beat)
        self._beat_ns = now


class BeatLog:
    """Where a worker that stands by for months writes its beats: hour by hour a partition of its own, `<name>:<ULID>`.
    Those before the last are discarded, so that a folder does not grow; so is what was said to all days ago."""

    def __init__(self, bus: Bus, name: str, now: NowNs) -> None:
        self._bus, self._name, self._now = bus, name, now
        self._writer: Writer | None = None
        self._partition = ""
        self._since_ns = 0

    def write(self, beat: Beat) -> None:
        """Raises BusAway: call again, or with a later one."""
        if self._writer is None or beat.at_ns - self._since_ns >= TURN_NS:
            self._turn_over(beat.at_ns)
        assert self._writer is not None
        self._writer.write_records((beat,), first_ns=beat.at_ns, last_ns=beat.at_ns)

    def _turn_over(self, now_ns: int) -> None:
        partition = f"{self._name}:{ulid(now_ns)}"
        manifest = Manifest(topics.BEATS, partition, FLEET, now_ns, "livefire worker")
        writer = self._bus.writer(topics.BEATS, partition, manifest)
        before, last = self._writer, self._partition
        self._writer, self._partition, self._since_ns = writer, partition, now_ns
        if before is not None:
            before.end(End(FLEET, last, 0, 0, 0))
        for old in self._bus.partitions(topics.BEATS):
            if old.startswith(f"{self._name}:") and old not in (partition, last):
                self._discard(topics.BEATS, old)
        for said in self._bus.partitions(topics.CONTROL):
            if made_ms(said) < now_ns // 1_000_000 - _DAYS_MS:
                self._discard(topics.CONTROL, said)

    def _discard(self, topic: str, partition: str) -> None:
        try:
            self._bus.discard(topic, partition)
        except BusHeld:
            pass  # its writer is there yet

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _bound(asked: WorkerSettings, given: WorkerSettings) -> str:
    """By what this machine's user has less fired than a plan allows; "" = by nothing."""
    said = [
        f"{number:g}{unit} at most, as its --{option} says"
        for option, unit, number, wanted in (
            ("max-rate", "/s", given.max_rate, asked.max_rate),
            ("max-open", " requests at once", given.max_open, asked.max_open),
        )
        if number < wanted
    ]
    return f"fires {', '.join(said)}" if said else ""


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:  # somebody has tidied up
        return ""


def _writer(open_it: Callable[[], Writer], now: NowNs) -> Writer:
    """The partition of a worker that was killed is held for some seconds more."""
    deadline = now() + _HELD_NS
    while True:
        try:
            return open_it()
        except BusHeld as error:
            if now() >= deadline:
                raise ConfigError(f"another worker of this name is there already ({error}); --name another") from None
        time.sleep(200 * MS_NS / 1e9)
