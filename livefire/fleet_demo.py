"""The demo over servers: each stage a process of its own, started with the command that a fleet would run.

    2 recorders -> raw -> 2 cleansers -> clean -> 2 workers -> outcomes -> aggregator -> stores

The drill is one of those processes' peers, not their parent: they meet on the bus. What is told at the end is counted
where it ended up, on the bus and in the stores, and compared stage by stage.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from analytics.app import window_dicts
from analytics.store_address import open_reader
from analytics.store_port import StoreError
from bus.address import KafkaSecurity, open_bus
from bus.ports import Bus
from bus.topic import TopicReader
from livefire import errors
from livefire.demo import Demo, DemoSettings, recorder_sources
from livefire.drilling import drill_and_tell, plan_with
from livefire.recording import masked_line
from livefire.story import Story
from livefire.supervisor import Supervisor
from livefire.system import System
from livefire.tables import counted
from replay.fetch import fetch
from wire import codec, topics
from wire.account import Account
from wire.codec import RecordType
from wire.config import ConfigError
from wire.ids import ulid

AGENTS: Final = ("a", "b")
CLEANSERS: Final = 2
WORKERS: Final = 2
_STREAMS_S: Final = 20.0
_WHOLE_S: Final = 60.0
_STORES_S: Final = 30.0
_EVERY: Final = "10s"


class FleetSettings(msgspec.Struct, frozen=True):
    """Where the stages meet, and where windows are kept."""

    bus: str
    stores: tuple[str, ...] = ()
    security: KafkaSecurity | None = None


class FleetDemo(Demo):
    def __init__(self, settings: DemoSettings, fleet: FleetSettings, story: Story) -> None:
        super().__init__(settings, story)
        self.fleet = fleet
        self.name = f"demo-{ulid(time.time_ns())[-8:].lower()}"  # noqa: TID251 (a name for this demo's recording)
        self.live_name = f"{self.name}-live"

    def _open(self, scope: str) -> Bus:
        return open_bus(self.fleet.bus, scope, self.fleet.security)

    # -- 2

    def _record(self, supervisor: Supervisor, system: System) -> None:
        self.story.chapter(f"record its traffic: {len(AGENTS)} recorders, onto {self.fleet.bus}")
        self.story.line(self.why_this_source)
        if self.fleet.bus.startswith("kafka://"):
            self._run("topics", "create")
        recorders = self._recorders(supervisor, system, self.name)
        self.production = system.start_production(supervisor)
        self._watch(supervisor, lambda: "")
        if system.proxied:  # a proxy's address can be taken again when it is free
            supervisor.stop(self.production)
        else:
            self.recorders = self._recorders(supervisor, system, self.live_name)
        for agent, recorder in zip(AGENTS, recorders, strict=True):
            self.relieved.add(f"recorder-{agent}-{self.name}")
            if supervisor.stop(recorder, grace_s=10) != 0:
                raise ConfigError(f"recorder {agent}: {' / '.join(supervisor.errors_of(f'recorder-{agent}'))}")
        if system.proxied:
            self.relieved.add("production")
            self.recorders = self._recorders(supervisor, system, self.live_name)
            self.production = system.start_production(supervisor)
        account = self._recorded()
        self.story.line(
            f"{counted(self.figures['recorded'], 'exchange')}, account "
            f"{'balanced' if account.balanced else 'NOT BALANCED'}; two more recorders go on beside the drill"
        )
        self.story.line(masked_line(account) or "NOTHING WAS MASKED")

    def _recorders(self, supervisor: Supervisor, system: System, name: str) -> list[subprocess.Popen[bytes]]:
        services = system.description.record
        children = []
        for index, agent in enumerate(AGENTS):
            its = [*services[index :: len(AGENTS)]] or [services[0]]
            arguments = ["record", "--recording", name, "--agent", agent, "--agents", ",".join(AGENTS),
                         "--spool", str(self.folder / f"spool-{agent}-{name}")]  # fmt: skip
            self._told(arguments)
            argv = self._on_bus([*arguments, *recorder_sources(system, its)])
            children.append(supervisor.spawn(f"recorder-{agent}-{name}", argv))
        bus = self._open(name)
        try:
            self._await(
                lambda: {stream.rpartition(".")[0] for stream in bus.partitions(topics.RAW)} >= set(AGENTS),
                _STREAMS_S, "the recorders did not begin", supervisor,
            )  # fmt: skip
        finally:
            bus.close()
        return children

    def _recorded(self) -> Account:
        """What the books of all recorders say, as they came over the bus."""
        bus = self._open(self.name)
        reader = TopicReader(bus, topics.RAW)
        try:
            streams: dict[str, Account] = {}
            exchanges = 0
            while messages := reader.poll():
                for message in messages:
                    header = codec.decode_header(message.data)
                    streams.setdefault(message.partition, Account()).add(header.increment)
                    exchanges += header.count if header.type is RecordType.EXCHANGE else 0
            account = Account()
            for stream in streams.values():
                account.merge(stream)
            self.figures["recorded"] = exchanges
            return account
        finally:
            reader.close()
            bus.close()

    @property
    def _recording(self) -> Path:
        return self.clean

    # -- 3

    def _cleanse(self, supervisor: Supervisor, system: System) -> None:
        self.story.chapter(f"cleanse and stamp: {CLEANSERS} cleansers in one group")
        learned = self.folder / "learned.lf"
        entry = system.places[f"{system.description.entry}.at"]
        of = ["--recording", self.name, "--server", entry]
        self._run("learn", *of, "--wait", "60s", "--to", str(learned))
        for index in range(CLEANSERS):
            arguments = ["cleanse", *of, "--learned", str(learned), "--worker", f"c{index}", "--stdin-guard"]
            self._told(arguments)
            supervisor.spawn(f"cleanser-{index}", self._on_bus(arguments))
        bus = self._open(self.name)
        self.clean = self.folder / "clean.lf"
        try:
            fetched = fetch(
                bus, self.name, self.clean, deadline_s=_WHOLE_S,
                told=lambda p: self.story.progress(f"{p.exchanges:,} exchanges, {p.ended} of {p.streams} ended"),
            )  # fmt: skip
        finally:
            bus.close()
        assert fetched is not None
        ledger = fetched.account.ledger("messages")
        self.story.line(
            f"kept {fetched.exchanges:,} of {counted(ledger.seen, 'exchange')}, {counted(fetched.sessions, 'session')}"
        )
        self.figures["cleanse"] = fetched.account.as_json()
        self.figures["fetched"] = fetched.exchanges

    # -- 4

    def _drill(self, supervisor: Supervisor, system: System) -> int:
        self.story.chapter(f"drill: {WORKERS} workers, against the same system, while production goes on")
        plan = system.path.parent / "plan.yaml"
        asked = plan_with(
            plan, {"recording": self.name, "live": self.live_name, **system.places}, on_bus=bool(self.fleet.bus)
        )
        asked = msgspec.structs.replace(asked, workers=WORKERS)
        for index in range(WORKERS):
            arguments = ["worker", "--name", f"w{index}", "--target", asked.target, "--stdin-guard"]
            if asked.accounts:
                arguments += ["--accounts", str(asked.accounts)]
            self._told(arguments)
            supervisor.spawn(f"worker-{index}", self._on_bus(arguments))
        if self.fleet.stores:
            entry = system.places[f"{system.description.entry}.at"]
            arguments = ["aggregate", "--recording", self.live_name, "--server", entry, "--stdin-guard"]
            arguments += ["--learned", str(self.folder / "learned.lf"), "--service", system.description.name]
            for store in self.fleet.stores:
                arguments += ["--store", store]
            self._told(arguments)
            self.aggregator = supervisor.spawn("aggregator", self._on_bus(arguments))
        self.result = drill_and_tell(
            asked, self.keys, self.settings.runs, supervisor, self.story,
            bus=self.fleet.bus, security=self.fleet.security,
        )  # fmt: skip
        self.figures["drill"] = self.result.as_dict()
        self.figures["entry"] = system.places[f"{system.description.entry}.at"]
        stopped = self.result.exit_code == errors.STOPPED
        return errors.OK if stopped else self.result.exit_code

    # -- 5

    def _more_proofs(self, supervisor: Supervisor) -> None:
        cleansed = self.figures["cleanse"]["ledgers"]["messages"]
        self._same("recorders passed on", self.figures["recorded"], "cleansers saw", cleansed["seen"])
        self._same("cleansers passed on", cleansed["emitted"], "workers fetched", self.figures["fetched"])
        own = _stress(window_dicts(self.result.run_dir, every=_EVERY))
        self._same(
            "shots in the workers' books", self.figures["replay"]["ledgers"]["shots"]["seen"],
            "shots in the windows", sum(window["offered"] for window in own if window["route"] == "*"),
        )  # fmt: skip
        self.figures["windows"] = {}
        for store in self.fleet.stores:
            shown = store.partition("://")[0] or store
            found = self._windows_of(store, own)
            self.figures["windows"][shown] = found == own
            if found != own:
                self.disagreements.append(f"windows in {shown}")
            self.story.line(
                f"{shown}: {counted(len(found), 'window')} of {_EVERY}, "
                + ("the same as in the report" if found == own else f"NOT THE SAME as the {len(own)} in the report")
            )

    def _windows_of(self, store: str, own: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """As the store has them, once it has all; what it has after a while, where it never does."""
        found: list[dict[str, Any]] = []
        deadline = time.monotonic() + _STORES_S
        start_s = min((window["start_ns"] for window in own), default=0) // 1_000_000_000
        while True:
            try:
                reader = open_reader(store, self.result.run_id)
                try:
                    windows = reader.windows(
                        self.result.run_id, every_s=10, over_s=10, start_s=start_s, watermark_s=1 << 40
                    )
                    found = _stress([window.as_dict() for window in windows])
                finally:
                    reader.close()
            except StoreError:
                found = []
            if found == own or time.monotonic() > deadline:
                return found
            time.sleep(0.25)

    def _same(self, one: str, n: int, other: str, m: int) -> None:
        self.figures.setdefault("chain", []).append([one, n, other, m])
        if n != m:
            self.disagreements.append(f"what {one} and what {other}")
        self.story.line(f"{one} {n:,} = {other} {m:,}" if n == m else f"{one} {n:,}, {other} {m:,}: NOT BALANCED")

    # -- commands

    def _on_bus(self, arguments: Sequence[str]) -> list[str]:
        return self._command(["--bus", self.fleet.bus, *arguments])

    def _told(self, arguments: Sequence[str]) -> None:
        """The command as one would type it; what only a supervisor adds is left out."""
        shown = [word for word in arguments if word != "--stdin-guard"]
        self.story.line(f"$ livefire {' '.join(word.replace(f'{self.folder}/', '') for word in shown)}")

    def _run(self, *arguments: str) -> None:
        """A command that ends; what it says is told."""
        self._told(arguments)
        done = subprocess.run(self._on_bus(arguments), capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode != 0:
            raise ConfigError(f"livefire {arguments[0]}: {done.stderr.strip() or done.stdout.strip()}")
        for line in done.stdout.splitlines():
            self.story.line(f"  {line.strip()}")

    def _await(self, done: Callable[[], bool], seconds: float, else_: str, supervisor: Supervisor) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            self._all_alive(supervisor)
            if time.monotonic() > deadline:
                raise ConfigError(f"{else_} within {seconds:g} s")
            time.sleep(0.1)


def _stress(windows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the run's own traffic, and what does not depend on when one looks or when a run is said to begin."""
    return sorted(
        (
            {name: value for name, value in window.items() if name not in ("final", "elapsed_s")}
            for window in windows
            if window["kind"] == "stress"
        ),
        key=lambda window: (window["start_ns"], window["route"]),
    )
