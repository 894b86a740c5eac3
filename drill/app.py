"""A drill put together: proof, load under the guard, proof again, verdict."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from analytics.app import PANES_FILE, Aggregator, Progress
from analytics.panes import NS
from analytics.production import ProductionReader
from analytics.store_sqlite import PaneStore
from bus.logfile import FileBus
from bus.ports import BusAway
from drill.audit_client import AuditClient, AuditError
from drill.canary import canary_result, choose, outcomes_of, write_recording
from drill.events import Event, EventKind, OnEvent
from drill.fleet import Fleet, Spawn, plain_spawn
from drill.guard import Decision, Guard
from drill.isolation import IsolationProof, IsolationReport, Proof, mocked_calls
from drill.load import Load, LoadRun
from drill.plan import Plan
from drill.pressure import Pressure, arithmetics, refuse_unknown_routes, share_of_open, thin_thresholds
from drill.proof_watch import ProofWatch
from drill.result import Canary, DrillResult, ThirdPartyResult, account_of
from drill.run_files import route_table
from drill.settings import DrillSettings
from drill.site import Following, site_of
from drill.verdict import capacity_of, fidelity_of, judge_step, verdict_of
from replay import targets
from replay.book import claimed
from replay.conductor import Conductor
from replay.recording import Recording
from replay.recover import recover
from replay.settings import LEASE_NS, RENEW_NS, WorkerSettings
from wire import topics
from wire.config import ConfigError
from wire.ids import ulid
from wire.records import Kind
from wire.routes import RouteMatcher

RUN_FILE = "run.json"
RESULT_FILE = "result.json"


def run(
    plan: Plan, settings: DrillSettings, spawn: Spawn = plain_spawn, on_event: OnEvent | None = None
) -> DrillResult:
    """Carry out a plan. Blocks until nothing of it is open any more; whatever happens, no worker stays.

    Raises ConfigError, BusError or StoreError before the first shot for what no drill can be made of.
    """
    return _Drill(plan, settings, spawn, _nobody if on_event is None else on_event).run()


def _nobody(event: Event) -> None:
    """Listens to a drill that nobody watches."""


class _Drill:
    def __init__(self, plan: Plan, settings: DrillSettings, spawn: Spawn, on_event: OnEvent) -> None:
        anchor = time.time_ns() - time.monotonic_ns()
        self.now: Callable[[], int] = lambda: anchor + time.monotonic_ns()
        self.plan, self.settings, self.spawn, self.on_event = plan, settings, spawn, on_event
        self.begun_ns = self.now()
        self.run_id = settings.run_id or ulid(self.begun_ns)
        self.run_dir = settings.runs_dir / self.run_id
        self.site = site_of(plan, settings, spawn, self.run_id, self.run_dir, self.now)
        try:
            self._judge()
        except BaseException:
            self.site.close()
            raise

    def _judge(self) -> None:
        """Raises ConfigError for what no drill can be made of."""
        plan, settings = self.plan, self.settings
        self.recording = Recording(self.site.recording)
        self.survey = self.recording.survey()
        self.steps = arithmetics(plan, self.survey)
        refuse_unknown_routes(plan, self.survey, route_table(self.site.recording))
        self.unsafe = self.survey.unsafe_count > 0
        if self.unsafe and plan.isolation is None and not settings.disposable_target:
            kinds = ", ".join(f"{count} {method}" for method, count in sorted(self.survey.unsafe.items()))
            raise ConfigError(
                f"{plan.source}: the recording has requests that may change state ({kinds}): add an isolation section, "
                f"or declare the target with --disposable-target"
            )
        # Once, for the canaries and every worker: what the canaries proved must be what the load is fired at.
        self.pinned = targets.admit(
            plan.target, refused_sources=settings.refused_sources, named_sources=settings.refused_sources
        ).address
        key = bytes.fromhex(settings.key_hex)
        self.client = AuditClient(self.run_id, settings.key_id, key, lambda: self.now() / 1e9)
        self.proof = IsolationProof(plan.isolation, self.run_id, self.client)

    def tell(self, kind: EventKind, text: str, **detail: Any) -> None:
        self.on_event(Event(kind, self.now(), text, detail))

    def run(self) -> DrillResult:
        with contextlib.closing(self.site):
            return self._run()

    def _run(self) -> DrillResult:
        self.run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._write(RUN_FILE, self._asked())
        for step in self.steps:
            self.tell(EventKind.ARITHMETIC, step.line(), **msgspec.structs.asdict(step))
        for line in (*self.survey.doubts, *thin_thresholds(self.plan, self.survey, self.steps)):
            self.tell(EventKind.NOTE, line)
        mocks = self._mocks()
        self.proof.begin()
        report = self.proof.check(writes_expected=self.unsafe, unsafe=self.unsafe)
        canary = Canary()
        if not (report.silent and self._needs_proof):  # a write that no witness could see must not be sent at all
            canary = self._canary()
            report = self.proof.check(writes_expected=self.unsafe, unsafe=self.unsafe)
        self._tell_isolation(report, "before the load")
        with contextlib.ExitStack() as stack:
            store = stack.enter_context(PaneStore(self.run_dir / PANES_FILE))
            if report.verdict is Proof.VIOLATED or (report.verdict is Proof.NOT_PROVEN and self._needs_proof):
                self.tell(EventKind.STOPPED, "no load is fired")
                nothing = LoadRun((), None, 0, self.now(), {}, report)
                return self._result(store, nothing, report, canary, mocks, Progress())
            load, booked = self._load(store, canary)
            report = self._last_proof()
            self._tell_isolation(report, "after the load")
            return self._result(store, load, report, canary, mocks, booked)

    @property
    def _needs_proof(self) -> bool:
        return self.unsafe and not self.settings.disposable_target

    def _tell_isolation(self, report: IsolationReport, when: str) -> None:
        self.tell(EventKind.ISOLATION, f"{when}: {report.said()}", verdict=report.verdict.value, when=when)

    # -- canaries

    def _canary(self) -> Canary:
        if self.plan.isolation is None:
            return Canary()
        choice = choose(self.recording.stamped())
        if not choice.sessions:
            return Canary(left_out=choice.left_out)
        folder = self.run_dir / "canary"
        path = folder / "canary.lf"
        write_recording(choice, self.site.recording, path, self.now())
        bus = FileBus(folder)
        conductor = Conductor(bus, self.run_id, self.now)
        worker = self._worker(
            "c0", 0, 1, folder, path, Kind.CANARY, spread_ns=0, laps=1, max_rate=min(self.plan.caps.rate, 200.0)
        )
        with Fleet(self.spawn, [worker], prefix="canary-") as fleet:
            fleet.start()
            deadline = self.now() + self.settings.canary_ns
            announced = False
            renewed = 0
            while not fleet.all_gone and (now := self.now()) < deadline:
                if now - renewed >= RENEW_NS:
                    renewed = now
                    conductor.renew()
                if not announced and conductor.beats():
                    announced = True
                    conductor.step(-1, 1.0, now + NS, 0, "canary")
                time.sleep(self.settings.tick_ns / 1e9)
            if not fleet.all_gone:
                conductor.stop("the canaries take too long")
        conductor.close()
        recover(folder)
        canary = canary_result(choice, outcomes_of(bus))
        self.tell(EventKind.CANARY, canary.said(), **msgspec.to_builtins(canary))
        if canary.left_out:
            self.tell(
                EventKind.NOTE, f"no canary for {', '.join(canary.left_out)}: only the load shows where those write"
            )
        return canary

    def _last_proof(self) -> IsolationReport:
        """A service may need a moment after the load until it answers."""
        deadline = self.now() + 6 * NS
        while True:
            report = self.proof.check(writes_expected=self.unsafe, unsafe=self.unsafe)
            silent = any(service.problem for service in report.services)
            if not silent or self.now() >= deadline:
                return report
            time.sleep(0.25)

    # -- load

    def _worker(
        self, name: str, index: int, workers: int, folder: Path, recording: Path, kind: Kind,
        *, spread_ns: int, laps: int, max_rate: float,
    ) -> WorkerSettings:  # fmt: skip
        plan, settings = self.plan, self.settings
        return WorkerSettings(
            run_id=self.run_id,
            run_dir=str(folder),
            worker=name,
            index=index,
            workers=workers,
            recording=str(recording),
            target=plan.target,
            pinned=self.pinned,
            refused_sources=settings.refused_sources,
            named_sources=settings.refused_sources,  # the plan names its target, so it may be where it was recorded
            speed=plan.speed,
            spread_ns=spread_ns,
            laps=laps,
            max_rate=max_rate,
            max_open=share_of_open(plan.caps.open_shots, workers),
            timeout_ns=plan.timeout_ns,
            lease_ns=LEASE_NS,
            key_id=settings.key_id,
            key_hex=settings.key_hex,
            accounts=str(plan.accounts) if plan.accounts else "",
            kind=kind,
            allow_unsafe=self.unsafe,  # there is a proof by now, or the target is disposable
        )

    def _load(self, store: PaneStore, canary: Canary) -> tuple[LoadRun, Progress]:
        plan, site = self.plan, self.site
        aggregator, production = self._aggregators(store)
        conductor = site.conductor()
        names = site.names
        workers = [
            site.worker(self._worker(
                name, index, len(names), self.run_dir, site.recording, Kind.STRESS,
                spread_ns=plan.spread_ns, laps=0, max_rate=plan.caps.rate / len(names),
            ))
            for index, name in enumerate(names)
        ]  # fmt: skip
        watch = ProofWatch(lambda: self.proof.check(writes_expected=False), self.settings.proof_ns)
        try:
            with contextlib.closing(site.crew(workers)) as fleet:
                conductor.renew()
                fleet.start()
                self.tell(
                    EventKind.STARTED,
                    f"run {self.run_id}: {len(names)} worker{'s' if len(names) > 1 else ''}, at {plan.target}",
                    run_id=self.run_id,
                )
                load = Load(
                    run_id=self.run_id,
                    settings=self.settings,
                    arithmetics=self.steps,
                    pressure=Pressure(plan.steps, self._ramp_ns()),
                    timeout_ns=plan.timeout_ns,
                    conductor=conductor,
                    fleet=fleet,
                    aggregator=Following(site, aggregator, production),
                    store=store,
                    guard=Guard(
                        plan.thresholds,
                        max_open=share_of_open(plan.caps.open_shots, len(names)) * len(names),
                        workers=names,
                    ),
                    watch=watch if plan.isolation is not None else None,
                    stop_asked=site.stop_asked(),
                    now=self.now,
                    sleep=time.sleep,
                    tell=self.tell,
                    lag_ns=site.lag_ns,
                ).run()
        except BaseException:
            with contextlib.suppress(BusAway):
                conductor.close("failed")
            raise
        if problem := site.leave(conductor):
            self.tell(EventKind.NOTE, problem)
        aggregator.drain()  # also what a worker booked that was ended when our patience was
        self._notes(store, load, aggregator)
        if load.decision is not None and load.steps:
            self._tell_stop(load.decision, aggregator.progress.last_sent_ns)
        aggregator.close()
        return load, aggregator.progress

    def _aggregators(self, store: PaneStore) -> tuple[Aggregator, Aggregator | None]:
        """Of the workers' books, which also reads the live recording where that is a file, and of one on a bus."""
        books, live = FileBus(self.run_dir), self.plan.production
        if live is None:
            return Aggregator(books, store), None
        reader = ProductionReader(self.run_id, RouteMatcher(route_table(self.site.recording)), live.servers, self.now())
        bus = self.site.live(live.recording)
        if bus is None:
            return Aggregator(books, store, recording=live.recording, production=reader), None
        since_ns = self.now() - 60 * NS  # clocks may differ
        beside = Aggregator(bus, store, topic=topics.RAW, production=reader, since_ns=since_ns)
        return Aggregator(books, store), beside

    def _ramp_ns(self) -> int:
        """As long as sessions last, in whole seconds, unless the plan says; at most as long as the shortest step."""
        if self.plan.ramp_ns is not None:
            return self.plan.ramp_ns
        lasts = round(self.survey.session_ns / self.plan.speed)
        return min(-(-lasts // NS) * NS, min(step.for_ns for step in self.plan.steps))

    def _notes(self, store: PaneStore, load: LoadRun, aggregator: Aggregator) -> None:
        if load.steps:
            store.set_note("start_s", str(load.started_ns // NS))
        if aggregator.ended:
            store.set_note("watermark_s", str(1 << 40))

    def _tell_stop(self, decision: Decision, last_sent_ns: int) -> None:
        after_ms = (last_sent_ns - decision.at_ns) / 1e6
        when = f"{after_ms:.0f} ms after the decision" if after_ms > 0 else f"{-after_ms:.0f} ms before the decision"
        self.tell(EventKind.STOPPED, f"the last request left {when}", stopped_after_ms=after_ms)

    # -- the end

    def _mocks(self) -> dict[str, dict[str, Any]]:
        counts = {}
        for party in self.plan.third_parties:
            with contextlib.suppress(AuditError):
                counts[party.name] = self.client.read_any(f"http://{party.mock}")
        return counts

    def _third_parties(self, report: IsolationReport, before: Mapping[str, Any]) -> tuple[ThirdPartyResult, ...]:
        calls, now = mocked_calls(report), self._mocks()
        found = []
        for party in self.plan.third_parties:
            counts, was = now.get(party.name), before.get(party.name, {})
            served = unmatched = None
            if counts is not None:
                served = int(counts.get("served", 0)) - int(was.get("served", 0))
                unmatched = int(counts.get("unmatched", 0)) - int(was.get("unmatched", 0))
            mocked = calls.get(party.recorded, 0)
            found.append(ThirdPartyResult(party.name, party.recorded, party.mock, mocked, served, unmatched))
        return tuple(found)

    def _result(
        self, store: PaneStore, load: LoadRun, report: IsolationReport, canary: Canary, mocks: Mapping[str, Any],
        booked: Progress,
    ) -> DrillResult:  # fmt: skip
        panes = store.panes(self.run_id)
        steps = tuple(judge_step(step, panes, self.plan.thresholds, load.decision) for step in load.steps)
        if load.isolation is not None and load.isolation.verdict is Proof.VIOLATED:
            report = load.isolation if report.verdict is not Proof.VIOLATED else report
        fidelity = fidelity_of(steps)
        account = account_of(panes, claimed(FileBus(self.run_dir)), booked.failures)
        verdict = verdict_of(
            steps=steps,
            decision=load.decision,
            isolation=report,
            disposable=self.settings.disposable_target,
            fidelity=fidelity,
            enough_fidelity=self.settings.enough_fidelity,
            workers_failed=load.workers_failed,
            lost=account.lost,
            failures=booked.failures,
        )
        result = DrillResult(
            run_id=self.run_id,
            run_dir=self.run_dir,
            name=self.plan.name,
            exit_code=verdict.exit_code,
            verdict=verdict,
            capacity=capacity_of(steps),
            fidelity=fidelity,
            steps=steps,
            isolation=report,
            canary=canary,
            account=account,
            third_parties=self._third_parties(report, mocks),
            arithmetic=tuple(step.line() for step in self.steps),
            started_ns=load.started_ns or self.begun_ns,
            ended_ns=load.ended_ns,
            decision=load.decision,
            decision_ns=load.decision.at_ns if load.decision else 0,
            last_sent_ns=booked.last_sent_ns,
        )
        self._write(RESULT_FILE, result.as_dict())
        self.tell(EventKind.RESULT, verdict.headline, exit_code=verdict.exit_code, reasons=list(verdict.reasons))
        return result

    def _asked(self) -> dict[str, Any]:
        return {
            "kind": "drill",
            "run_id": self.run_id,
            "name": self.plan.name,
            "created_ns": self.begun_ns,
            "recording": str(self.plan.recording),
            "bus": self.settings.bus,
            "target": self.plan.target,
            "source": self.plan.source,
            "plan": self.plan.shown_text,
            "arithmetic": [step.line() for step in self.steps],
        }

    def _write(self, name: str, data: dict[str, Any]) -> None:
        """Whole or not at all: a reader may look at any moment."""
        draft = self.run_dir / f".{name}.draft"
        draft.write_bytes(msgspec.json.format(msgspec.json.encode(data)) + b"\n")
        draft.replace(self.run_dir / name)
