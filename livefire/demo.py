"""The demo: one drill of a small system, told as it happens. Every number comes from what happened.

The system is described by a file (`livefire.system`), the drill by the plan beside it: nothing here knows a route,
a field or a table of the shop.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from capture.choose import choose
from capture.settings import RecordSettings
from cleanse import app as cleansing
from cleanse.settings import CleanseSettings
from livefire import errors, keyring
from livefire.drilling import drill_and_tell, plan_with, report_of, tell_proof
from livefire.learned import learned
from livefire.recording import Recording, masked_line
from livefire.story import Story
from livefire.supervisor import Supervisor
from livefire.system import System
from livefire.tables import counted, table
from replay.summary import account_of
from wire.account import Account
from wire.config import ConfigError

RECORD_S: Final = 14.0
MARK: Final = ".livefire-demo"  # a folder without it is not ours to empty
_READY_S: Final = 15.0
_FLOWS: Final = 4  # learned values that are told


class DemoSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the demo works and what it drills."""

    system: Path
    folder: Path
    runs: Path
    engine: Literal["auto", "ring", "proxy"] = "auto"
    record_s: float = RECORD_S


class Demo:
    """One run of the demo. `run` returns the exit code; `figures` are all the numbers that were printed."""

    def __init__(self, settings: DemoSettings, story: Story) -> None:
        self.settings = settings
        self.story = story
        self.figures: dict[str, Any] = {}
        self.folder = settings.folder.resolve()
        self.relieved: set[str] = set()  # processes whose work is done
        self.disagreements: list[str] = []  # counts that should be equal and are not
        self.leaks: list[str] = []  # third parties that say themselves that stress traffic came

    def run(self) -> int:
        started = time.monotonic()
        _empty(self.folder)
        with Supervisor(self.folder / "logs") as supervisor:
            system = self._start(supervisor)
            self._record(supervisor, system)
            self._cleanse(supervisor, system)
            code = self._drill(supervisor, system)
            self._finish(supervisor, system)
        if self.disagreements and code == errors.OK:
            code = errors.INCONCLUSIVE
        if self.leaks:
            code = errors.VIOLATED
        self.figures["disagreements"] = self.disagreements
        self.figures["seconds"] = round(time.monotonic() - started, 1)
        self.figures["exit_code"] = code
        (self.folder / "figures.json").write_bytes(msgspec.json.format(msgspec.json.encode(self.figures)))
        if code != errors.OK:  # said last, because make, which may have run it, has 2 for each of them
            self.story.line(f"exit code {code} (docs/cli.md)")
        return code

    # -- 1

    def _start(self, supervisor: Supervisor) -> System:
        anywhere = RecordSettings(to="live.lf", interfaces=("lo",), proxies=(("127.0.0.1:1", "127.0.0.1:2"),),
                                  source=self.settings.engine)  # fmt: skip
        choice = choose(anywhere)
        system = System(self.settings.system, self.folder, proxied=choice.kind == "proxy")
        self.why_this_source = choice.why
        description = system.description
        self.story.chapter(f"start {description.name}: {' -> '.join(reversed(description.services))}")
        ring = keyring.new()
        self.keys = self.folder / "keys.json"
        keyring.save(self.keys, ring)
        environment = {**os.environ, "LIVEFIRE_SHADOW_KEYS": ring.shadow_keys()}
        system.start_services(supervisor, environment)
        for name in description.services:
            self.story.line(f"{name:<12} {system.places[f'{name}.at']}")
        return system

    # -- 2

    def _record(self, supervisor: Supervisor, system: System) -> None:
        self.story.chapter("record its traffic")
        self.story.line(self.why_this_source)
        self.live = self.folder / "live.lf"
        sources = recorder_sources(system, system.description.record)
        recorder = supervisor.spawn("recorder", self._command(["record", "--to", str(self.live), *sources]))
        self.recorders = [recorder]
        deadline = time.monotonic() + _READY_S
        while not self.live.exists():
            if recorder.poll() is not None or time.monotonic() > deadline:
                raise ConfigError(f"the recorder did not start: {' / '.join(supervisor.errors_of('recorder'))}")
            time.sleep(0.02)
        self.production = system.start_production(supervisor)
        self._watch(supervisor, lambda: f", {self.live.stat().st_size / 1e6:.1f} MB")
        recording = Recording(self.live)
        account = recording.account
        self.story.line(f"{recording.count:,} exchanges so far, and it goes on recording; "
                        f"account {'balanced' if account.balanced else 'NOT BALANCED'}")  # fmt: skip
        self.masked = masked_line(account)
        self.story.line(self.masked or "NOTHING WAS MASKED")

    def _watch(self, supervisor: Supervisor, more: Callable[[], str]) -> None:
        """Production goes on and is recorded for a while."""
        began = time.monotonic()
        while (passed := time.monotonic() - began) < self.settings.record_s:
            self.story.progress(f"recording production, {passed:.0f} of {self.settings.record_s:.0f} s{more()}")
            self._all_alive(supervisor)
            time.sleep(0.1)

    # -- 3

    def _cleanse(self, supervisor: Supervisor, system: System) -> None:
        self.story.chapter("cleanse and stamp")
        self.clean = self.folder / "clean.lf"
        entry = system.places[f"{system.description.entry}.at"]
        result = cleansing.cleanse(self.live, self.clean, CleanseSettings(server=(entry,)), until_ns=None)
        for line in cleansing.summary_lines(result):
            self.story.line(line)
        for line in learned(result.flows)[:_FLOWS]:
            self.story.line(f"  {line}")
        self.figures["cleanse"] = result.account.as_json()

    # -- 4 and 5

    def _drill(self, supervisor: Supervisor, system: System) -> int:
        self.story.chapter("drill, against the same system, while production goes on")
        places = {"recording": str(self.clean), "live": str(self.live), **system.places}
        plan = plan_with(system.path.parent / "plan.yaml", places)
        self.result = drill_and_tell(plan, self.keys, self.settings.runs, supervisor, self.story)
        self.figures["drill"] = self.result.as_dict()
        self.figures["entry"] = system.places[f"{system.description.entry}.at"]
        stopped = self.result.exit_code == errors.STOPPED
        return errors.OK if stopped else self.result.exit_code

    def _finish(self, supervisor: Supervisor, system: System) -> None:
        # Production first: then the recorder has seen the end of everything, and its books can be closed.
        supervisor.stop(self.production)
        for recorder in self.recorders:
            supervisor.stop(recorder, grace_s=8)
        self.story.chapter("account")
        self.figures["record"] = self._recorded().as_json()
        self.figures["replay"] = account_of(self.result.run_dir).as_json()
        stages = {name: self.figures[name] for name in ("record", "cleanse", "replay")}
        self.story.line(account_table(stages))
        unbalanced = [name for name, account in stages.items() if not account["balanced"]]
        self.disagreements += [f"the account of {name}" for name in unbalanced]
        self.story.line(f"NOT BALANCED: {', '.join(unbalanced)}" if unbalanced else "every account is balanced")
        self.story.line()
        tell_proof(self.result, self.story)
        reached = system.marked_requests()
        self.figures["third_parties_reached"] = reached
        for name, count in reached.items():
            if count is None:
                self.disagreements.append(f"the log of {name}, which holds nothing,")
            elif count:
                self.leaks.append(f"{name}, {counted(count, 'time')} by its own log")
            self.story.line(f"{name} reached by stress traffic: {'not known' if count is None else count}")
        self._more_proofs(supervisor)
        report = _near(report_of(self.result, self.folder / "report.html"))
        self.story.chapter(f"the result: {self.result.verdict.headline}")
        if self.leaks:
            self.story.line(f"VIOLATED: stress traffic reached {'; '.join(self.leaks)}")
        elif self.disagreements:
            self.story.line(f"counts that should agree do not: {'; '.join(self.disagreements)}")
        elif self.result.exit_code == errors.STOPPED:
            self.story.line("the last step is meant to be too much, and the guard to stop it: exit code 0")
        self.story.line(f"report: {report}")
        program = _near(Path(sys.argv[0]).absolute()) if Path(sys.argv[0]).name == "livefire" else "livefire"
        self.story.line(f"the recording: {program} show {_near(self._recording)}; the shots: {program} outcomes")

    @property
    def _recording(self) -> Path:
        return self.live

    def _recorded(self) -> Account:
        return Recording(self.live).account

    def _more_proofs(self, supervisor: Supervisor) -> None:
        """On one machine there is nothing more to prove."""

    def _command(self, arguments: list[str]) -> list[str]:
        return [sys.executable, "-m", "livefire", "--keys", str(self.keys), *arguments]

    def _all_alive(self, supervisor: Supervisor) -> None:
        for name, code in supervisor.ended():
            if name in self.relieved:
                continue
            words = " / ".join(supervisor.errors_of(name)) or "it said nothing"
            raise ConfigError(f"{name} ended with {code} in the middle of the demo: {words}")


def recorder_sources(system: System, services: Sequence[str]) -> list[str]:
    """How a recorder listens to these services: from the wire, or as the proxy before them."""
    arguments = ["--stdin-guard", "--engine", "proxy" if system.proxied else "ring"]
    for name in services:
        at, via = system.places[f"{name}.at"], system.places[f"{name}.via"]
        arguments += ["--proxy", f"{via}={at}"] if system.proxied else ["--port", at.rpartition(":")[2]]
    if not system.proxied:
        arguments += ["--interface", "lo"]
    mask = system.path.parent / "mask.yaml"
    return [*arguments, "--mask", str(mask)] if mask.exists() else arguments


def _reason(name: str) -> str:
    """'other_server' as 'other server', 'shed_stop' as 'shed (stop)'."""
    kind, _, why = name.partition("_")
    return f"shed ({why})" if kind == "shed" and why else name.replace("_", " ")


def account_table(stages: Mapping[str, Mapping[str, Any]]) -> str:
    """Each ledger of each stage: what it saw, and what became of all of it."""
    rows = []
    for stage, account in stages.items():
        for unit, ledger in account["ledgers"].items():
            if not ledger["seen"]:  # a proxy sees no packets
                continue
            reasons = {**ledger["drops"], **ledger["intentional"]}
            why = ", ".join(f"{n:,} {_reason(name)}" for name, n in sorted(reasons.items()))
            rows.append(
                (stage, unit, ledger["seen"], ledger["emitted"], sum(reasons.values()), ledger["in_flight"], why)
            )
    return table(("stage", "of", "seen", "passed on", "left out", "open", ""), rows, left=2, words_last=True)


def _empty(folder: Path) -> None:
    """Make the folder, or empty the one that an earlier demo made; never another."""
    if folder.exists():
        if any(folder.iterdir()) and not (folder / MARK).exists():
            raise ConfigError(f"{folder}: is not empty, and no earlier demo made it; choose another: --dir DIR")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, mode=0o700)
    (folder / MARK).touch()
    (folder / ".gitignore").write_text("*\n")  # it holds keys


def _near(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
